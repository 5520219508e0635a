"""Merge several datasets into one: python tools/merge_datasets.py january february --output year"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.merge_datasets import main

if __name__ == "__main__":
    run(main)
