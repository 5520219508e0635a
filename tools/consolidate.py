"""Joins ZeRO shards into safetensors: python tools/consolidate.py runs/first weights"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.consolidate import main

if __name__ == "__main__":
    run(main)
