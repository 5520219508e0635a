"""Shows what a model makes of masked sentences: python tools/fill_mask.py my-model "the <mask> of the list" """

from mpnet_ds.command_line import run
from mpnet_ds.programs.fill_mask import main

if __name__ == "__main__":
    run(main)
