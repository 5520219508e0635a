"""Ranks that hang, in real processes over gloo: the others find out, say who it is, and the run ends.

Many scenarios run at once, since their ranks mostly wait; the tests look at what became of them.
"""

import ctypes
import multiprocessing
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import pytest
import torch
from torch import distributed

from mpnet_ds.ranks.heartbeat import Heartbeats
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.ranks.watchdog import Watchdog
from tests.runs import free_port

TIMEOUT = 3  # seconds without a beat
LOST_TIMEOUT = 8  # seconds without a heartbeat: a busy machine may delay one by four
PATIENCE = 10  # seconds for all ranks to be gone after that, on a machine that is busy with other things

ctx = multiprocessing.get_context("forkserver")
ctx.set_forkserver_preload([__name__])  # torch is loaded once for all ranks of all scenarios


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


def suspend() -> None:
    """What a queueing system does to a job that has to wait for another."""
    time.sleep(0.6)  # in the middle of a phase that the watchdog has seen begin
    if os.fork() == 0:
        time.sleep(TIMEOUT + 1.5)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)


FAULTS = {f.__name__: f for f in (sleep_for_ever, spin, stop, die, fail, keep_the_lock_of_the_interpreter, suspend)}


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
class Scenario:
    """What happens in step 2, to whom, and what is set against it."""

    fault: str = ""
    victims: tuple[int, ...] = ()
    phase: str = "update"
    size: int = 3
    hang_timeout: float = TIMEOUT
    lost_timeout: float = 0
    notices: bool = False
    """Whether the back-end raises an error where a peer is gone."""
    late: float = 0
    """Seconds for which the last rank's heartbeat is late once after the fault."""
    slow: float = 0
    """Seconds for which all heartbeats are late after the fault."""


def hanging(fault: str, victim: int, **settings) -> Scenario:
    return Scenario(fault, (victim,), **settings)


def losing(fault: str, victim: int, **settings) -> Scenario:
    """The others might wait for ever, but for their heartbeats."""
    return Scenario(fault, (victim,), hang_timeout=600, **{"lost_timeout": LOST_TIMEOUT} | settings)


HANGS = [
    hanging("sleep_for_ever", 0, phase="drawing data", size=2),
    hanging("sleep_for_ever", 1, size=2),
    hanging("spin", 0, size=2),
]
SILENT = [
    *(hanging(fault, victim) for fault in ("stop", "keep_the_lock_of_the_interpreter") for victim in (0, 1)),
    hanging("die", 1),
]
LOST = [losing("stop", 0), losing("die", 0), losing("stop", 1), losing("die", 2)]
NOTICED = [*(losing("die", victim, notices=True) for victim in (0, 1)), losing("die", 1, notices=True, slow=1.7)]
FAILED = [losing("fail", victim) for victim in (0, 1)]
LATE_TO_THE_ALARM = hanging("sleep_for_ever", 0, phase="drawing data", late=TIMEOUT + 1.1)
LATE_TO_THE_FAILURE = losing("fail", 0, late=2.2)
UNDISTURBED = Scenario(size=2)
SUSPENDED = Scenario("suspend", (0, 1), size=2)
SINGLE = [LATE_TO_THE_ALARM, LATE_TO_THE_FAILURE, UNDISTURBED, SUSPENDED]
SCENARIOS = [*HANGS, *SILENT, *LOST, *NOTICED, *FAILED, *SINGLE]


def be_late(begun: Path, seconds: float, every_time: bool = False) -> None:
    exchange, was_late = Heartbeats.exchange, threading.Event()

    def exchange_late(heartbeats: Heartbeats, store, number: int) -> None:
        if begun.exists() and (every_time or not was_late.is_set()):
            was_late.set()
            time.sleep(seconds)
        exchange(heartbeats, store, number)

    Heartbeats.exchange = exchange_late


def train(rank: int, port: int, folder: Path, scenario: Scenario, everyone) -> None:
    """Four steps of two phases, a quarter of a second each; the fault comes in step 2."""
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    size = scenario.size
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo")
    if scenario.slow:
        be_late(folder / "begun", scenario.slow, every_time=True)
    elif rank == size - 1:
        be_late(folder / "begun", scenario.late)
    everyone.wait(60)  # until all ranks have started, which keeps the machine busy
    timeouts = scenario.hang_timeout, scenario.lost_timeout
    with Watchdog(ranks_of(rank, size), folder / "hang", *timeouts) as watchdog:
        watchdog._heartbeats.answered.wait(60)
        all_reduce(notices=True)  # until all post heartbeats
        for step in range(1, 5):
            for phase in ("drawing data", "update"):
                watchdog.beat(phase, step)
                if step == 2 and phase == scenario.phase and rank in scenario.victims:
                    (folder / "begun").write_text(str(time.time()))
                    FAULTS[scenario.fault]()
                time.sleep(0.25)
            all_reduce(scenario.notices)
    all_reduce(notices=True)  # with rank 0 goes the store, of which a rank that still watches would tell
    distributed.destroy_process_group()
    os.write(1, b"done\n")


