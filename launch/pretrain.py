"""Pre-trains an encoder: deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data DIR"""

import os

from mpnet_ds.command_line import Parser, run

# Before torch is loaded: warnings of its C++ parts, of names that cannot be looked up for example, help nobody.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> int:
    from mpnet_ds.config.arguments import add_arguments

    parser = Parser(
        "Pre-train a text encoder with DeepSpeed. Without --data it trains a demo on a built-in sample.",
        "deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data my-data --output_dir runs/first",
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    from mpnet_ds.training.pretrain import pretrain  # after parsing: --help need not wait for torch

    return pretrain(arguments)


if __name__ == "__main__":
    run(main)
