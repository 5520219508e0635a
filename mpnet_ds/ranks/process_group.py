"""The process group of a run: connecting its ranks and leaving them, under any launcher of launchers.py or none."""

import faulthandler
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed

from mpnet_ds.deepspeed_workarounds import build_no_shared_memory_op, set_collective_timeout
from mpnet_ds.errors import UserError
from mpnet_ds.machine import Capacity, capacity_of
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.ranks import rendezvous
from mpnet_ds.ranks.host_memory import keep_freed_memory
from mpnet_ds.ranks.launchers import AGENT_STORE, JOIN_TIMEOUT, Placement, find_placement
from mpnet_ds.ranks.network import find_interface
from mpnet_ds.ranks.siblings import Siblings

LEAVE_TIMEOUT = 120.0
"""Seconds for which ranks wait for each other at the end of a run."""


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run, and what they do together."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    hosts: tuple[str, ...]
    """Name of each rank's host."""
    siblings: Siblings = field(default_factory=Siblings, kw_only=True, compare=False)

    @property
    def host(self) -> str:
        """This rank's host."""
        return self.hosts[self.rank]

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which reports and writes files."""
        return self.rank == 0

    @property
    def capacity(self) -> Capacity:
        """Memory of this rank."""
        return capacity_of(self.device)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum ``values`` over all ranks, in place; every rank must call it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def say(self, text: str) -> None:
        """Print on rank 0."""
        if self.is_main:
            print(text, flush=True)

    def complain(self, text: str) -> None:
        """Print an error on rank 0."""
        if self.is_main:
            print(f"error: {text}", file=sys.stderr, flush=True)

    def gather(self, value: Any) -> list:
        """Return the values of all ranks, in their order, on every rank; they are sent pickled."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], Any]):
        """Call ``function`` on rank 0; return its result, or raise its ``Exception``, on every rank."""
        box = [attempt(function) if self.is_main else None]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(box, src=0)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]


def attempt(function: Callable[[], Any]):
    """Return what a function returns, or its ``Exception``, whatever it is: the other ranks wait for an answer."""
    try:
        return function()
    except Exception as error:
        return error


def place() -> Placement:
    """Find this process among the ranks, before they are connected, and set the variables that torch and DeepSpeed read.

    DeepSpeed's launcher sets the number of ranks on a host in LOCAL_SIZE, torch's in LOCAL_WORLD_SIZE: here both are set.
    """
    placement = find_placement(os.environ)
    os.environ.update(placement.environment())
    return placement


def ancestors() -> Iterator[psutil.Process]:
    """Parent processes, nearest first, as far as they exist: any may end while it is asked for its own parent."""
    process: psutil.Process | None = psutil.Process()
    with suppress(psutil.Error):
        while (process := process.parent()) is not None:
            yield process


def supported_precisions() -> set[str]:
    """Return those of ``fp32``, ``bf16``, ``fp16`` that the device supports, and ``fast-bf16`` where bf16 is a gain."""
    quiet_libraries()
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    supported = {"fp32"}
    if accelerator.is_bf16_supported():
        supported.add("bf16")
        # Before compute capability 8.0 torch emulates bf16 in fp32: it works, and gains nothing.
        if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
            supported.add("fast-bf16")
    if accelerator.is_fp16_supported():
        supported.add("fp16")
    return supported


def start(join_timeout: float = JOIN_TIMEOUT) -> Ranks:
    """Connect the ranks; wait up to ``join_timeout`` seconds for all of them."""
    placement = place()
    quiet_libraries()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    build_no_shared_memory_op()
    if placement.world_size > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        # By default gloo takes the address of the host's name, which often is 127.0.1.1.
        os.environ["GLOO_SOCKET_IFNAME"] = find_interface(placement.address, placement.has_other_hosts).name
    store, hosts = rendezvous.join(placement, join_timeout)
    os.environ[AGENT_STORE] = "False"  # the store is rank 0's
    accelerator = get_accelerator()
    accelerator.set_device(placement.local_rank)
    with connecting():
        deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=join_timeout))
    _stores.append(store)
    device = torch.device(accelerator.device_name(placement.local_rank))
    if device.type == "cpu":
        keep_freed_memory()
    ranks = Ranks(placement.rank, placement.local_rank, placement.world_size, device, hosts)
    if ranks.world_size > 1:
        faulthandler.enable(sys.__stderr__)
        ranks.siblings.meet(ranks.rank, hosts, ranks.gather)
        _siblings.append(ranks.siblings)
    return ranks


_stores: list = []  # rank 0's store ends with its object
_siblings: list[Siblings] = []


@contextmanager
def connecting() -> Iterator[None]:
    """Turn the failure of a block that connects ranks with each other into a ``UserError``."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "chosen by gloo")
        raise UserError(
            f"{socket.gethostname()} cannot reach the other ranks ({reason}). Its network interface is {interface}: if that "
            "is the wrong one, set GLOO_SOCKET_IFNAME to the right one; check_cluster tests all links."
        ) from error


def wait_for_each_other(seconds: float) -> None:
    """Set the timeout of all collectives: by default a save that takes 10 minutes would end a run.

    It is for the watchdog to say that a rank hangs, so this must be longer than its timeouts.
    """
    set_collective_timeout(seconds)


def leave_together(ranks: Ranks) -> None:
    """Wait until all ranks are done, for ``LEAVE_TIMEOUT`` seconds at most; not after a fault: others may never be done."""
    if ranks.world_size > 1:
        rendezvous.leave_together(_stores[-1], ranks.rank, ranks.world_size, LEAVE_TIMEOUT)


def stop() -> None:
    """Disconnect; without it ZeRO 3 on CPU may abort at exit."""
    for siblings in _siblings:
        siblings.leave()
    _siblings.clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _stores.clear()
