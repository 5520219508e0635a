"""Ranks of one host of which a signal ends one: small programs, which exchange addresses by files."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from mpnet_ds.ranks import siblings
from mpnet_ds.ranks.siblings import UNKNOWN, count_oom_kills, describe, end_deepspeed, oom_counters

PROGRAM = """
import faulthandler, pickle, signal, sys, time
from pathlib import Path
from mpnet_ds.ranks.siblings import Siblings

folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def gather(mine):
    (folder / f"{rank}.new").write_bytes(pickle.dumps(mine))
    (folder / f"{rank}.new").rename(folder / f"{rank}")
    while not all((folder / str(other)).exists() for other in range(size)):
        time.sleep(0.005)
    return [pickle.loads((folder / str(other)).read_bytes()) for other in range(size)]

faulthandler.enable()
signal.signal(signal.SIGTERM, lambda *_: None)  # as in a run
siblings = Siblings()
siblings.meet(rank, ["a"] * size, gather)
print("ready", flush=True)
sys.exit(int(sys.stdin.readline()))
"""


@pytest.fixture
def start(tmp_path):
    """``start(size)``: as many ranks, which know each other; each exits with the code that it reads."""
    started = []

    def start(size: int) -> list[subprocess.Popen]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        for rank in range(size):
            words = [sys.executable, "-c", PROGRAM, tmp_path, str(rank), str(size)]
            started.append(subprocess.Popen(words, text=True, **pipes))
        assert [process.stdout.readline() for process in started] == ["ready\n"] * size
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_rank_is_named_once_with_its_signal_and_the_others_end_though_their_launcher_ends_them_too(start):
    ranks = start(3)
    ranks[0].kill()
    time.sleep(0.01)  # as fast as no launcher is
    for rank in ranks[1:]:
        rank.terminate()
    assert [rank.wait(20) for rank in ranks[1:]] == [1, 1]
    said = [rank.stderr.read() for rank in ranks]
    assert said[1].startswith("error: rank 0 (a) was killed by SIGKILL; the kernel counts no kill for want of memory")
    assert said[2] == ""


def test_ranks_that_end_by_themselves_or_are_told_to_are_not_named_whatever_their_code_nor_where_nobody_can_see_it(start):
    ranks = start(4)
    ranks[3].send_signal(signal.SIGHUP)  # and nobody asks for its code before the end
    for rank, code in ((ranks[2], 0), (ranks[0], 3)):
        rank.stdin.write(f"{code}\n")
        rank.stdin.flush()
        assert rank.wait(20) == code  # and nobody can ask for it any more
    time.sleep(0.1)
    assert ranks[1].poll() is None
    assert ranks[1].communicate("5\n", timeout=20) == ("", "")
    assert ranks[1].returncode == 5


FILE = "/sys/fs/cgroup/job/memory.events"


@pytest.mark.parametrize(
    ("killed", "before", "now", "said"),
    [
        (
            {0: 9, 2: 9},
            {FILE: 0},
            {FILE: 2},
            f"ranks 0, 2 (a) were killed by SIGKILL: out of memory? ({FILE}: oom_kill 0 → 2)",
        ),
        ({1: UNKNOWN}, {FILE: 4}, {}, "rank 1 (a) was killed; the kernel counts no kill for want of memory meanwhile"),
        ({1: 9}, {}, {}, "rank 1 (a) was killed by SIGKILL: out of memory?"),
        ({1: 11}, {FILE: 0}, {FILE: 1}, "rank 1 (a) was killed by SIGSEGV; it has written Python stacks to standard error"),
        ({1: 7, 2: UNKNOWN}, {}, {}, "ranks 1, 2 (a) were killed by SIGBUS: out of memory?"),
    ],
)
def test_memory_is_suspected_where_the_kernel_s_counters_say_so(killed, before, now, said):
    assert describe(killed, "aaa", before, now) == said


def test_kills_for_want_of_memory_are_counted_where_the_kernel_does(tmp_path):
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 7\n")
    assert count_oom_kills([str(events), str(tmp_path / "none")]) == {str(events): 2}
    assert oom_counters(os.getpid())[-1] == "/proc/vmstat"


@pytest.mark.parametrize(
    ("command", "is_ended"), [(["-m", "deepspeed.launcher.launch", "--world_info=eyJhIjpbMF19"], 1), ([], 0)]
)
def test_deepspeed_s_launcher_is_told_to_end_and_no_other_parent(monkeypatch, command, is_ended):
    ended = []
    parent = SimpleNamespace(cmdline=lambda: ["python", *command], terminate=lambda: ended.append(1))
    monkeypatch.setattr(siblings.psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    assert (end_deepspeed(), len(ended)) == (bool(is_ended), is_ended)
