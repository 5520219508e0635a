"""Keeps what libraries say to what a user can act on. Call it before the first import of DeepSpeed."""

import logging
import os
import warnings

import torch


def quiet_libraries() -> None:
    """Leaves DeepSpeed's and TensorBoard's real warnings, and tells DeepSpeed where there is no accelerator."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # About how DeepSpeed calls torch: a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    # Updates that are left out are reported with their samples by training/trainer.py.
    logger.addFilter(lambda record: "OVERFLOW!" not in record.getMessage())
