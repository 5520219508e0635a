"""Runs of the launch script, in processes of their own, and those that several tests look at.

Most run in forks (fork_server.py). Under a real launcher are those where it matters: ``launcher=`` of ``pretrain`` and
``pretrain_all``, ``UNDER_LAUNCHERS``, and ``start_run`` of training/faulty_runs.py.
"""

import itertools
import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import fork_server

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "tests" / "fixtures" / "recipe.json"
TIMEOUT = 600  # seconds, on a machine that does other things too
FIRST_PORT, PORTS, WORKERS = 12000, 2000, 4  # ports of each worker of pytest-xdist


@dataclass
class Run:
    """What came of one launch."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def repeatable(self) -> list[dict]:
        """The metrics without the time, the number of starts, and what depends on the machine's speed and memory."""
        fleeting = ("tokens_per_second", "predicted_tokens_per_second", "first_step_seconds", "data_wait", "memory", "mfu")
        lines = [line for line in self.metrics if line.get("event") != "resumed"]
        return [{name: value for name, value in line.items() if name not in (*fleeting, "time")} for line in lines]

    @property
    def losses(self) -> list[float]:
        """Of the steps that were logged, but for those that were skipped, nats."""
        return [line["loss"] for line in self.metrics if line.get("loss") is not None and "event" not in line]

    @property
    def eval_losses(self) -> list[float]:
        return [line["eval_loss"] for line in self.metrics if "eval_loss" in line]

    @property
    def newest_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / (self.folder / "checkpoints" / "latest").read_text().strip()


def command(*arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a program of the project, as a user would start it; paths of programs are relative to the repository.

    A Python script runs in a fork of fork_server.py; anything else is a process of its own.
    """
    arguments = [str(argument) for argument in arguments]
    if arguments[0] == sys.executable and arguments[1].endswith(".py"):
        return fork_server.run(arguments[1:], cwd, [environment()], TIMEOUT)
    return subprocess.run(arguments, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=TIMEOUT)


def environment() -> dict[str, str]:
    """In which programs of the project run: this Python first, one thread for each rank."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


LAUNCHERS = {
    "none": lambda ranks: [sys.executable, "-u"],  # a new interpreter
    "deepspeed": lambda ranks: ["deepspeed", "--num_accelerators", ranks, "--master_port", free_port()],
    "torchrun": lambda ranks: ["torchrun", "--nproc-per-node", ranks, "--master-port", free_port()],
}
"""The real ones: name → beginning of a command."""
UNDER_LAUNCHERS = {("zero3", 2): "torchrun"}
"""Runs of ``trained``, configuration and ranks, that a real launcher starts."""


def launch(script: list, ranks: int, launcher: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script and its arguments in so many ranks.

    Args:
        ranks: 0 for a process that no launcher has started.
        launcher: one of ``LAUNCHERS``; by default the ranks are forks, with the variables that DeepSpeed's launcher sets.
    """
    if launcher or not ranks:
        return command(*LAUNCHERS[launcher](ranks) if launcher else [sys.executable], *script, cwd=cwd)
    common = {"WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    variables = [common | {"RANK": rank, "LOCAL_RANK": rank, "CROSS_RANK": 0, "CROSS_SIZE": 1} for rank in range(ranks)]
    environments = [environment() | {name: str(value) for name, value in each.items()} for each in variables]
    return fork_server.run([str(word) for word in script], cwd, environments, TIMEOUT)


def pretrain(
    output: Path, *arguments, config: str = "zero2", ranks: int = 0, cwd: Path = ROOT, script: list | None = None,
    launcher: str = "",
) -> Run:  # fmt: skip
    """Run ``launch/pretrain.py``, or ``script``; ranks and launcher as in ``launch``."""
    config_path = config if "/" in config else ROOT / "ds_configs" / f"{config}.json"
    where = [] if "--output_dir" in arguments else ["--output_dir", output]
    script = [*(script or [ROOT / "launch" / "pretrain.py"]), "--deepspeed_config", config_path, *where, *arguments]
    done = launch(script, ranks, launcher, cwd)
    return Run(done.returncode, done.stdout, done.stderr, output)


def pretrain_all(folder: Path, runs: dict[Path, list], ranks: int, launcher: str = "") -> dict[Path, Run]:
    """Several runs in the same processes, one after the other: output folder → arguments of ``launch/pretrain.py``."""
    lists = [[str(word) for word in ("--output_dir", output, *arguments)] for output, arguments in runs.items()]
    (folder / "runs.json").write_text(json.dumps(lists))
    done = launch([ROOT / "tests" / "training" / "many_runs.py", folder / "runs.json"], ranks if ranks > 1 else 0, launcher)
    said = re.findall(r"^begin \d+\n(.*?)^end \d+: (\d+), ", done.stdout, re.MULTILINE | re.DOTALL)
    assert len(said) == len(runs), f"after {len(said)} runs:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return {output: Run(int(code), out, done.stderr, output) for output, (out, code) in zip(runs, said, strict=True)}


def free_port() -> int:
    """A port that nobody else takes in the seconds until a launch gets to listen on it.

    The system hands out those from 32768 on to whoever asks for any, and launchers.py those from 20000 to SLURM's jobs.
    """
    for port in _ports:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port


def _own_ports() -> Iterator[int]:
    """Round and round those of this pytest-xdist worker, from anywhere: another session on this machine has the same."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first, begin = FIRST_PORT + PORTS * (worker % WORKERS), secrets.randbelow(PORTS)
    return (first + (begin + count) % PORTS for count in itertools.count())


_ports = _own_ports()


def recipe_with(folder: Path, **sections) -> Path:
    """A copy of the test recipe with some values changed: ``recipe_with(tmp_path, model={"hidden_size": 48})``."""
    content = json.loads(RECIPE.read_text())
    for section, values in sections.items():
        content[section] = content[section] | values if isinstance(values, dict) else values
    path = folder / "recipe.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def run_once(made_once):
    """``run_once(name, start)``: the run that ``start(output)`` made, without fault; as ``made_once``."""

    def get(name: str, start: Callable[[Path], Run]) -> Run:
        def make(folder: Path) -> None:
            run = start(folder / "run")
            assert run.code == 0, run.out + run.err
            (folder / "said.json").write_text(json.dumps({"out": run.out, "err": run.err}))

        folder = made_once(name, make)
        return Run(0, **json.loads((folder / "said.json").read_text()), folder=folder / "run")

    return get


@pytest.fixture(scope="session")
def trained(dataset_folder, run_once):
    """``trained(config, ranks)``: eight steps without dropout on the shared dataset; each combination runs once."""

    def train(config: str = "zero2", ranks: int = 1) -> Run:
        arguments = ["--recipe", RECIPE, "--data", dataset_folder, *(["--micro_batch_size", 4] if ranks == 2 else [])]
        options = {"config": config, "ranks": ranks, "launcher": UNDER_LAUNCHERS.get((config, ranks), "")}
        return run_once(f"{config}-{ranks}", lambda output: pretrain(output, *arguments, **options))

    return train
