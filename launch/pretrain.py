"""Pre-trains an encoder: deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data DIR"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.pretrain import main

if __name__ == "__main__":
    run(main)
