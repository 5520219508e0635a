"""Draws the curves of runs: python tools/plot_run.py runs/first runs/second --output runs.png"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.plot_run import main

if __name__ == "__main__":
    run(main)
