"""Bandwidth of collectives between hosts, through torch.distributed as training uses it: gloo, or nccl between GPUs.

Sizes and bandwidths are those of nccl-tests. The size of an all-reduce is that of each rank's tensor, of an all-gather that
of the joined one. The bus bandwidth is what each link carries, to be compared with its speed: of n ranks, size / time times
2 (n-1)/n for an all-reduce and times (n-1)/n for an all-gather.
"""

import os
import re
import statistics
import time
from datetime import timedelta
from typing import NamedTuple

SIZES = (1 << 20, 1 << 24, 1 << 27)  # bytes
COLLECTIVES = ("all_reduce", "all_gather")
ROUNDS = 5
SECONDS_TOO_LONG = 4.0  # for one round, by what the size before took: larger sizes are left out


class Row(NamedTuple):
    """One collective at one size (bytes): the median of the rounds, each as long (seconds) as on the slowest rank."""

    collective: str
    size: int
    ranks: int
    seconds: float

    @property
    def bus_bandwidth(self) -> float:
        """Bytes per second."""
        factor = 2 if self.collective == "all_reduce" else 1
        return self.size / self.seconds * factor * (self.ranks - 1) / self.ranks


def measure(variables: dict[str, str], backend: str, sizes: list[int], seconds: float) -> dict:
    """Runs one rank, with the ``variables`` that torch reads; a single collective may take so many ``seconds``.

    Returns ``rows``, the same on all ranks, also those before a ``problem``, which is empty if all went well.
    """
    os.environ.update(variables)
    rows: list[Row] = []
    try:
        import torch
        import torch.distributed as dist

        device = torch.device("cpu")
        if backend == "nccl":
            device = torch.device("cuda", int(variables["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
        for size in sizes:
            if rows and max(row.seconds for row in rows[-2:]) * size / rows[-1].size > SECONDS_TOO_LONG:
                break  # on all ranks, as their rows are the same
            for collective in COLLECTIVES:
                rows.append(_measure(collective, size, device))
        dist.barrier()
    except Exception as error:
        where = r"\[(rank\d+|/[^]]*)\]:? ?"  # the rank, and the place in torch's sources, before what torch says
        text = f"rank {variables['RANK']} failed: {type(error).__name__}: {re.sub(where, '', str(error))[:300]}"
        return {"rows": rows, "problem": text}
    return {"rows": rows, "problem": ""}


def _measure(collective: str, size: int, device) -> Row:
    import torch
    import torch.distributed as dist

    ranks = dist.get_world_size()
    share = torch.zeros(size // ranks // 4, device=device)  # fp32
    whole = torch.zeros(len(share) * ranks, device=device)

    def seconds_taken() -> float:
        dist.barrier()  # all ranks begin together
        begin = time.perf_counter()
        dist.all_reduce(whole) if collective == "all_reduce" else dist.all_gather_into_tensor(whole, share)
        float(whole[0])  # waits for a GPU
        return time.perf_counter() - begin

    seconds_taken()  # opens connections
    times = torch.tensor([seconds_taken() for _ in range(ROUNDS)], dtype=torch.float64, device=device)
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return Row(collective, whole.numel() * 4, ranks, statistics.median(times.tolist()))
