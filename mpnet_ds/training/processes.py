"""Starting and ending the ranks of a run, under deepspeed, torchrun or no launcher.

Nothing compiles: on CPU DeepSpeed would build a C++ shared-memory op at start (which takes minutes, needs a compiler and,
if a build was killed, waits for ever on its lock file). It is switched off; ranks then talk through gloo.
"""

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from mpnet_ds.errors import UserError
from mpnet_ds.quiet import quiet_libraries


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

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


def world_size() -> int:
    """Number of ranks, before they are connected."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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


def start() -> Ranks:
    """Connects the ranks. Without a launcher this process is the only one."""
    quiet_libraries()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"):
            if int(os.environ.get(name, "1")) > 1:
                raise UserError(f"{name} is {os.environ[name]}, but RANK is not set: start with deepspeed or torchrun.")
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        os.environ.update(alone)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    accelerator = get_accelerator()
    accelerator.set_device(local_rank)
    try:
        deepspeed.init_distributed(verbose=False)
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise UserError(
            f"port {port} is in use, by another run perhaps: give this one another, deepspeed --master_port N."
        ) from None
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Ranks(rank, local_rank, size, torch.device(accelerator.device_name(local_rank)))


def wait_for_each_other(seconds: float) -> None:
    """Lets collectives wait for slow ranks at least so long: by default a save that takes 10 minutes would end a run.

    Whether a rank hangs is for the watchdog to say, which must come first.
    """
    timeout = timedelta(seconds=seconds)
    c10d = torch.distributed.distributed_c10d
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timeout  # for groups that DeepSpeed makes later
    c10d._set_pg_timeout(timeout)


def stop() -> None:
    """Disconnects; without it ZeRO 3 on CPU may abort at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
