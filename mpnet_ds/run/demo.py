"""The demo's data: tokenizer and dataset made from the built-in sample, once for each Python version."""

import platform
import shutil
from pathlib import Path

from mpnet_ds.data.builder.dataset_builder import BuildOptions, build_dataset
from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on
from mpnet_ds.data.storage.manifest import FILE_NAME
from mpnet_ds.data.text import builtin_sample

VOCAB_SIZE = 4096
HOLDOUT = 0.05

DEMO_TEXT = """
This is the demo: recipe {recipe} on the documentation strings of Python's standard library.
To train on your own text, build a dataset and pass it:
    python tools/train_tokenizer.py --input TEXT… --vocab_size 30527 --output my-tokenizer
    python tools/build_dataset.py   --input TEXT… --tokenizer my-tokenizer --output my-data --holdout 0.01
    deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data my-data
"""


def prepare_sample() -> Path:
    """The folder of the sample's dataset in ``sample/``, built if it is not there yet."""
    folder = Path("sample") / f"python-{platform.python_version()}"
    if not (folder / FILE_NAME).is_file():
        print("Building the demo's dataset from Python's documentation strings …", flush=True)
        tokenizer_folder = folder.with_name(folder.name + "-tokenizer")
        shutil.rmtree(tokenizer_folder, ignore_errors=True)
        train_tokenizer_on([builtin_sample.NAME], VOCAB_SIZE, tokenizer_folder)
        build_dataset([builtin_sample.NAME], tokenizer_folder, folder, BuildOptions(holdout=HOLDOUT))
        shutil.rmtree(tokenizer_folder)  # the dataset has its copy
    return folder
