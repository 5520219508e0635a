"""Build a dataset from text: python tools/build_dataset.py --input corpus/ --tokenizer my-tokenizer --output my-data"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.build_dataset import main

if __name__ == "__main__":
    run(main)
