"""Packaging of mpnet_ds. Ranges here, exact versions of a tested environment in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="mpnet_ds",
    version="0.1.0",
    description="Pre-train MPNet text encoders on your own text with DeepSpeed, and export them to transformers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["mpnet_ds", "mpnet_ds.*"]), "mpnet_ds.ds_configs"],
    package_dir={"mpnet_ds.ds_configs": "ds_configs"},  # at the top of a checkout, inside the installed package
    package_data={"mpnet_ds": ["recipes/*.json", "config/*.md", "hub/*.md"], "mpnet_ds.ds_configs": ["*.json"]},
    entry_points={"console_scripts": ["mpnet-ds = mpnet_ds.programs.cli:start"]},
    install_requires=[
        "torch>=2.9",
        "deepspeed>=0.19.8",
        "transformers>=5.20",
        "tokenizers>=0.22",
        "datasets>=4",
        "safetensors>=0.6",
        "huggingface-hub>=1.0",
        "jinja2>=3.1",
        "numpy>=2.0",
        "pydantic>=2.10",
        "tensorboard>=2.18",
        "tqdm>=4.66",
        "xxhash>=3.5",
        "psutil>=6",
    ],
    extras_require={
        "plot": ["matplotlib>=3.8"],
        "sentence-transformers": ["sentence-transformers>=6"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "filelock>=3.15",
            "ruff>=0.9",
            "matplotlib>=3.8",
            "sentence-transformers>=6",
            "triton>=3.4; sys_platform == 'linux'",
        ],
    },
)