@dataclass
class Outcome:
    """What came of a scenario."""

    folder: Path
    codes: list[int | None]
    """By rank; None where the rank was still there, and was killed."""
    seconds: float
    """From the fault to the end of the last rank that ended by itself."""
    order: list[int]
    """Ranks that ended by themselves, in that order."""

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def stacks(self, rank: int) -> str:
        return (self.folder / "hang" / f"rank-{rank:05d}.txt").read_text()


def start(folder: Path, scenario: Scenario, everyone) -> list:
    folder.mkdir()
    port = free_port()
    ranks = [ctx.Process(target=train, args=(rank, port, folder, scenario, everyone)) for rank in range(scenario.size)]
    for process in ranks:
        process.start()
    return ranks


def wait_for_ends(started: dict[Scenario, list]) -> dict[Scenario, dict[int, float]]:
    """Of each scenario, its ranks in the order in which they ended by themselves, and when."""
    ends: dict[Scenario, dict[int, float]] = {scenario: {} for scenario in started}
    lasting = {}
    for scenario, ranks in started.items():
        stuck = scenario.victims if scenario.fault in ("stop", "keep_the_lock_of_the_interpreter") else ()
        lasting |= {process.sentinel: (scenario, rank) for rank, process in enumerate(ranks) if rank not in stuck}
    while lasting and (ended := connection.wait(list(lasting), 60)):
        for sentinel in ended:
            scenario, rank = lasting.pop(sentinel)
            ends[scenario][rank] = time.time()
    return ends


def play(folder: Path, scenarios: list[Scenario]) -> dict[Scenario, Outcome]:
    """All at once."""
    everyone, started, outcomes = ctx.Barrier(sum(scenario.size for scenario in scenarios)), {}, {}
    folders = {scenario: folder / str(number) for number, scenario in enumerate(scenarios)}
    try:
        for scenario in scenarios:
            started[scenario] = start(folders[scenario], scenario, everyone)
        for scenario, ends in wait_for_ends(started).items():
            for rank in ends:
                started[scenario][rank].join()
            begun, codes = folders[scenario] / "begun", [process.exitcode for process in started[scenario]]
            seconds = max(ends.values(), default=0) - float(begun.read_text()) if begun.exists() else 0.0
            outcomes[scenario] = Outcome(folders[scenario], codes, seconds, list(ends))
    finally:
        for ranks in started.values():
            for process in ranks:
                process.kill()
                process.join()
    return outcomes


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory):
    """``outcome_of(scenario)``: all of them are played at the first request, a third of them at once."""
    waves = [SCENARIOS[first::3] for first in range(3)]
    return {key: value for wave in waves for key, value in play(tmp_path_factory.mktemp("wave"), wave).items()}.__getitem__


def name(scenario: Scenario) -> str:
    return "-".join([scenario.fault, *map(str, scenario.victims), *(["slow"] if scenario.slow else [])])


def codes_without(scenario: Scenario) -> list[int | None]:
    """All ranks leave with 1 but the victim, which was killed or is still there."""
    victims = {"die": -signal.SIGKILL, "stop": None, "keep_the_lock_of_the_interpreter": None}
    return [victims[scenario.fault] if rank in scenario.victims else 1 for rank in range(scenario.size)]


@pytest.mark.parametrize("scenario", HANGS, ids=name)
def test_a_rank_that_hangs_is_named_and_the_run_ends(outcome_of, scenario):
    outcome, (victim,) = outcome_of(scenario), scenario.victims
    assert outcome.codes == [1, 1], outcome.err
    assert TIMEOUT <= outcome.seconds < TIMEOUT + PATIENCE
    assert f"error: no progress for {TIMEOUT} s (run.hang_timeout): rank {victim} (node-{victim}) hangs" in outcome.err
    assert outcome.err.count("error: no progress") == 1
    assert f'rank {victim}: in "{scenario.phase}" of step 2' in outcome.err
    assert f"in {scenario.fault}" in outcome.stacks(victim)
    assert "in all_reduce" in outcome.stacks(1 - victim)
    assert "Thread watchdog" in outcome.stacks(victim)


