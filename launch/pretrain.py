"""Pre-trains an encoder: deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data DIR"""

import os

from mpnet_ds.command_line import run

# Before torch is loaded: warnings of its C++ parts, of names that cannot be looked up for example, help nobody.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> int:
    from mpnet_ds.config.arguments import build_parser

    arguments = build_parser().parse_args()
    from mpnet_ds.training.pretrain import pretrain  # after parsing: --help need not wait for torch

    return pretrain(arguments)


if __name__ == "__main__":
    run(main)
