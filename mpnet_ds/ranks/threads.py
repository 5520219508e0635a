"""How many threads a rank computes with on CPU: as many as there are free cores, shared among the ranks of its host.

PyTorch takes one thread for each core. Threads wait for each other after each operation: where other programs, or other
ranks, run on some of these cores, the wait is longer than the work, up to 30 times. OMP_NUM_THREADS, the user's or the
launcher's, is left alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from mpnet_ds.machine import Usage, limited_cores, usable_cores
from mpnet_ds.ranks.process_group import Ranks

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LEAST_SECONDS = 0.5  # of an observation that counts
TOLERATED = 0.25  # of a core that others may use before it counts as theirs


class Cores(NamedTuple):
    """What a rank knows about the cores of its host."""

    usable: frozenset[int]
    """Numbers of those on which it may run."""
    granted: int
    """Cores that its control group grants to all of its processes."""
    own: float = 0.0
    """Cores that it has used itself of late."""
    used: tuple[float, ...] = ()
    """What was used of each core of the host, by anybody; empty if that was not observed."""


def observe(since: Usage | None) -> Cores:
    """Look at the cores, and at their use since a moment."""
    usable, now = usable_cores(), Usage.now()
    if since is None or (seconds := now.clock - since.clock) < LEAST_SECONDS or len(now.cores) != len(since.cores):
        return Cores(usable, limited_cores(len(usable)))
    used = tuple((after - before) / seconds for before, after in zip(since.cores, now.cores, strict=True))
    return Cores(usable, limited_cores(len(usable)), (now.own - since.own) / seconds, used)


def share(mine: Cores, here: Sequence[Cores]) -> tuple[float, float]:
    """Return the free cores for a rank, and how many of its cores others use; ``here``: all ranks of its host."""
    sharing = {core: sum(core in other.usable for other in here) for core in mine.usable}
    total = sum(1 / count for count in sharing.values())
    ranks = [other.own / len(other.usable) for other in here for core in other.usable & mine.usable]
    used = sum(mine.used[core] for core in mine.usable if core < len(mine.used))
    others = max(0.0, used - sum(ranks)) if mine.used else 0.0
    free = total * (1 - min(others / len(mine.usable), 1))
    granted = mine.granted / max(sharing.values()) if mine.granted < len(mine.usable) else free
    return min(free, granted), others


def choose_threads(ranks: Ranks, since: Usage | None, environment: Mapping[str, str]) -> str:
    """Set the threads of PyTorch on this rank; return a sentence on it. Every rank must call it."""
    known = ranks.gather(observe(since))
    if named := next((name for name in VARIABLES if environment.get(name)), None):
        return f"Threads: {torch.get_num_threads()} for each rank ({named})"
    here = [cores for cores, host in zip(known, ranks.hosts, strict=True) if host == ranks.host]
    free, others = share(known[ranks.rank], here)
    torch.set_num_threads(max(1, int(free + TOLERATED)))
    why = f"{len(known[ranks.rank].usable)} cores, {len(here)} rank(s)"
    why += f", other programs use {others:.1f} cores" if others >= 0.1 else ""
    return f"Threads: {torch.get_num_threads()} for each rank ({why}; OMP_NUM_THREADS sets another number)"