def test_a_rank_that_answers_the_alarm_late_is_not_taken_for_lost(outcome_of):
    outcome = outcome_of(LATE_TO_THE_ALARM)
    assert "rank 0 (node-0) hangs" in outcome.err
    assert "lost" not in outcome.err


@pytest.mark.parametrize("scenario", SILENT, ids=name)
def test_a_rank_that_can_say_nothing_any_more_is_named_by_the_others(outcome_of, scenario):
    outcome, (victim,) = outcome_of(scenario), scenario.victims
    assert outcome.codes == codes_without(scenario), outcome.err
    assert TIMEOUT <= outcome.seconds < TIMEOUT + PATIENCE
    assert f"error: no progress for {TIMEOUT} s (run.hang_timeout): rank {victim} (node-{victim}) is lost" in outcome.err
    assert "in all_reduce" in outcome.stacks(2)
    assert "why: it is silent: stopped, dead, or cut off" in outcome.err
    if scenario.fault == "keep_the_lock_of_the_interpreter":
        assert "in keep_the_lock_of_the_interpreter" in outcome.err  # its stacks, written without the lock


@pytest.mark.parametrize("scenario", LOST, ids=name)
def test_a_rank_of_which_nothing_is_heard_is_lost_however_long_the_others_might_wait(outcome_of, scenario):
    outcome, (victim,) = outcome_of(scenario), scenario.victims
    assert outcome.codes == codes_without(scenario), outcome.err
    # No lower limit: on a busy machine the victim's last heartbeat may be seconds older than the fault.
    assert outcome.seconds < LOST_TIMEOUT + PATIENCE
    assert f"rank {victim} (node-{victim}) is lost" in outcome.err
    assert "(run.lost_timeout)" in outcome.err


@pytest.mark.parametrize("scenario", NOTICED, ids=name)
def test_where_a_collective_notices_that_a_rank_is_gone_the_others_say_who_it_was(outcome_of, scenario):
    outcome, (victim,) = outcome_of(scenario), scenario.victims
    assert outcome.codes == codes_without(scenario), outcome.err
    assert outcome.seconds < LOST_TIMEOUT + PATIENCE + 4 * scenario.slow
    assert "lost contact" in outcome.err
    assert f"rank {victim} (node-{victim}) is lost" in outcome.err
    assert re.search("Connection (closed|reset) by peer", outcome.stacks((victim + 1) % 3))


@pytest.mark.parametrize("scenario", FAILED, ids=name)
def test_a_rank_that_fails_takes_the_others_with_it(outcome_of, scenario):
    outcome = outcome_of(scenario)
    assert outcome.codes == [1, 1, 1], outcome.err
    assert outcome.seconds < PATIENCE
    assert "ValueError: broken" in outcome.err
    assert ("error: rank 1 (node-1) failed: ValueError: broken" in outcome.err) == (scenario.victims == (1,))
    assert not (outcome.folder / "hang").exists()


def test_rank_0_that_fails_waits_until_a_rank_that_is_late_has_read_of_it(outcome_of):
    outcome = outcome_of(LATE_TO_THE_FAILURE)
    assert outcome.codes == [1, 1, 1], outcome.err
    assert outcome.order[0] == 0, "after the first that leaves, a launcher ends rank 0 before it has said why"
    assert "ValueError: broken" in outcome.err
    assert "is lost" not in outcome.err


def test_a_slow_run_that_beats_is_left_alone(outcome_of):
    outcome = outcome_of(UNDISTURBED)
    assert (outcome.codes, outcome.out, outcome.err) == ([0, 0], "done\ndone\n", "")
    assert not (outcome.folder / "hang").exists()


def test_time_in_which_a_job_was_suspended_does_not_count(outcome_of):
    outcome = outcome_of(SUSPENDED)
    assert (outcome.codes, outcome.out) == ([0, 0], "done\ndone\n"), outcome.err
    assert "error" not in outcome.err


def test_a_limit_of_zero_watches_nothing(tmp_path):
    before = threading.active_count()
    with Watchdog(ranks_of(0, 2), tmp_path / "hang", 0) as watchdog:
        watchdog.beat("update", 1)
        assert threading.active_count() == before
    assert not (tmp_path / "hang").exists()
