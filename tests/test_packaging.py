"""The package as a user installs it: everything that a run needs is in the wheel."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.runs import ROOT

SOURCES = ("mpnet_ds", "ds_configs", "setup.py", "README.md", "LICENSE")


def ended_well(*words, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A virtual environment with the wheel in it and the dependencies of this one, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"  # building leaves folders behind, and old ones would get into the wheel
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    ended_well(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, cwd=folder)
    ended_well(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    (wheel,) = folder.glob("*.whl")
    python = folder / "env" / "bin" / "python"
    ended_well(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env" / "bin"


@pytest.mark.long
def test_the_demo_of_an_installed_package_runs_in_an_empty_folder(installed, tmp_path):
    said = ended_well(installed / "mpnet-ds", "demo", "--max_steps", 3, cwd=tmp_path)
    assert " --module mpnet_ds.training.pretrain --deepspeed_config zero2" in said
    assert "== Done" in said
    assert (tmp_path / "runs" / "demo" / "model" / "config.json").is_file()
    again = ended_well(installed / "mpnet-ds", "demo", "--max_steps", 3, cwd=tmp_path)
    assert again.count("is there already") == 5


@pytest.mark.long
def test_an_installed_package_has_every_file_of_the_checkout_and_stands_alone(installed, tmp_path):
    place = Path(ended_well(installed / "python", "-c", "import mpnet_ds; print(mpnet_ds.__file__)", cwd=tmp_path).strip())
    assert place.is_relative_to(installed.parent)
    assert files_below(place.parent) == files_below(ROOT / "mpnet_ds") | {
        Path("ds_configs", name) for name in files_below(ROOT / "ds_configs")
    }


def files_below(folder: Path) -> set[Path]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if path.suffix != ".pyc"}
