"""Inspect a dataset: python tools/inspect_dataset.py my-data --verify --show 0"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.inspect_dataset import main

if __name__ == "__main__":
    run(main)
