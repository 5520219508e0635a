"""The demo's data: tokenizer and dataset made from the built-in sample, once for each Python version."""

import platform
import shutil
from pathlib import Path

from mpnet_ds.command_line import invocation
from mpnet_ds.data.builder import dataset_builder
from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on
from mpnet_ds.data.builder.plan import BuildOptions
from mpnet_ds.data.storage.manifest import FILE_NAME
from mpnet_ds.data.text import builtin_sample

VOCAB_SIZE = 4096
HOLDOUT = 0.05


def explain(recipe: str) -> str:
    """What a run without --data is, and how to train on text of one's own."""
    train_tokenizer, build_dataset, pretrain = map(invocation, ("train_tokenizer", "build_dataset", "pretrain"))
    return f"""
This is the demo: recipe {recipe} on the documentation strings of Python's standard library.
To train on your own text, build a dataset and pass it:
    {train_tokenizer} --input TEXT… --vocab_size 30527 --output my-tokenizer
    {build_dataset} --input TEXT… --tokenizer my-tokenizer --output my-data --holdout 0.01
    {pretrain} --deepspeed_config zero2 --data my-data
"""


def prepare_sample() -> Path:
    """The folder of the sample's dataset in ``sample/``, built if it is not there yet."""
    folder = Path("sample") / f"python-{platform.python_version()}"
    if not (folder / FILE_NAME).is_file():
        print("Building the demo's dataset from Python's documentation strings …", flush=True)
        tokenizer_folder = folder.with_name(folder.name + "-tokenizer")
        shutil.rmtree(tokenizer_folder, ignore_errors=True)
        train_tokenizer_on([builtin_sample.NAME], VOCAB_SIZE, tokenizer_folder)
        dataset_builder.build_dataset([builtin_sample.NAME], tokenizer_folder, folder, BuildOptions(holdout=HOLDOUT))
        shutil.rmtree(tokenizer_folder)  # the dataset has its copy
    return folder
