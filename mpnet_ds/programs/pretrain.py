"""Pre-train an encoder. Under DeepSpeed's launcher: ``deepspeed --module mpnet_ds.training.pretrain ARGUMENTS``."""

import os

from mpnet_ds.config.arguments import build_parser

__all__ = ["build_parser", "main"]


def main() -> int:
    """Train; returns the exit code."""
    arguments = build_parser().parse_args()
    # Before torch is loaded: warnings of its C++ parts, of names that cannot be looked up for example, help nobody.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from mpnet_ds.training.pretrain import pretrain

    return pretrain(arguments)
