"""A trace of one step, by ``torch.profiler``: where its time goes, on the CPU and on the device.

    OUT/profile/step-00000100-rank-00000.json     one file for each rank, for chrome://tracing or https://ui.perfetto.dev

Spans divide a step: ``agreement`` (waiting for what the ranks agree on), ``forward``, ``backward`` and ``optimizer`` for
each micro-batch, and ``data`` (waiting for the batches of the next step). The profiler warms up during the step before,
which is thus slower.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from mpnet_ds.quiet import stderr_without

FOLDER = "profile"
"""Subfolder of the output for traces."""
SPANS = ("agreement", "forward", "data", "backward", "optimizer")
_NOTHING = nullcontext()


class Profiler:
    """Profiler of one step of a run; without a step to profile it does nothing and ``is_on`` stays False.

    Args:
        output: the run's folder.
        step: the step, from 1; None profiles none.
        rank: this process's rank.
        device: the model's device.
        say: prints a message; called on every rank.
    """

    def __init__(self, output: Path, step: int | None, rank: int, device: torch.device, say: Callable[[str], None]):
        self.step, self._say = step, say
        self.path = output / FOLDER / f"step-{step or 0:08d}-rank-{rank:05d}.json"
        self._on_device = device.type == "cuda"
        self._profile: profile | None = None

    @property
    def is_on(self) -> bool:
        """Whether the profiler runs now, warming up or recording."""
        return self._profile is not None

    def span(self, name: str) -> AbstractContextManager:
        """Name a part of the step, for ``with``."""
        return record_function(name) if self.is_on else _NOTHING

    def begin(self, step: int) -> None:
        """Note that a step begins, and start the profiler when it is due."""
        if self.is_on and step == self.step:
            self._call("step")
        elif self.step is not None and step in (self.step - 1, self.step):
            self._start(warmup=self.step - step)

    def done(self, step: int) -> None:
        """Note that a step is done, and write the trace if it was the one to profile."""
        if self.is_on and step == self.step:
            self._call("step")
            self._write()
            self.close()

    def close(self) -> None:
        """Stop profiling; an incomplete trace is dropped."""
        if self.is_on:
            self._call("stop")
            self._profile = None

    def _start(self, warmup: int) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_device else [])]
        plan = schedule(wait=0, warmup=warmup, active=1, repeat=1)
        self._profile = profile(activities=activities, schedule=plan)
        self._call("start")

    def _call(self, what: str) -> None:
        """Start, advance or stop the profiler without its messages."""
        with stderr_without("USDT:.*] profiler_(start|stop)$"):
            getattr(self._profile, what)()

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.path))
        except (OSError, RuntimeError) as error:
            self._say(f"warning: the trace could not be written ({error}); training continues.")
            return
        table = describe(self._profile.key_averages(), self._on_device)
        self._say(f"Step {self.step} is profiled in {self.path} (open it in https://ui.perfetto.dev)\n{table}")


def describe(averages, on_device: bool, count: int = 10) -> str:
    """List the most expensive operators, one a line: name, calls, own time in ms and its share of all operators'.

    Args:
        averages: ``profile.key_averages()``.
        on_device: by time on the device rather than the CPU.
        count: number of operators.
    """
    attribute = "self_device_time_total" if on_device else "self_cpu_time_total"
    rows = [(getattr(row, attribute), row.count, row.key) for row in averages if not _is_frame(row.key)]
    total = sum(microseconds for microseconds, _, _ in rows) or 1
    rows = sorted(rows, reverse=True)[:count]
    lines = [f"{'operator':<48}{'calls':>7}{'ms':>10}{'share':>8}"]
    lines += [f"{key[:47]:<48}{calls:>7}{time / 1000:>10.2f}{time / total:>8.1%}" for time, calls, key in rows]
    return "\n".join(f"  {line}" for line in lines)


def _is_frame(name: str) -> bool:
    """Whether a name is of a span around operators rather than of an operator."""
    return name in SPANS or name.startswith("ProfilerStep")
