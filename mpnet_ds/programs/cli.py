"""``mpnet-ds PROGRAM ARGUMENTS``: all programs under one name, in any folder."""

import sys
from importlib import import_module

from mpnet_ds import __version__
from mpnet_ds.command_line import run
from mpnet_ds.errors import UserError, did_you_mean

PROGRAMS = {
    "train-tokenizer": "learn a vocabulary from text",
    "build-dataset": "text → token shards, ready for training",
    "inspect-dataset": "what a dataset holds; whether it is sound; its samples",
    "merge-datasets": "several datasets → one",
    "import-dataset": "token files of Megatron-LM or fairseq → a dataset",
    "pretrain": "train an encoder",
    "plot-run": "curves of runs as a picture",
    "consolidate": "shards of a checkpoint → safetensors",
    "convert-to-hf": "a run → a Hugging Face folder, checked",
    "convert-from-hf": "any MPNet → weights to start from",
    "fill-mask": "what a model makes of masked sentences",
    "check-cluster": "whether hosts can train together",
    "demo": "the whole way, from text to a model, in minutes",
}
"""Name → what it does, in the order in which they are used."""
HELP = """\
usage: mpnet-ds PROGRAM ARGUMENTS
       mpnet-ds PROGRAM --help

Pre-train MPNet text encoders with DeepSpeed, from your own text to a Hugging Face folder.

programs:
{programs}

On several GPUs, DeepSpeed's launcher starts the training:
  deepspeed --module mpnet_ds.training.pretrain --deepspeed_config zero2 --data my-data"""


def main() -> int | None:
    """Call a program by its name; returns its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(HELP.format(programs="\n".join(f"  {name:16} {what}" for name, what in PROGRAMS.items())))
        return 0
    if name == "--version":
        print(f"mpnet-ds {__version__}")
        return 0
    if name not in PROGRAMS:
        raise UserError(f"unknown program '{name}'. {did_you_mean(name, PROGRAMS)} (see mpnet-ds --help)")
    program = import_module(f"mpnet_ds.programs.{name.replace('-', '_')}")
    sys.argv = [f"mpnet-ds {name}", *arguments]
    return program.main()


def start() -> None:
    """Entry point of the installed command."""
    run(main)


if __name__ == "__main__":
    start()
