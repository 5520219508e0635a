"""Exports a Hugging Face folder: python tools/convert_to_hf.py runs/first my-model"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.convert_to_hf import main

if __name__ == "__main__":
    run(main)
