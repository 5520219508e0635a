"""Before the ranks connect: is everybody there, and if not, who is missing?

All ranks write their host's name on the store of rank 0 (a TCPStore, which torch's own rendezvous then uses too). Rank 0
waits for them, says now and then for whom, and in the end tells everyone whether the run can start. Without this, a host
that never comes would let the others wait for half an hour and end with "1/2 clients joined".

In the end they meet there once more, so that none leaves before all are done (``leave_together``).
"""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import psutil

from mpnet_ds.errors import UserError
from mpnet_ds.ranks.launchers import Placement, hosts_of_command, name_ranks

FIRST_NEWS, MORE_NEWS = 15.0, 60.0  # seconds
TIME_TO_READ = 10.0  # seconds in which a rank that is there should have read whether others are
_ROLL, _END, _COUNT, _RESULT, _READ = "roll", "end", "count", "result", "read"


def call_roll(placement: Placement, timeout: float):
    """Waits until all ranks are there; returns the store (keep it: rank 0's lives in it) and the host of each rank.

    ``MASTER_PORT`` is the store's afterwards: a rank that is alone has one only now, when nobody can take it any more.

    Args:
        timeout: seconds after which those that are missing are named, in a ``UserError`` on every rank that is there.
    """
    host = socket.gethostname()
    try:
        server = _open(placement, timeout)
    except Exception as error:
        raise _unreachable(placement, host, error) from None
    os.environ["MASTER_PORT"] = str(server.port)
    store = with_prefix(server, _ROLL)
    mine = f"{host} (process {os.getpid()})"
    before = store.compare_set(str(placement.rank), "", mine).decode()
    if before != mine:
        text = f"rank {placement.rank} is on {before} already, and now on {mine} as well: another run meets at"
        raise UserError(f"{text} {_meeting_point(placement)}. Give this one another port (--master_port N).")
    store.add(_COUNT, 1)
    if placement.rank == 0:
        store.set(_RESULT, json.dumps(_collect(store, placement, timeout)))
    try:
        store.wait([_RESULT], timedelta(seconds=timeout + 30))
        result = json.loads(store.get(_RESULT))
    except Exception as error:
        raise _unreachable(placement, host, error) from None
    if "missing" in result:
        store.add(_READ, 1)
        if placement.rank == 0:  # whose end is the store's
            _wait_until_read(store, result["present"])
        raise UserError(result["missing"])
    return server, tuple(result["hosts"])


def leave_together(server, rank: int, world_size: int, timeout: float) -> None:
    """Waits until all ranks have come to their end; those that have waited for ``timeout`` seconds leave without the others.

    A launcher ends all ranks as soon as one leaves with a code that is not 0, and the store ends with rank 0. A rank that
    has failed does not come here: it is the one to say so, and no reason for this one to fail.
    """
    meet = threading.Thread(target=_meet_in_the_end, args=(server, rank, world_size, timeout), daemon=True)
    meet.start()
    meet.join(timeout + 2 * TIME_TO_READ)  # a store whose host is stopped or dead may never answer


def connect(timeout: float):
    """A connection of its own to the store at which the ranks met; for threads that must not wait for each other."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def with_prefix(store, name: str):
    """The part of a store that belongs to ``name`` in this attempt: torchrun's store outlives its ranks."""
    from torch.distributed import PrefixStore

    return PrefixStore(f"{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _open(placement: Placement, timeout: float):
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return connect(timeout)
    from torch.distributed import TCPStore

    return TCPStore(
        placement.address,
        placement.port,
        is_master=placement.rank == 0,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        multi_tenant=True,  # torch's rendezvous makes another, on the same port
    )


def _collect(store, placement: Placement, timeout: float) -> dict:
    """Who is where, when all have come, or who is missing."""
    hosts = _launched_hosts()
    begin, news, size = time.monotonic(), FIRST_NEWS, placement.world_size
    while (present := store.add(_COUNT, 0)) < size:
        passed = time.monotonic() - begin
        if passed > min(timeout, news):  # asking rank by rank is slow
            who = name_ranks([rank for rank in range(size) if not store.check([str(rank)])], hosts)
        if passed > timeout:
            count = f"{present} of {size} ranks are there"
            text = (
                f"after {timeout:g} s (--join_timeout) {count}; missing: {who}. "
                f"Rank 0 waits at {_meeting_point(placement)}. "
                "Look for their errors above; tools/check_cluster.py tells what is wrong."
            )
            return {"missing": text, "present": present}
        if passed > news:
            print(f"Waiting for {who}, {timeout - passed:.0f} s more at most.", file=sys.stderr, flush=True)
            news = passed + MORE_NEWS
        time.sleep(0.05 if passed < 5 else 0.5)
    values = store.multi_get([str(rank) for rank in range(size)])
    return {"hosts": [value.decode().partition(" (process")[0] for value in values]}


def _meet_in_the_end(server, rank: int, world_size: int, timeout: float) -> None:
    store = with_prefix(server, _END)
    with suppress(RuntimeError):  # rank 0 has gone, or not all have come
        meeting, place = divmod(store.add(_COUNT, 1) - 1, world_size)  # processes may make several runs
        all_are_here = f"{_RESULT} {meeting}"
        if place == world_size - 1:
            store.set(all_are_here, "")
        store.wait([all_are_here], timedelta(seconds=timeout))
        store.add(_READ, 1)
        if rank == 0:  # whose end is the store's
            _wait_until_read(store, (meeting + 1) * world_size)


def _wait_until_read(store, readers: int) -> None:
    deadline = time.monotonic() + TIME_TO_READ
    while store.add(_READ, 0) < readers and time.monotonic() < deadline:
        time.sleep(0.05)


def _launched_hosts() -> list[str]:
    """Host of each rank as DeepSpeed's launcher has it, which is this process's parent; else nothing."""
    try:
        return hosts_of_command(psutil.Process().parent().cmdline())
    except (psutil.Error, AttributeError, ValueError):
        return []


def _unreachable(placement: Placement, host: str, error: Exception) -> UserError:
    if "EADDRINUSE" in str(error):
        return UserError(
            f"port {placement.port} is in use on {host}, by another run perhaps: "
            "give this one another, deepspeed --master_port N."
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"rank {placement.rank} on {host} cannot reach rank 0 at {_meeting_point(placement)} ({reason}): "
        "tools/check_cluster.py tells why."
    )


def _meeting_point(placement: Placement) -> str:
    return f"{placement.address}, port {placement.port}"
