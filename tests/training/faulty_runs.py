"""Runs with a fault built in (see faulty.py), and looks at what became of them."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from mpnet_ds.checkpoint.store import CheckpointStore
from tests.runs import RECIPE, ROOT, Run, environment, free_port, pretrain

FAULTY = ROOT / "tests" / "training" / "faulty.py"


def train(output: Path, data: Path, *arguments, fault: str = "", ranks: int = 0, config: str = "zero2", launcher: str = ""):
    """The run of ``trained``, with a fault; the same command again, without one, must end with the same losses."""
    script = [FAULTY, fault] if fault else None
    flags = ["--recipe", RECIPE, "--data", data, *(["--micro_batch_size", 4] if ranks == 2 else []), *arguments]
    return pretrain(output, *flags, config=config, ranks=ranks, script=script, launcher=launcher)


def events(run: Run, kind: str) -> list[dict]:
    """Lines of the metrics about one kind of event."""
    return [line for line in run.metrics if line.get("event") == kind]


def saved_steps(output: Path) -> list[int]:
    """Updates of the whole checkpoints of a run, in order."""
    return [int(path.name.removeprefix("step-")) for path in CheckpointStore(output).all()]


def start_run(output: Path, data: Path, fault: str, *more, ranks: int = 2) -> subprocess.Popen:
    """Start the run of ``trained`` under DeepSpeed's launcher and do not wait for it."""
    launcher = ["deepspeed", "--num_accelerators", ranks, "--master_port", free_port(), FAULTY, fault]
    flags = ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--output_dir", output, "--recipe", RECIPE]
    command = [*launcher, *flags, "--data", data, "--micro_batch_size", 8 // ranks, *more]
    with open(output.with_suffix(".log"), "w") as log:
        return subprocess.Popen([str(word) for word in command], env=environment(), stdout=log, stderr=log)


def wait_for_update(output: Path, update: int, process: subprocess.Popen) -> None:
    """Until it is in the metrics; ``AssertionError`` if the run ends before, or takes too long."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "metrics.jsonl").exists() and f'"step": {update},' in (output / "metrics.jsonl").read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"update {update} was never reached:\n" + output.with_suffix(".log").read_text())


def ranks_of(launcher: subprocess.Popen) -> list[psutil.Process]:
    """Processes that a launcher has started as ranks, as far as they are there already."""
    found = []
    with suppress(psutil.Error):  # processes come and go
        for process in psutil.Process(launcher.pid).children(recursive=True):
            with suppress(psutil.Error):
                found += [process] if "RANK" in process.environ() else []
    return found
