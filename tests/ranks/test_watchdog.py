"""Ranks that hang, in real processes over gloo: the others find out, say who it is, and the run ends."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import pytest
import torch
from torch import distributed

from mpnet_ds.ranks.blame import find_culprits
from mpnet_ds.ranks.heartbeat import Heartbeat, Heartbeats
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.ranks.watchdog import Watchdog
from tests.runs import free_port

TIMEOUT = 2  # seconds without a beat
PATIENCE = 10  # seconds for all ranks to be gone after that, on a machine that is busy with other things

ctx = multiprocessing.get_context("forkserver")
ctx.set_forkserver_preload([__name__])  # torch is loaded once for all ranks of all tests


def sleep_for_ever() -> None:
    time.sleep(1000)


def spin() -> None:
    while True:
        pass


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("broken")


def keep_the_lock_of_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(1000)


FAULTS = {f.__name__: f for f in (sleep_for_ever, spin, stop, die, fail, keep_the_lock_of_the_interpreter)}


def suspend(seconds: float) -> None:
    """What a queueing system does to a job that has to wait for another."""
    time.sleep(0.6)  # in the middle of a phase that the watchdog has seen begin
    if os.fork() == 0:
        time.sleep(seconds)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)


def all_reduce(notices: bool) -> None:
    try:
        distributed.all_reduce(torch.ones(1))
    except RuntimeError:  # a peer is gone, which not every back-end notices
        if notices:
            raise
        time.sleep(1000)


def ranks_of(rank: int, size: int) -> Ranks:
    return Ranks(rank, 0, size, torch.device("cpu"), tuple(f"node-{rank}" for rank in range(size)))


@dataclass(frozen=True)
class Plan:
    """What happens in step 2, to whom, and what is set against it."""

    fault: str
    victim: int = 0
    phase: str = "update"
    size: int = 2
    hang_timeout: float = TIMEOUT
    lost_timeout: float = 0
    notices: bool = False
    """Whether the back-end raises an error where a peer has gone."""
    late: float = 0
    """Seconds for which the last rank's board stands still once after the fault."""


def be_late(begun: Path, seconds: float) -> None:
    exchange, was_late = Heartbeats.exchange, threading.Event()

    def exchange_late(board: Heartbeats, store, number: int) -> None:
        if begun.exists() and not was_late.is_set():
            was_late.set()
            time.sleep(seconds)
        exchange(board, store, number)

    Heartbeats.exchange = exchange_late


def train(rank: int, port: int, folder: Path, plan: Plan) -> None:
    """Six steps of two phases, a quarter of a second each; ``fault`` comes in step 2."""
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    size, fault = plan.size, plan.fault
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo")
    if rank == size - 1:
        be_late(folder / "begun", plan.late)
    with Watchdog(ranks_of(rank, size), folder / "hang", plan.hang_timeout, plan.lost_timeout) as watchdog:
        for step in range(1, 7):
            for now in ("drawing data", "update"):
                watchdog.beat(now, step)
                if step == 2 and fault == "suspend" and now == plan.phase:
                    suspend(TIMEOUT + 1.5)
                if step == 2 and fault in FAULTS and rank == plan.victim and now == plan.phase:
                    (folder / "begun").write_text(str(time.time()))
                    FAULTS[fault]()
                time.sleep(0.25)
            all_reduce(plan.notices)
    all_reduce(notices=True)  # with rank 0 goes the store, of which a rank that still watches would tell
    distributed.destroy_process_group()
    os.write(1, b"done\n")


@dataclass
class Outcome:
    """What came of a run."""

    codes: list[int | None]
    """By rank; None where the rank was still there, and was killed."""
    out: str
    err: str
    seconds: float
    """From the fault to the end of the last rank that ended by itself."""
    order: list[int]
    """Ranks that ended by themselves, in that order."""


