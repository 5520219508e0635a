"""Checks the hosts of a hostfile before a run: python tools/check_cluster.py --hostfile hostfile --data my-data"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.check_cluster import main

if __name__ == "__main__":
    run(main)
