"""Who is blamed for a run that hangs, from heartbeats and from what main threads do."""

import re
import sys
import threading
import time

import pytest
import torch

from mpnet_ds.ranks.blame import find_culprits, is_lost_contact, locate
from mpnet_ds.ranks.heartbeat import Heartbeat


def heartbeat(rank: int, step: int = 5, waiting: bool = True, phases: int = 1) -> Heartbeat:
    return Heartbeat(rank, 1, "update", step, phases, 9.0, waiting, "there", 3)


@pytest.mark.parametrize(
    ("heartbeats", "silent", "culprits"),
    [
        ([heartbeat(0), heartbeat(1), heartbeat(2)], {1}, [1]),
        ([heartbeat(0), heartbeat(1, waiting=False), heartbeat(2, step=4)], {1}, [1]),
        ([heartbeat(0), heartbeat(1, step=4), heartbeat(2, waiting=False)], (), [1]),
        ([heartbeat(0), heartbeat(1, phases=0), heartbeat(2, waiting=False)], (), [2]),
        ([heartbeat(0), heartbeat(1, phases=0), heartbeat(2)], (), [1]),
        ([heartbeat(0, step=4), heartbeat(1, step=4, waiting=False), heartbeat(2, waiting=False)], (), [1]),
        ([heartbeat(0), heartbeat(1)], (), [0, 1]),
        ([heartbeat(0, waiting=False), heartbeat(1, waiting=False)], (), [0, 1]),
    ],
)
def test_the_most_telling_difference_decides_who_is_to_blame(heartbeats, silent, culprits):
    found, reason = find_culprits(heartbeats, silent)
    assert found == culprits
    assert bool(reason) == (len(culprits) < len(heartbeats))


class Handle:
    """What a collective returns: ``wait`` blocks, in no Python code of its own."""

    def __init__(self):
        self.reached, lock = threading.Event(), threading.Lock()
        self.wait, self.finish = lock.acquire, lock.release
        lock.acquire()


def wait(handle: Handle) -> None:
    handle.reached.set()
    handle.wait()


def sleep(handle: Handle) -> None:
    handle.reached.set()
    while not handle.wait(blocking=False):
        time.sleep(0.001)


@pytest.mark.parametrize(("work", "waiting"), [(wait, True), (sleep, False)])
def test_a_thread_is_located_in_the_programs_own_code_and_seen_to_wait(work, waiting):
    handle = Handle()
    thread = threading.Thread(target=work, args=(handle,))
    thread.start()
    try:
        handle.reached.wait(60)
        time.sleep(0.05)  # in which it goes on to the line that waits
        seems_to_wait, place = locate(sys._current_frames()[thread.ident])
    finally:
        handle.finish()
        thread.join()
    assert seems_to_wait == waiting
    assert place.startswith(f"{work.__name__} ({__file__}:")


def test_a_thread_inside_a_library_is_located_where_the_program_called_it():
    parked = threading.Event()
    thread = threading.Thread(target=lambda: parked.wait(60))
    thread.start()
    try:
        time.sleep(0.05)
        _, place = locate(sys._current_frames()[thread.ident])
    finally:
        parked.set()
        thread.join()
    assert re.fullmatch(rf"<lambda> \({re.escape(__file__)}:\d+\) in wait \(threading.py:\d+\)", place)


def test_a_thread_that_has_ended_is_nowhere():
    assert locate(None) == (False, "nowhere: the main thread has ended")


def test_what_back_ends_raise_when_a_rank_is_gone_is_told_from_other_errors():
    assert is_lost_contact(torch.distributed.DistNetworkError("reset"))
    assert is_lost_contact(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert not is_lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_contact(ValueError("gloo"))
