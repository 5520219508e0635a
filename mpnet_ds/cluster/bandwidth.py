"""Bandwidth of collectives between hosts, through torch.distributed as training uses it.

Between GPUs nccl, one rank for each slot; else gloo, one rank for each host. Sizes and bandwidths are named as nccl-tests
does: the size of an all-reduce is that of each rank's tensor, of an all-gather that of the joined one, and

    algorithm bandwidth   size / time
    bus bandwidth         times 2 (n-1)/n for an all-reduce of n ranks, times (n-1)/n for an all-gather:
                          what each link carries, to be compared with its speed

Each ``Row`` is the median of several rounds, each as long as on the slowest rank. A size that would take too long is left
out. The ranks print rows as they have them, so what was measured before a link broke is known.
"""

import contextlib
import json
import os
import re
import statistics
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta

from mpnet_ds.cluster.children import Child

SIZES = (1 << 20, 1 << 24, 1 << 27)  # bytes
COLLECTIVES = ("all_reduce", "all_gather")
MOST_ROUNDS, LEAST_ROUNDS = 20, 3
SECONDS_FOR_ROW = 1.0  # of measuring; the least number of rounds may take longer
SECONDS_TOO_LONG = 4.0  # for one round


@dataclass(frozen=True)
class Row:
    """One collective at one size."""

    collective: str
    size: int
    """Bytes."""
    ranks: int
    seconds: float
    """Median."""

    @property
    def algorithm_bandwidth(self) -> float:
        """Bytes per second."""
        return self.size / self.seconds

    @property
    def bus_bandwidth(self) -> float:
        """Bytes per second."""
        factor = 2 if self.collective == "all_reduce" else 1
        return self.algorithm_bandwidth * factor * (self.ranks - 1) / self.ranks


def measure_here(
    first_rank: int,
    ranks_here: int,
    world_size: int,
    address: str,
    port: int,
    interface: str,
    backend: str,
    seconds: float,
) -> dict:
    """Starts this host's ranks and waits for them, at most so many ``seconds``.

    Args:
        first_rank: number of the first rank here.
        address: of rank 0, with ``port``.
        interface: network interface for gloo, unless the environment names one.
        backend: ``nccl`` or ``gloo``.
    Returns:
        ``rows`` (dicts of ``Row``, of rank 0 only) and ``problem``, None if all went well.
    """
    variables = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    variables["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME") or interface
    own = [
        Child(
            *("-m", "mpnet_ds.cluster.bandwidth", backend, str(seconds / 4)),
            variables=variables | {"RANK": str(first_rank + local), "LOCAL_RANK": str(local)},
        )
        for local in range(ranks_here)
    ]
    deadline = time.monotonic() + seconds
    rows, problems = [], []
    for number, child in enumerate(own, first_rank):
        ended = child.finish(max(0.1, deadline - time.monotonic()))
        rows += [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
        if ended.was_late:
            problems.append(f"rank {number} was not done after {seconds:.0f} s")
        elif ended.code:
            problems.append(f"rank {number} failed: {_clean(ended.last_line) or f'exit code {ended.code}'}")
    return {"rows": rows, "problem": problems[0] if problems else None}


def _clean(line: str) -> str:
    """An error of torch without the rank, and the place in torch's sources, before it."""
    return re.sub(r"\[(rank\d+|/[^]]*)\]:? ?", "", line)[:300]


def main(backend: str, seconds: float) -> None:
    """One rank: connects to the others and measures; rank 0 prints the rows. One collective may take so many ``seconds``."""
    _leave_with_parent()
    try:
        _measure_all(backend, seconds)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once: an orderly end would wait for the other ranks


def _measure_all(backend: str, seconds: float) -> None:
    import torch
    import torch.distributed as dist

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    rows: dict[str, Row] = {}
    for size in SIZES:
        for collective in COLLECTIVES:
            if not _takes_too_long(size, rows.get(collective)):
                row = rows[collective] = _measure(collective, size, device)
                if rank == 0:
                    print(json.dumps(asdict(row)), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _takes_too_long(size: int, smaller: Row | None) -> bool:
    """Whether a size must be left out, by what a smaller one took; the same on all ranks, as their rows are the same."""
    return smaller is not None and smaller.seconds * size / smaller.size > SECONDS_TOO_LONG


def _measure(collective: str, size: int, device) -> Row:
    import torch
    import torch.distributed as dist

    ranks = dist.get_world_size()
    share = size // ranks // 4  # numbers of fp32
    whole = torch.zeros(size // 4 if collective == "all_reduce" else share * ranks, device=device)
    part = torch.zeros(share, device=device)

    def run() -> None:
        dist.all_reduce(whole) if collective == "all_reduce" else dist.all_gather_into_tensor(whole, part)

    _time(run, device)  # opens connections
    once = _time(run, device)
    rounds = torch.tensor([_rounds(once)], device=device)
    dist.broadcast(rounds, src=0)  # all must make the same number
    times = torch.tensor([_time(run, device) for _ in range(int(rounds))], dtype=torch.float64, device=device)
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return Row(collective, whole.numel() * 4, ranks, statistics.median(times.tolist()))


def _rounds(seconds: float) -> int:
    """How often something is measured that takes so long."""
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(SECONDS_FOR_ROW / max(seconds, 1e-6))))


def _time(run, device) -> float:
    """Seconds that ``run`` takes, begun by all ranks together."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _leave_with_parent() -> None:
    """Ends this process when its standard input does: whoever started it is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
