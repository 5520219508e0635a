"""Starting and ending the ranks of a run, under any launcher of launchers.py or none.

Nothing compiles: on CPU DeepSpeed would build a C++ shared-memory op at start (which takes minutes, needs a compiler and,
if a build was killed, waits for ever on its lock file). It is switched off; ranks then talk through gloo.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed

from mpnet_ds.deepspeed_workarounds import build_no_shared_memory_op, set_collective_timeout
from mpnet_ds.errors import UserError
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.ranks import rendezvous
from mpnet_ds.ranks.host_memory import keep_freed_memory
from mpnet_ds.ranks.launchers import JOIN_TIMEOUT, Placement, find_placement
from mpnet_ds.ranks.network import find_interface

LEAVE_TIMEOUT = 120.0
"""Seconds that ranks wait for each other when they are done with a run."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    hosts: tuple[str, ...]
    """Name of each rank's host."""

    @property
    def host(self) -> str:
        """Name of this rank's host."""
        return self.hosts[self.rank]

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which speaks and writes."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place; every rank must call it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def say(self, text: str) -> None:
        """Prints on rank 0."""
        if self.is_main:
            print(text, flush=True)

    def complain(self, text: str) -> None:
        """Prints an error on rank 0."""
        if self.is_main:
            print(f"error: {text}", file=sys.stderr, flush=True)

    def gather(self, value: Any) -> list:
        """The values of all ranks, in their order, on every rank; they travel pickled."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], Any]):
        """What ``function`` returns on rank 0, on every rank; an ``Exception`` that it raises is raised on every rank."""
        outcome = None
        if self.is_main:
            try:
                outcome = function()
            except Exception as error:  # whatever it is: the other ranks wait for an answer
                outcome = error
        box = [outcome]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(box, src=0)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]


def place() -> Placement:
    """This process among the ranks, before they are connected; torch and DeepSpeed find it in the environment then.

    DeepSpeed's launcher leaves the number of ranks on a host in LOCAL_SIZE, torch's in LOCAL_WORLD_SIZE: both are set.
    """
    placement = find_placement(os.environ)
    os.environ.update(placement.environment())
    return placement


def ancestors() -> Iterator[psutil.Process]:
    """The processes above this one, nearest first, as far as they are there: any may end while it is asked for its own."""
    process: psutil.Process | None = psutil.Process()
    with suppress(psutil.Error):
        while (process := process.parent()) is not None:
            yield process


def supported_precisions() -> set[str]:
    """``fp32``, ``bf16``, ``fp16`` as far as this process's device has them, and ``fast-bf16`` where bf16 is worth it."""
    quiet_libraries()
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    supported = {"fp32"}
    if accelerator.is_bf16_supported():
        supported.add("bf16")
        # Before compute capability 8.0 torch emulates bf16 in fp32: it works, and is no gain.
        if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
            supported.add("fast-bf16")
    if accelerator.is_fp16_supported():
        supported.add("fp16")
    return supported


def start(join_timeout: float = JOIN_TIMEOUT) -> Ranks:
    """Connects the ranks; waits ``join_timeout`` seconds at most for all of them."""
    placement = place()
    quiet_libraries()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    build_no_shared_memory_op()
    if placement.world_size > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        # Left alone, gloo takes what the host's name stands for, which often is 127.0.1.1.
        os.environ["GLOO_SOCKET_IFNAME"] = find_interface(placement.address, placement.has_other_hosts).name
    store, hosts = rendezvous.call_roll(placement, join_timeout)
    accelerator = get_accelerator()
    accelerator.set_device(placement.local_rank)
    with connecting():
        deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=join_timeout))
    _stores.append(store)
    device = torch.device(accelerator.device_name(placement.local_rank))
    if device.type == "cpu":
        keep_freed_memory()
    return Ranks(placement.rank, placement.local_rank, placement.world_size, device, hosts)


_stores: list = []  # rank 0's lives as long as it is kept


@contextmanager
def connecting() -> Iterator[None]:
    """Around whatever connects ranks with each other: a failure becomes a ``UserError``."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "chosen by gloo")
        raise UserError(
            f"{socket.gethostname()} cannot reach the other ranks ({reason}). Its network interface is {interface}: if it "
            "is the wrong one, name the right one in GLOO_SOCKET_IFNAME; tools/check_cluster.py tries all links."
        ) from error


def wait_for_each_other(seconds: float) -> None:
    """Lets collectives wait for slow ranks at least so long: by default a save that takes 10 minutes would end a run.

    Whether a rank hangs is for the watchdog to say, which must come first.
    """
    set_collective_timeout(seconds)


def leave_together(ranks: Ranks) -> None:
    """Waits until all ranks are done, for ``LEAVE_TIMEOUT`` seconds at most; not after a fault, as others may never be."""
    if ranks.world_size > 1:
        rendezvous.leave_together(_stores[-1], ranks.rank, ranks.world_size, LEAVE_TIMEOUT)


def stop() -> None:
    """Disconnects; without it ZeRO 3 on CPU may abort at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _stores.clear()
