"""Ranks that hang, in real processes over gloo: the others find out, say who it is, and the run ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mpnet_ds.training.processes import Ranks
from mpnet_ds.training.watchdog import Report, Watchdog, find_culprits
from tests.runs import ROOT, free_port

TIMEOUT = 2  # seconds without a beat
PATIENCE = 10  # seconds for all ranks to be gone after that, on a machine that is busy with other things

PROGRAM = """
import ctypes, os, signal, sys, time
from pathlib import Path
import torch
from torch import distributed
from mpnet_ds.training.processes import Ranks
from mpnet_ds.training.watchdog import Watchdog

folder, timeout, fault, victim = sys.argv[1:]
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

def sleep_for_ever():
    time.sleep(1000)

def spin():
    while True:
        pass

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def keep_the_lock_of_the_interpreter():
    ctypes.PyDLL(None).sleep(1000)

def suspend():  # all of the job, for longer than the limit
    if os.fork() == 0:
        time.sleep(float(timeout) + 1.5)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)

def all_reduce():
    try:
        distributed.all_reduce(torch.ones(1))
    except RuntimeError:  # a peer is gone, which not every back-end notices
        time.sleep(1000)

distributed.init_process_group("gloo")
with Watchdog(Ranks(rank, rank, size, torch.device("cpu")), Path(folder), float(timeout)) as watchdog:
    for step in range(1, 7):
        watchdog.beat("drawing data", step)
        time.sleep(0.5)
        if step == 3 and fault in ("sleep_for_ever", "stop", "die", "keep_the_lock_of_the_interpreter"):
            if rank == int(victim):
                print(time.time(), flush=True)
                globals()[fault]()
        watchdog.beat("update", step)
        if step == 3 and fault == "suspend":
            suspend()
        if step == 3 and fault == "spin" and rank == int(victim):
            print(time.time(), flush=True)
            spin()
        all_reduce()
distributed.destroy_process_group()
print("done", flush=True)
"""


@dataclass
class Outcome:
    codes: list[int | None]
    """By rank; None where the rank was still there, and was killed."""
    out: str
    err: str
    seconds: float
    """From the fault to the end of the last rank that ended by itself."""


def run_ranks(folder: Path, fault: str, victim: int = 0, size: int = 2, timeout: float = TIMEOUT) -> Outcome:
    """``size`` ranks of PROGRAM; waits until all but a ``victim`` that cannot leave have gone."""
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(folder / "hang"), str(timeout), fault, str(victim)]
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        processes = [
            subprocess.Popen(command, stdout=out, stderr=err, env=environment | {"RANK": str(rank)}) for rank in range(size)
        ]
    stuck = victim if fault in ("stop", "keep_the_lock_of_the_interpreter") else None
    try:
        codes = [None if rank == stuck else process.wait(60) for rank, process in enumerate(processes)]
        ended = time.time()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    out = (folder / "out").read_text()
    begun = float(out.split()[0]) if out[:1].isdigit() else ended
    return Outcome(codes, out, (folder / "err").read_text(), ended - begun)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("fault", "phase", "function"),
    [("sleep_for_ever", "drawing data", "sleep_for_ever"), ("spin", "update", "spin")],
)
def test_a_rank_that_hangs_is_named_and_the_run_ends(tmp_path, fault, phase, function, victim):
    outcome = run_ranks(tmp_path, fault, victim)
    assert outcome.codes == [1, 1], outcome.err
    assert TIMEOUT <= outcome.seconds < TIMEOUT + PATIENCE
    assert f"error: no progress for 2 s (run.hang_timeout): rank {victim} hangs" in outcome.err
    assert outcome.err.count("error: no progress") == 1
    assert f'rank {victim}: in "{phase}" of step 3' in outcome.err
    stacks = [(tmp_path / "hang" / f"rank-{rank:05d}.txt").read_text() for rank in range(2)]
    assert f"in {function}" in stacks[victim]
    assert "in all_reduce" in stacks[1 - victim]
    assert "Thread watchdog" in stacks[victim]


@pytest.mark.parametrize("fault", ["stop", "die", "keep_the_lock_of_the_interpreter"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_can_say_nothing_any_more_is_named_by_the_others(tmp_path, fault, victim):
    outcome = run_ranks(tmp_path, fault, victim, size=3)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL if fault == "die" else None
    assert outcome.codes == expected, outcome.err
    assert TIMEOUT <= outcome.seconds < TIMEOUT + PATIENCE
    assert f"error: no progress for 2 s (run.hang_timeout): rank {victim} hangs" in outcome.err
    assert "in all_reduce" in (tmp_path / "hang" / "rank-00002.txt").read_text()
    if fault == "keep_the_lock_of_the_interpreter":
        assert "in keep_the_lock_of_the_interpreter" in outcome.err  # its stacks, written without the lock


def test_a_slow_run_that_beats_is_left_alone(tmp_path):
    outcome = run_ranks(tmp_path, "none", timeout=1.2)
    assert (outcome.codes, outcome.out, outcome.err) == ([0, 0], "done\ndone\n", "")
    assert not (tmp_path / "hang").exists()


def test_time_in_which_a_job_was_suspended_does_not_count(tmp_path):
    outcome = run_ranks(tmp_path, "suspend", timeout=1.2)
    assert (outcome.codes, outcome.out) == ([0, 0], "done\ndone\n"), outcome.err
    assert "error" not in outcome.err


def test_a_limit_of_zero_watches_nothing(tmp_path):
    before = threading.active_count()
    with Watchdog(Ranks(0, 0, 2, torch.device("cpu")), tmp_path / "hang", 0) as watchdog:
        watchdog.beat("update", 1)
        assert threading.active_count() == before
    assert not (tmp_path / "hang").exists()


def report(rank: int, step: int = 5, waiting: bool = True, beats: int = 1) -> Report:
    return Report(rank, "host", 1, "update", step, beats, 9.0, waiting, "there", 3)


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
    found, reasons = find_culprits(reports, silent)
    assert found == culprits
    assert bool(reasons) == (len(culprits) < len(reports))
