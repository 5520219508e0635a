"""Rendezvous of all ranks before they connect, which names those that do not come, and their meeting at the end.

Each rank writes its host's name to the store of rank 0 (a TCPStore, which torch's own rendezvous then uses too). Rank 0
waits for all, reports now and then who is missing, and tells all ranks whether the run can start. Without this, a host
that never comes would leave the others waiting for half an hour, with "1/2 clients joined" at its end.

torchrun's agents have a store, which outlives ranks that are started again, with all that these have written to it; and
each agent counts the restarts of its own ranks only. So rank 0 makes a new store then too, and the agents' only serves to
ask it where that is: each rank that asks has a number that no other one ever gets.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

from mpnet_ds.errors import AgreedError, UserError
from mpnet_ds.last_word import leave_in_order
from mpnet_ds.ranks.launchers import Placement, launched_hosts, name_ranks
from mpnet_ds.ranks.network import address_here

FIRST_NEWS, MORE_NEWS = 15.0, 60.0  # seconds
TIME_TO_READ = 10.0  # seconds in which a rank that is there should have read what rank 0 has posted
_COUNT, _RESULT, _READ, _ANSWER = "count", "result", "read", "answer"


def join(placement: Placement, timeout: float):
    """Wait until all ranks are here; return the store (keep it: rank 0's ends with the object) and the host of each rank.

    ``MASTER_ADDR`` and ``MASTER_PORT`` are the store's afterwards: a rank that is alone gets a port only now, when nobody
    can take it any more.

    Args:
        timeout: seconds after which the missing ranks are named, in an ``AgreedError`` on every rank that is here.
    """
    agents = None
    with _naming_rank_0(placement):
        if placement.has_agent_store:
            agents = with_prefix(_connect(placement.address, placement.port, timeout), "mpnet_ds")
            placement = _find_store(agents, placement, timeout)
        server = _open(placement, timeout)
    placement = replace(placement, port=server.port)
    os.environ |= {"MASTER_ADDR": placement.address, "MASTER_PORT": str(placement.port)}
    store = with_prefix(server, "rendezvous")
    mine = f"{socket.gethostname()} (process {os.getpid()})"
    before = store.compare_set(str(placement.rank), "", mine).decode()
    if before != mine:
        text = f"rank {placement.rank} is on {before} already, and now on {mine} too: another run uses"
        raise UserError(f"{text} {_meeting_point(placement)}. Give this one another port (--master_port N).")
    store.add(_COUNT, 1)
    if placement.rank == 0:
        store.set(_RESULT, json.dumps(_wait_for_all(store, placement, timeout, agents)))
    with _naming_rank_0(placement):
        store.wait([_RESULT], timedelta(seconds=timeout + 30))
        result = json.loads(store.get(_RESULT))
    if "missing" in result:
        _leave(store, placement.rank, result["present"])
        raise AgreedError(result["missing"])
    return server, tuple(result["hosts"])


def leave_together(server, rank: int, world_size: int, timeout: float) -> None:
    """Wait until all ranks are done, for ``timeout`` seconds at most; the store, which ends with rank 0, lasts until then.

    A rank that has failed does not come: it says so itself, which is not a reason for this one to fail.
    """
    meet = threading.Thread(target=_meet, args=(server, rank, world_size, timeout), daemon=True)
    meet.start()
    meet.join(timeout + 2 * TIME_TO_READ)  # a store whose host is stopped or dead may never answer


def connect(timeout: float):
    """Open a connection of its own to the store; for threads that must not wait for each other."""
    return _connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout)


def _connect(address: str, port: int, timeout: float):
    from torch.distributed import TCPStore

    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def with_prefix(store, name: str):
    """Return the keys of ``store`` that belong to ``name``."""
    from torch.distributed import PrefixStore

    return PrefixStore(name, store)


def _find_store(agents, placement: Placement, timeout: float) -> Placement:
    """Ask rank 0 at the agents' store where its own is; rank 0 itself makes it at any free port of its host."""
    if placement.rank == 0:
        return replace(placement, address=address_here(placement.address), port=0)
    answer = f"{_ANSWER} {agents.add(_COUNT, 1)}"
    agents.wait([answer], timedelta(seconds=timeout))
    address, port = json.loads(agents.get(answer))
    return replace(placement, address=address, port=port)


def _answer(agents, placement: Placement, answered: int) -> int:
    """Answer all ranks but the first ``answered`` that have asked, also those of earlier attempts; return their number."""
    asked = agents.add(_COUNT, 0)
    for number in range(answered, asked):
        agents.set(f"{_ANSWER} {number + 1}", json.dumps([placement.address, placement.port]))
    return asked


def _open(placement: Placement, timeout: float):
    from torch.distributed import TCPStore

    # torch's rendezvous makes another one, on the same port: hence multi_tenant.
    settings = {"is_master": placement.rank == 0, "wait_for_workers": False, "multi_tenant": True}
    return TCPStore(placement.address, placement.port, timeout=timedelta(seconds=timeout), **settings)


def _wait_for_all(store, placement: Placement, timeout: float, agents=None) -> dict:
    """Return the hosts once all ranks are here, or who is missing; answer those that ask at the agents' store."""
    hosts = launched_hosts()
    begin, news, size, answered = time.monotonic(), FIRST_NEWS, placement.world_size, 0
    while (present := store.add(_COUNT, 0)) < size:
        answered = _answer(agents, placement, answered) if agents else 0
        passed = time.monotonic() - begin
        if passed > min(timeout, news):  # asking rank by rank is slow
            who = name_ranks([rank for rank in range(size) if not store.check([str(rank)])], hosts)
        if passed > timeout:
            text = (
                f"{present} of {size} ranks are here after {timeout:g} s (--join_timeout); missing: {who}. Rank 0 waits at "
                f"{_meeting_point(placement)}. Look for errors of the missing ranks above, or run check_cluster."
            )
            return {"missing": text, "present": present}
        if passed > news:
            print(f"Waiting for {who}, up to {timeout - passed:.0f} s more.", file=sys.stderr, flush=True)
            news = passed + MORE_NEWS
        time.sleep(0.05 if passed < 5 else 0.5)
    values = store.multi_get([str(rank) for rank in range(size)])
    return {"hosts": [value.decode().partition(" (process")[0] for value in values]}


def _meet(server, rank: int, world_size: int, timeout: float) -> None:
    store = with_prefix(server, "end")
    with suppress(RuntimeError):  # rank 0 is gone, or not all have come
        meeting, position = divmod(store.add(_COUNT, 1) - 1, world_size)  # a process may make several runs
        all_are_here = f"{_RESULT} {meeting}"
        if position == world_size - 1:
            store.set(all_are_here, "")
        store.wait([all_are_here], timedelta(seconds=timeout))
        _leave(store, rank, (meeting + 1) * world_size)


def _leave(store, rank: int, readers: int) -> None:
    """Count this rank among those that have read what was posted; rank 0 waits for all of them."""
    store.add(_READ, 1)

    def all_have_read(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while store.add(_READ, 0) < readers and time.monotonic() < deadline:
            time.sleep(0.05)

    leave_in_order(rank == 0, TIME_TO_READ, spoken=None, heard=all_have_read)


@contextmanager
def _naming_rank_0(placement: Placement) -> Iterator[None]:
    """Turn a failure of the store into a ``UserError`` that tells where it should be."""
    host = socket.gethostname()
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        text = f"rank {placement.rank} on {host} cannot reach rank 0 at {_meeting_point(placement)} ({reason})"
        cure = "run check_cluster to find out why"
        if "EADDRINUSE" in str(error):
            text, cure = (
                f"port {placement.port} is in use on {host}",
                "give this run another one (--master_port N)",
            )
        raise UserError(f"{text}: {cure}.") from None


def _meeting_point(placement: Placement) -> str:
    return f"{placement.address}, port {placement.port}"
