"""Pre-train an encoder. Under DeepSpeed's launcher: ``deepspeed --module mpnet_ds.training.pretrain ARGUMENTS``."""

import os

from mpnet_ds import start_up

__all__ = ["build_parser", "main"]


def build_parser():
    """Build the parser of the command line."""
    from mpnet_ds.config import arguments  # here: it takes part of a second, and main() speaks before that

    return arguments.build_parser()


def main() -> int:
    """Train; returns the exit code."""
    start_up.begin("starting: reading the command line")
    arguments = build_parser().parse_args()
    # Before torch is loaded: warnings of its C++ parts, of names that cannot be looked up for example, help nobody.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    start_up.enter("loading PyTorch")
    import torch  # noqa: F401

    start_up.enter("loading the trainer")
    from mpnet_ds.training.pretrain import pretrain

    return pretrain(arguments)
