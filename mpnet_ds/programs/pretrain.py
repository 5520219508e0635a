"""Pre-train an encoder. Under DeepSpeed's launcher: ``deepspeed --module mpnet_ds.training.pretrain ARGUMENTS``."""

import gc
import os

from mpnet_ds import start_up
from mpnet_ds.machine import Usage
from mpnet_ds.quiet import quiet_libraries

__all__ = ["build_parser", "main"]


def build_parser():
    """Build the parser of the command line."""
    from mpnet_ds.config import arguments  # here: it takes part of a second, and main() speaks before that

    return arguments.build_parser()


def main() -> int:
    """Train; returns the exit code."""
    start_up.begin("starting: reading the command line")
    before = Usage.now()
    gc.disable()  # scanning what libraries create while they are loaded takes a tenth of the time, and finds nothing
    try:
        arguments, mistakes = build_parser().examine()
        # Before torch is loaded: warnings of its C++ parts, of names that cannot be looked up for example, help nobody.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        start_up.enter("loading PyTorch")
        quiet_libraries()
        start_up.enter("loading DeepSpeed and the trainer")
        import deepspeed  # noqa: F401

        from mpnet_ds.training.pretrain import pretrain

        gc.freeze()
    finally:
        gc.enable()
    return pretrain(arguments, mistakes, before)
