"""Training jobs on a cluster, started on the first of their hosts with DeepSpeed's launcher, as a user would.

job = start(cluster, {first: 2, second: 1}, output, data)          # the run of ``undisturbed``, on three ranks
job.wait_for_update(3)
second.kill()
run = job.finish(timeout=60)                                        # a tests.runs.Run: code, out, err, losses, …
run = pretrain(cluster, {first: 1}, output, data, "--dry_run")      # both in one
"""

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts import Cluster, Host
from tests.cluster.namespaces import Inside
from tests.runs import RECIPE, ROOT, TIMEOUT, Run

ROWS = 8  # of a step, in the test recipe


@dataclass
class Job:
    """A job that runs; what it prints goes to ``<output>.out`` and ``<output>.err``."""

    process: Inside
    cluster: Cluster
    output: Path

    @property
    def out(self) -> str:
        """Printed so far, by the launcher and by all ranks."""
        return Path(f"{self.output}.out").read_text()

    @property
    def err(self) -> str:
        """Errors so far, by the launcher and by all ranks."""
        return Path(f"{self.output}.err").read_text()

    def wait_for_update(self, update: int, timeout: float = 120, output: Path | None = None) -> None:
        """Until it is in the metrics, of ``output`` where the run's folder is not ``self.output``.

        ``AssertionError`` if the job ends before, or does not get there in ``timeout`` seconds.
        """
        deadline, metrics = time.monotonic() + timeout, (output or self.output) / "metrics.jsonl"
        while time.monotonic() < deadline and self.process.poll() is None:
            if metrics.exists() and f'"step": {update},' in metrics.read_text():
                return
            time.sleep(0.1)
        raise AssertionError(f"update {update} was never reached:\n{self.out}\n{self.err}")

    def finish(self, timeout: float = TIMEOUT) -> Run:
        """Waits for the launcher's end; after so many seconds everything on all hosts is killed, and the test fails."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            for host in self.cluster.hosts:
                host.kill()
            raise AssertionError(f"the job did not end within {timeout} s:\n{self.out}\n{self.err}") from None
        return Run(code, self.out, self.err, self.output)


def start(
    cluster: Cluster,
    slots: Mapping[Host, int],
    output: Path,
    data: Path,
    *arguments: object,
    config: str = "zero2",
    script: list | None = None,
    launcher: tuple = (),
    before: tuple = (),
    at: Host | None = None,
    env: Mapping[str, str] | None = None,
) -> Job:
    """Starts the run of ``undisturbed`` with so many ranks on each host; does not wait for it.

    ``arguments`` are added to those of ``launch/pretrain.py`` (or ``script``, such as ``[FAULTY, fault]``), ``launcher``
    to those of ``deepspeed``, ``env`` to the environment of the launcher; ``before`` comes before ``deepspeed``. The
    launcher runs ``at`` this host, or at the first that has slots.
    """
    first = at or next(iter(slots))
    flags = ["--deepspeed_config", ROOT / "ds_configs" / f"{config}.json", "--recipe", RECIPE, "--data", data]
    flags += ["--output_dir", output, "--micro_batch_size", ROWS // sum(slots.values()), *arguments]
    command = [
        *before,
        "deepspeed",
        "--hostfile",
        cluster.hostfile(slots),
        *launcher,
        *(script or ["launch/pretrain.py"]),
        *flags,
    ]
    with open(f"{output}.out", "w") as out, open(f"{output}.err", "w") as err:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        return Job(first.popen(*command, env=env, cwd=ROOT, **pipes), cluster, output)


def pretrain(cluster: Cluster, slots: Mapping[Host, int], output: Path, data: Path, *arguments: object, **options) -> Run:
    """``start`` and ``finish``."""
    return start(cluster, slots, output, data, *arguments, **options).finish()
