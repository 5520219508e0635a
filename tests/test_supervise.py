"""``launch/supervise.sh`` around real launchers, with a small program in the place of the training script."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.runs import ROOT, free_port

BIN = Path(sys.executable).parent

RANK = """
import os, signal, subprocess, sys, time
from pathlib import Path

folder, rank = Path(__file__).parent, os.environ.get("RANK", "0")
worker = subprocess.Popen(["sleep", "1000"])  # has RANK too; SIGUSR1 would end it

def save(*_):
    time.sleep(1)
    (folder / f"saved-{rank}").write_text(str(worker.poll()))
    worker.kill()
    worker.wait()
    time.sleep(1)  # until the other rank has saved
    sys.exit(75)

signal.signal(signal.SIGUSR1, signal.SIG_IGN if "deaf" in sys.argv else save)
(folder / f"ready-{rank}").write_text(str(os.getpid()))
time.sleep(1000)
"""


def heed_signals() -> None:
    """As a program in a terminal does: a job in the background ignores SIGINT, and nohup has SIGHUP ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Supervised:
    """A command under the script, whose ranks are ready."""

    def __init__(self, folder: Path, launcher: list, *arguments: str, ranks: int = 2, **variables: str):
        self.folder, script = folder, folder / "rank.py"
        script.write_text(RANK)
        command = ["bash", ROOT / "launch" / "supervise.sh", *launcher, script, *arguments]
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"} | variables
        self.process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdout=subprocess.DEVNULL,
            preexec_fn=heed_signals,
        )
        self.pids = [int(wait_for(folder / f"ready-{rank}")) for rank in range(ranks)]

    def workers(self) -> list[str]:
        """What became of each rank's worker, from the moment that the rank had saved."""
        return [(self.folder / f"saved-{rank}").read_text() for rank in range(len(self.pids))]

    def someone_is_left(self) -> bool:
        lines = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))  # None: it ended meanwhile
        return any(str(self.folder) in word for line in lines for word in line)


def wait_for(path: Path) -> str:
    for _ in range(600):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{path} has not come")


def deepspeed() -> list:
    return ["deepspeed", "--num_accelerators", 2, "--master_port", free_port()]


def torchrun() -> list:
    return ["torchrun", "--nproc-per-node", 2, "--master-port", free_port()]


@pytest.mark.parametrize(
    ("launcher", "sent", "ranks", "code"),
    [(deepspeed, signal.SIGHUP, 2, 75), (torchrun, signal.SIGUSR1, 2, 1), (lambda: [sys.executable], signal.SIGINT, 1, 75)],
    ids=["deepspeed", "torchrun", "alone"],
)
def test_a_signal_asks_the_ranks_to_save_and_their_code_comes_back(tmp_path, launcher, sent, ranks, code):
    run = Supervised(tmp_path, launcher(), ranks=ranks)
    run.process.send_signal(sent)
    assert run.process.wait(60) == code  # torchrun makes 1 of any code
    assert run.workers() == ["None"] * ranks
    assert not run.someone_is_left()


@pytest.mark.parametrize("inherited", [{"RANK": "0"}, {"RANK": "0", "LOCAL_RANK": "0"}], ids=["RANK", "LOCAL_RANK too"])
def test_the_ranks_are_found_where_the_shell_has_a_rank_itself(tmp_path, inherited):
    """As in the pods of Kubernetes' training operator."""
    run = Supervised(tmp_path, deepspeed(), **inherited)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(60) == 75
    assert not run.someone_is_left()


def test_ranks_that_a_launcher_leaves_behind_are_asked_to_save(tmp_path):
    run = Supervised(tmp_path, deepspeed())
    os.kill(psutil.Process(run.pids[0]).ppid(), signal.SIGKILL)
    assert run.process.wait(60) == 1
    assert run.workers() == ["None", "None"]
    assert not run.someone_is_left()


def test_a_second_interrupt_ends_what_does_not_listen(tmp_path):
    run = Supervised(tmp_path, [sys.executable], "deaf", ranks=1)
    run.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(2)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(20) == 128 + signal.SIGTERM
    assert not run.someone_is_left()


def test_without_a_signal_the_command_s_code_comes_back():
    script = ROOT / "launch" / "supervise.sh"
    assert subprocess.run(["bash", script, "sh", "-c", "exit 7"], timeout=30).returncode == 7
    for how in ("kill -KILL $$", "exit 247"):  # what shells make of a signal, and what deepspeed does
        killed = subprocess.run(["bash", script, "sh", "-c", how], timeout=30, capture_output=True, text=True)
        assert killed.returncode == 1
        assert killed.stderr.endswith("supervise: SIGKILL has ended a rank or its launcher\n")
    missing = subprocess.run(["bash", script, "no-such-program"], timeout=30, capture_output=True)
    assert missing.returncode == 127
    assert subprocess.run(["bash", script], timeout=30, capture_output=True).returncode == 2
