"""Ranks that meet before a run and at its end, as threads: all of them, too few, and those of two runs at one port."""

import json
import os
import socket
import threading
import time
from functools import partial

import pytest
import torch.distributed

from mpnet_ds.errors import AgreedError, UserError
from mpnet_ds.ranks import process_group, rendezvous
from mpnet_ds.ranks.launchers import Placement
from mpnet_ds.ranks.rendezvous import connect, join, leave_together
from tests.ranks.threads import at_once
from tests.runs import free_port


@pytest.fixture
def port(monkeypatch) -> int:
    """Where ranks meet; each thread counts as a process of its own."""
    monkeypatch.setattr(os, "getpid", threading.get_native_id)
    found = free_port()
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(found))):
        monkeypatch.setenv(name, value)
    return found


def meet(port: int, world_size: int, ranks: list[int], timeout: float = 20, has_agent_store: bool = False) -> list:
    """What ``join`` gives to each of ``ranks``, in their order; those that have come at all."""
    where = (world_size, world_size, "127.0.0.1", port, has_agent_store)
    placements = [Placement("deepspeed", rank, rank, *where) for rank in ranks]
    return at_once([partial(join, placement, timeout) for placement in placements])


def test_all_learn_where_the_others_are(port):
    for _, hosts in meet(port, 3, [0, 1, 2]):
        assert hosts == (socket.gethostname(),) * 3


def test_ranks_that_are_started_again_meet_at_the_store_of_torchruns_agents_also_if_they_are_more_or_fewer(port):
    agents = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    failed = meet(port, 3, [0, 1], timeout=0.5, has_agent_store=True)
    assert [type(error) for error in failed] == [AgreedError] * 2
    unanswered = meet(port, 2, [1], timeout=0.2, has_agent_store=True)  # of an attempt without rank 0
    assert "cannot reach rank 0" in str(unanswered[0])
    for size in (3, 1, 2):
        stores = [store for store, _ in meet(port, size, list(range(size)), has_agent_store=True)]
        assert {store.port for store in stores} == {stores[0].port} != {agents.port}


def test_ranks_that_do_not_come_are_named_to_all(port):
    for error in meet(port, 4, [0, 2], timeout=0.5):
        assert isinstance(error, AgreedError)
        assert str(error).startswith(
            "2 of 4 ranks are here after 0.5 s (--join_timeout); missing: ranks 1, 3. Rank 0 waits at 127.0.0.1, port "
        )


def test_rank_0_with_whom_the_store_ends_waits_until_the_others_have_read_who_is_missing(port, monkeypatch):
    read = json.loads

    def read_late(text: bytes) -> dict:
        time.sleep(0.5 if threading.get_ident() != rank_0[0] else 0)
        return read(text)

    def wait_for_all(*arguments) -> dict:
        rank_0.append(threading.get_ident())
        return collect(*arguments)

    rank_0, collect = [], rendezvous._wait_for_all
    monkeypatch.setattr(rendezvous, "_wait_for_all", wait_for_all)
    monkeypatch.setattr(rendezvous.json, "loads", read_late)
    assert [type(error) for error in meet(port, 4, [0, 2], timeout=0.5)] == [AgreedError] * 2


def test_who_is_missing_is_reported_while_there_is_still_time(port, monkeypatch, capfd):
    monkeypatch.setattr(rendezvous, "FIRST_NEWS", 0.1)
    meet(port, 2, [0], timeout=0.4)
    assert capfd.readouterr().err == "Waiting for rank 1, up to 0 s more.\n"


def test_where_rank_0_does_not_come_its_address_is_named(port):
    (error,) = meet(port, 2, [1], timeout=0.5)
    assert isinstance(error, UserError)
    assert f"rank 1 on {socket.gethostname()} cannot reach rank 0 at 127.0.0.1, port {port}" in str(error)


def test_two_runs_that_meet_at_one_port_are_told_apart(port):
    first, *both = meet(port, 3, [0, 1, 1], timeout=0.5)
    assert sum(f"another run uses 127.0.0.1, port {port}" in str(error) for error in both) == 1
    assert "missing: rank 2" in str(first)


def test_a_port_that_is_taken_is_named(port):
    with socket.create_server(("", port)):
        (error,) = meet(port, 2, [0], timeout=0.5)
    assert isinstance(error, UserError)
    assert f"port {port} is in use on {socket.gethostname()}" in str(error)


def test_nobody_can_take_the_port_of_a_rank_that_is_alone(monkeypatch):
    """Another process takes the port that the environment named before the rank listened."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with socket.create_server(("", int(process_group.place().environment()["MASTER_PORT"]))):
        store, _ = join(process_group.place(), 5)
    store.set("word", "found")
    torch.distributed.init_process_group("gloo")
    torchs = torch.distributed.distributed_c10d._get_default_store()
    while hasattr(torchs, "underlying_store"):
        torchs = torchs.underlying_store
    assert [torchs.check(["word"]), connect(5).check(["word"])] == [True, True]
    torch.distributed.destroy_process_group()


PAUSE, PATIENCE = 0.3, 1.0  # seconds


def leave(stores: list, rank: int, timeout: float = 20, failing: int | None = None) -> tuple[float, float]:
    """When this rank began to leave, later by its number, and when it had left; the rank that fails drops its store."""
    time.sleep(PAUSE * rank)
    begin = time.monotonic()
    if rank == failing:
        stores[rank] = None
    else:
        leave_together(stores[rank], rank, len(stores), timeout)
    return begin, time.monotonic()


def test_no_rank_leaves_before_the_last_is_done_however_often_they_meet(port):
    stores = [store for store, _ in meet(port, 3, [0, 1, 2])]
    for _ in range(2):
        begun, left = zip(*at_once([partial(leave, stores, rank) for rank in range(3)]), strict=True)
        assert max(begun) <= min(left)


def test_a_rank_that_failed_is_waited_for_no_longer_than_allowed(port):
    stores = [store for store, _ in meet(port, 3, [0, 1, 2])]
    times = at_once([partial(leave, stores, rank, PATIENCE, failing=1) for rank in range(3)])
    begun, left = zip(times[0], times[2], strict=True)
    assert PATIENCE <= min(left) - min(begun) < PATIENCE + 20


def test_where_rank_0_failed_nobody_waits(port):
    stores = [store for store, _ in meet(port, 3, [0, 1, 2])]
    del stores[0]
    begin = time.monotonic()
    at_once([partial(leave_together, store, rank, 3, 20) for rank, store in enumerate(stores, 1)])
    assert time.monotonic() - begin < 20
