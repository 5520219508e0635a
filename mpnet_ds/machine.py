"""The machine under a process: cores, memory, folders; numbers for a person."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 2**30


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Capacity:
    """Memory that a rank has."""

    device: int
    """Bytes."""
    host: int
    """Bytes of the machine's memory, divided by its ranks."""
    is_same: bool
    """The device is the host's processor."""


def capacity_of(device: "torch.device") -> Capacity:
    """Asks the device and the machine, and the control group that this process may be confined to."""
    import psutil

    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    limits = [psutil.virtual_memory().total]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    host = min(limits) // ranks_here
    if device.type == "cpu":
        return Capacity(host, host, is_same=True)
    from deepspeed.accelerator import get_accelerator

    return Capacity(get_accelerator().total_memory(device.index), host, is_same=False)


def show_bytes(size: int) -> str:
    """``1.50 GiB``, ``23 MiB``."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.{2 if size < 10 * unit else 1}f} {name}"
    return f"{size / 1024:.1f} KiB"


def nearest_existing_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(parent for parent in (path, *path.parents) if parent.exists())
