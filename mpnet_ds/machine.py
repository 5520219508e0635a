"""The machine: cores, memory, folders, and sizes in readable form."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

GIB = 2**30


def usable_cores() -> frozenset[int]:
    """Return the numbers of the CPU cores on which this process may run."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def available_cores() -> int:
    """Count the CPU cores that this process may use at a time."""
    return limited_cores(len(usable_cores()))


def limited_cores(cores: int, control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """``cores``, or fewer where a container's ``cpu.max`` (or version 1's quota) grants less; at least 1."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError):
            quota, period = " ".join((control_group / name).read_text() for name in names).split()
            return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() else cores
    return cores


class Usage(NamedTuple):
    """What was used until some moment, in seconds."""

    clock: float
    """Of the clock."""
    own: float
    """Of cores, by this process."""
    cores: tuple[float, ...]
    """Of each core, by all processes."""

    @classmethod
    def now(cls) -> "Usage":
        """Return what was used until now."""
        import psutil

        cores = (sum(times) - times.idle - getattr(times, "iowait", 0.0) for times in psutil.cpu_times(percpu=True))
        return cls(time.monotonic(), time.process_time(), tuple(cores))


@dataclass(frozen=True)
class Capacity:
    """Memory of a rank."""

    device: int
    """Bytes."""
    host: int | None
    """Bytes of host memory for each rank of the machine; None if unknown."""
    is_same: bool
    """Whether the device is the CPU, so that both are the same memory."""


def capacity_of(device: "torch.device") -> Capacity:
    """Query the device and the machine, and the limit of this process's control group."""
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
    """Format a size as ``1.50 GiB`` or ``23 MiB``."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.{2 if size < 10 * unit else 1}f} {name}"
    return f"{size / 1024:.1f} KiB"


def percent(part: int, whole: int) -> str:
    """Format a share as ``12.3 %`` or ``0.0451 %``."""
    return f"{100 * part / max(whole, 1):.3g} %"


def nearest_existing_folder(path: Path) -> Path:
    """Return the path, or the nearest parent of it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