def run_ranks(folder: Path, fault: str, victim: int = 0, **settings) -> Outcome:
    """Waits until all ranks have gone but one that cannot."""
    port, plan = free_port(), Plan(fault, victim, **settings)
    ranks = [ctx.Process(target=train, args=(rank, port, folder, plan)) for rank in range(plan.size)]
    stuck = ranks[victim] if fault in ("stop", "keep_the_lock_of_the_interpreter") else None
    try:
        for process in ranks:
            process.start()
        order = order_of_ends([process for process in ranks if process is not stuck])
        ended, codes = time.time(), [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.join()
    begun = folder / "begun"
    seconds = ended - float(begun.read_text()) if begun.exists() else 0.0
    return Outcome(codes, (folder / "out").read_text(), (folder / "err").read_text(), seconds, order)


def order_of_ends(processes: list) -> list[int]:
    """Places in the list."""
    lasting, order = {process.sentinel: place for place, process in enumerate(processes)}, []
    while lasting and (ended := connection.wait(list(lasting), 60)):
        order += [lasting.pop(sentinel) for sentinel in ended]
    for place in order:
        processes[place].join()
    return order


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("fault", "phase"),
    [
        ("sleep_for_ever", "drawing data"),
        pytest.param("sleep_for_ever", "update", marks=pytest.mark.long),
        ("spin", "update"),
    ],
)
def test_a_rank_that_hangs_is_named_and_the_run_ends(tmp_path, fault, phase, victim):
    outcome = run_ranks(tmp_path, fault, victim, phase=phase)
    assert outcome.codes == [1, 1], outcome.err
    assert TIMEOUT <= outcome.seconds < TIMEOUT + PATIENCE
    assert f"error: no progress for 2 s (run.hang_timeout): rank {victim} (node-{victim}) hangs" in outcome.err
    assert outcome.err.count("error: no progress") == 1
    assert f'rank {victim}: in "{phase}" of step 2' in outcome.err
    stacks = [(tmp_path / "hang" / f"rank-{rank:05d}.txt").read_text() for rank in range(2)]
    assert f"in {fault}" in stacks[victim]
    assert "in all_reduce" in stacks[1 - victim]
    assert "Thread watchdog" in stacks[victim]


def test_a_rank_that_answers_the_alarm_late_is_not_taken_for_lost(tmp_path):
    outcome = run_ranks(tmp_path, "sleep_for_ever", size=3, phase="drawing data", late=TIMEOUT + 1.1)
    assert "rank 0 (node-0) hangs" in outcome.err
    assert "lost" not in outcome.err


@pytest.mark.parametrize("fault", ["stop", "die", "keep_the_lock_of_the_interpreter"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_can_say_nothing_any_more_is_named_by_the_others(tmp_path, fault, victim):
    outcome = run_ranks(tmp_path, fault, victim, size=3)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL if fault == "die" else None
    assert outcome.codes == expected, outcome.err
    assert TIMEOUT <= outcome.seconds < TIMEOUT + PATIENCE
    assert f"error: no progress for 2 s (run.hang_timeout): rank {victim} (node-{victim}) is lost" in outcome.err
    assert "in all_reduce" in (tmp_path / "hang" / "rank-00002.txt").read_text()
    assert "why: it is silent: stopped, dead, or cut off" in outcome.err
    if fault == "keep_the_lock_of_the_interpreter":
        assert "in keep_the_lock_of_the_interpreter" in outcome.err  # its stacks, written without the lock


@pytest.mark.parametrize("fault", ["stop", "die"])
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.long), 2])
def test_a_rank_of_which_nothing_is_heard_is_lost_however_long_the_others_might_wait(tmp_path, fault, victim):
    outcome = run_ranks(tmp_path, fault, victim, size=3, hang_timeout=600, lost_timeout=TIMEOUT)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL if fault == "die" else None
    assert outcome.codes == expected, outcome.err
    assert TIMEOUT <= outcome.seconds < TIMEOUT + PATIENCE
    assert f"rank {victim} (node-{victim}) is lost" in outcome.err
    assert "(run.lost_timeout)" in outcome.err


