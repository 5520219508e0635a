"""Pre-trains an encoder: deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data DIR"""

import os

from mpnet_ds.command_line import Parser, run
from mpnet_ds.launchers import find_placement


def main() -> int:
    if find_placement(os.environ).world_size == 1:
        # Before torch is loaded: with one rank on a GPU, torch warns of guessing which GPU a barrier is for.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from mpnet_ds.training.pretrain import add_arguments, pretrain

    parser = Parser(
        "Pre-train a text encoder with DeepSpeed. Without --data it trains a demo on a built-in sample.",
        "deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data my-data --output_dir runs/first",
    )
    add_arguments(parser)
    return pretrain(parser.parse_args())


if __name__ == "__main__":
    run(main)
