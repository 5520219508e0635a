"""Limiting the output of libraries to what a user can act on. Call it before the first import of DeepSpeed."""

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ANSWERED = (
    "OVERFLOW!",  # training/trainer.py reports skipped steps with their samples
    "untested optimizer",  # every optimizer that is served is tested with ZeRO: tests/training/test_served.py
)
"""Parts of DeepSpeed's warnings that are not shown."""


def quiet_libraries() -> None:
    """Silence all but real warnings of DeepSpeed and TensorBoard, and tell DeepSpeed if there is no accelerator."""
    import torch  # here: stderr_without does not need it

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # About how DeepSpeed calls torch: a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: not any(text in record.getMessage() for text in _ANSWERED))


@contextmanager
def stderr_without(pattern: str) -> Iterator[None]:
    """Filter lines that match ``pattern`` at their start from standard error, including output of C++ code.

    The other lines appear when the block ends.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            kept.seek(0)
            for line in kept:
                if not re.match(pattern.encode(), line):
                    with suppress(OSError):  # the reader may be gone
                        os.write(2, line)