@pytest.mark.parametrize("victim", [0, 1])
def test_where_a_collective_notices_that_a_rank_has_gone_the_others_say_who_it_was(tmp_path, victim):
    outcome = run_ranks(tmp_path, "die", victim, size=3, hang_timeout=600, lost_timeout=TIMEOUT, notices=True)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL
    assert outcome.codes == expected, outcome.err
    assert outcome.seconds < TIMEOUT + PATIENCE
    assert "lost contact" in outcome.err
    assert f"rank {victim} (node-{victim}) is lost" in outcome.err
    assert "Connection closed by peer" in (tmp_path / "hang" / f"rank-{(victim + 1) % 3:05d}.txt").read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_fails_takes_the_others_with_it(tmp_path, victim):
    outcome = run_ranks(tmp_path, "fail", victim, size=3, hang_timeout=600, lost_timeout=8)
    assert outcome.codes == [1, 1, 1], outcome.err
    assert outcome.seconds < PATIENCE
    assert "ValueError: broken" in outcome.err
    assert ("error: rank 1 (node-1) failed: ValueError: broken" in outcome.err) == (victim == 1)
    assert not (tmp_path / "hang").exists()


def test_rank_0_that_fails_waits_until_a_rank_that_is_late_has_read_of_it(tmp_path):
    outcome = run_ranks(tmp_path, "fail", 0, size=3, hang_timeout=600, lost_timeout=8, late=2.2)
    assert outcome.codes == [1, 1, 1], outcome.err
    assert outcome.order[0] == 0, "after the first that leaves, a launcher ends rank 0 before it has said why"
    assert "ValueError: broken" in outcome.err
    assert "is lost" not in outcome.err


def test_a_slow_run_that_beats_is_left_alone(tmp_path):
    outcome = run_ranks(tmp_path, "none")
    assert (outcome.codes, outcome.out, outcome.err) == ([0, 0], "done\ndone\n", "")
    assert not (tmp_path / "hang").exists()


def test_time_in_which_a_job_was_suspended_does_not_count(tmp_path):
    outcome = run_ranks(tmp_path, "suspend")
    assert (outcome.codes, outcome.out) == ([0, 0], "done\ndone\n"), outcome.err
    assert "error" not in outcome.err


def test_a_limit_of_zero_watches_nothing(tmp_path):
    before = threading.active_count()
    with Watchdog(ranks_of(0, 2), tmp_path / "hang", 0) as watchdog:
        watchdog.beat("update", 1)
        assert threading.active_count() == before
    assert not (tmp_path / "hang").exists()


def report(rank: int, step: int = 5, waiting: bool = True, beats: int = 1) -> Heartbeat:
    return Heartbeat(rank, 1, "update", step, beats, 9.0, waiting, "there", 3)


@pytest.mark.parametrize(
    ("reports", "silent", "culprits"),
    [
        ([report(0), report(1), report(2)], {1}, [1]),
        ([report(0), report(1, waiting=False), report(2, step=4)], {1}, [1]),
        ([report(0), report(1, step=4), report(2, waiting=False)], (), [1]),
        ([report(0), report(1, beats=0), report(2, waiting=False)], (), [2]),
        ([report(0), report(1, beats=0), report(2)], (), [1]),
        ([report(0, step=4), report(1, step=4, waiting=False), report(2, waiting=False)], (), [1]),
        ([report(0), report(1)], (), [0, 1]),
        ([report(0, waiting=False), report(1, waiting=False)], (), [0, 1]),
    ],
)
def test_the_most_telling_difference_decides_who_is_to_blame(reports, silent, culprits):
    found, reason = find_culprits(reports, silent)
    assert found == culprits
    assert bool(reason) == (len(culprits) < len(reports))
