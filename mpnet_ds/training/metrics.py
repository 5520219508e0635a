"""Reports of a run: ``metrics.jsonl``, TensorBoard and the other monitors of DeepSpeed's JSON, a line on the terminal.

``metrics.jsonl`` has one object a line. A training line:

    {"step": 100, "consumed_samples": 4800, "loss": 6.12, "accuracy": 0.11, "loss/mpnet": 6.12, "accuracy/mpnet": 0.11,
     "masked_loss": 6.2, "masked_accuracy": 0.1, "learning_rate": 0.002, "grad_norm": 1.3, "tokens_per_second": 21000.0,
     "predicted_tokens_per_second": 3280.0, "data_wait": 0.0004, "memory": 1503238553, "mfu": 0.31, "unigram_loss": 6.83,
     "time": "2026-11-28T15:02:11.123+00:00"}

``loss`` (nats) is the weighted sum of the terms' means over all their targets since the last line, ``accuracy`` the first
term's; ``loss/TERM`` and ``accuracy/TERM`` are each term's own; ``masked_loss`` and ``masked_accuracy`` are those of the
targets that are read as ``<mask>``. ``data_wait`` is the share of time that rank 0 waited for batches; ``memory`` is rank
0's peak since its start, in bytes; ``mfu`` is present if the device's peak is known; ``unigram_loss`` is what word
frequencies alone give (data/samples/unigram.py). The first line of a session has ``first_step_seconds`` as well: its first
step loads and perhaps compiles kernels, so it is in none of the rates, which are null if there was no other. An evaluation
line has ``step``, ``consumed_samples`` and the losses of the evaluation data: ``eval_loss``, ``eval_accuracy`` … Other lines
have ``step`` and report an event. Every line has ``time``, when it was written, in UTC. A number that is NaN or infinite,
which JSON cannot express, is null.
"""

import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mpnet_ds.accelerators import accelerator_of
from mpnet_ds.files import RecordFile, write_atomically
from mpnet_ds.machine import GIB
from mpnet_ds.metrics_file import FILE_NAME, read_metrics, time_stamp
from mpnet_ds.progress import show_duration
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.training.monitors import WANDB_RUN, Monitors, known_wandb_id, open_monitors

GAP, LONGEST_LEFT = "  ", len("99h59m left")


class MetricsWriter:
    """Writer of metrics on rank 0; on other ranks every method does nothing."""

    def __init__(self, output: Path, monitors: dict, is_main: bool, first_step: int):
        self._monitors: Monitors | None = None
        self.withdrawn: list[int] | None = None
        """First and last step that earlier starts reported and this one repeats, if any."""
        if not is_main:
            return
        self.path = output / FILE_NAME
        earlier = read_metrics(self.path)
        self._withdraw(earlier, first_step)
        self._lines, self._has_complained = RecordFile(self.path), False
        self._monitors = open_monitors(output, monitors, first_step, earlier)
        at_wandb = self._monitors.wandb_id
        if at_wandb not in (None, known_wandb_id(earlier)):
            self.write({"step": max(first_step - 1, 0), "event": WANDB_RUN, "id": at_wandb})

    def _withdraw(self, earlier: list[dict], first_step: int) -> None:
        """Drop lines of steps that a resumed run repeats, and a line that was cut short by a kill."""
        kept = [line for line in earlier if line["step"] < first_step]
        if len(kept) < len(earlier):
            self.withdrawn = [first_step, max(line["step"] for line in earlier)]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if self.path.exists() and self.path.read_text(encoding="utf-8", errors="replace") != text:
            write_atomically(self.path, text)

    def write(self, line: dict) -> None:
        """Append a line, which has at least ``step``, and pass its finite numbers to the monitors."""
        if self._monitors is None:
            return
        self._lines.write(json.dumps(_finite_or_null(line | {"time": time_stamp()}), allow_nan=False).encode() + b"\n")
        numbers = {name: value for name, value in line.items() if _is_finite_number(value)}
        events = [(_monitor_name(n), v, line["step"]) for n, v in numbers.items() if n not in ("step", "consumed_samples")]
        failures = [*self._flush(), *self._monitors.write_events(events)]
        if failures and not self._has_complained:
            text = f"metrics cannot be written ({failures[0]}); training continues, they are written when that works again."
            print(f"warning: {text}", file=sys.stderr, flush=True)
        self._has_complained = bool(failures)

    def _flush(self) -> list[OSError]:
        try:
            self._lines.flush()
        except OSError as error:
            return [error]
        return []

    def close(self) -> None:
        """Write what could not be written so far, or say that it is lost."""
        if self._monitors is not None:
            failures = [*self._flush(), *self._monitors.write_events([])]
            if failures:
                print(f"warning: the last metrics are lost ({failures[0]}).", file=sys.stderr, flush=True)


class Throughput:
    """Rates since the last restart, from wall-clock time between two synchronisations with the device.

    Padding is not counted as tokens, but is work for the device: it counts in ``mfu`` only.

    Args:
        flops_per_sequence: of forward and backward.
        global_batch_size: sequences of a step.
        tokens_per_sequence: mean number of tokens in a sequence, without padding.
        precision: that of the engine, ``fp32``, ``bf16`` or ``fp16``.
        clock: returns seconds.
    """

    def __init__(
        self,
        flops_per_sequence: float,
        global_batch_size: int,
        tokens_per_sequence: float,
        ranks: Ranks,
        precision: str,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.tokens = global_batch_size * tokens_per_sequence
        self.flops = global_batch_size * flops_per_sequence
        peak = peak_flops(ranks.device, precision)
        self.peak = peak * ranks.world_size if peak else None
        self.device, self._clock = ranks.device, clock
        self._seconds_of_first: float | None = None
        self.steps_per_second = 1.0
        """Rate found by the last ``measure``."""
        self.restart(step=0)

    def restart(self, step: int) -> None:
        """Start measuring now; ``step`` steps are done."""
        self._step, self._time = step, self._clock()
        self.waited = 0.0
        """Seconds waited for data since then; the caller adds to it."""
        self.predicted = 0
        """Targets of the first term since then; the caller adds to it."""

    def leave_out_first(self, step: int) -> float:
        """Start measuring now, leaving the first step of a session, ``step``, out of all rates; return its seconds."""
        self._seconds_of_first = self._clock() - self._time
        self.restart(step)
        return self._seconds_of_first

    def measure(self, step: int) -> dict[str, float]:
        """Measure tokens_per_second, predicted_tokens_per_second, data_wait, memory (bytes) and, if known, mfu.

        Rates are NaN if there was only the session's first step, which is reported once, as ``first_step_seconds``.
        """
        seconds, done = max(self._clock() - self._time, 1e-9), step - self._step
        self.steps_per_second = done / seconds
        rate = self.steps_per_second if done else math.nan
        measured = {
            "tokens_per_second": rate * self.tokens,
            "predicted_tokens_per_second": self.predicted / seconds if done else math.nan,
            "data_wait": min(self.waited / seconds, 1.0),
            "memory": peak_memory(self.device),
        }
        if self.peak:
            measured["mfu"] = rate * self.flops / self.peak
        if self._seconds_of_first is not None:
            measured["first_step_seconds"], self._seconds_of_first = self._seconds_of_first, None
        self.restart(step)
        return measured


def describe(line: dict, max_steps: int, seconds_left: float, columns: int) -> str:
    """Format a training line of ``metrics.jsonl`` for the terminal, in columns that line up from line to line.

    What is worth most goes first into the ``columns`` that there are; metrics.jsonl has everything. Perplexity is exp(loss),
    per predicted token; what a run does not know (``mfu``, ``grad_norm``) is omitted; a dash stands for the losses if all
    steps since the last line were skipped.
    """
    digits, loss, norm = len(str(max_steps)), line["loss"], line.get("grad_norm")
    left = f"{show_duration(seconds_left) if math.isfinite(seconds_left) else '?'} left"
    parts = [  # and what each is worth, 0 most
        (0, f"step {line['step']:>{digits}}/{max_steps}"),
        (0, f"loss {loss:7.4f}".replace("nan", "  –")),
        (6, f"ppl {_in_columns(math.inf if loss > 700 else math.exp(loss), 6)}".replace("nan", "  –")),  # exp would overflow
        (4, f"acc {line['accuracy']:5.1%}".replace("nan%", "   –")),
        (3, f"lr {line['learning_rate']:.2e}"),
        (5, "" if norm is None else f"norm {_in_columns(norm, 5)}"),
        (1, f"{_rate(line['tokens_per_second'])} tok/s"),
        (9, f"{_rate(line['predicted_tokens_per_second'])} pred"),
        (7, f"MFU {line['mfu']:3.0%}" if "mfu" in line else ""),
        (10, f"wait {line['data_wait']:4.1%}"),
        (8, f"{line['memory'] / GIB:4.1f} GiB"),
        (2, left),
    ]
    shown, room = set(), columns
    for worth, text in sorted(parts):
        room -= (LONGEST_LEFT if text is left else len(text)) + len(GAP) if text else 0
        if worth and room + len(GAP) < 0:
            break
        shown.add(text)
    return GAP.join(text for _, text in parts if text and text in shown)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of the device in 16 bits; None if unknown, or in fp32."""
    if device.type != "cuda" or precision == "fp32":
        return None
    found = accelerator_of(torch.cuda.get_device_name(device))
    return found and found.tflops * 1e12


def peak_memory(device: torch.device) -> int:
    """Peak bytes of this process since its start: of tensors on a GPU, else of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would start at the parent process's memory
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _in_columns(value: float, width: int) -> str:
    """Format with as many decimals, two at most, as fit into ``width`` columns, or else as ``1e+09``."""
    texts = (f"{value:.{decimals}f}" for decimals in (2, 1, 0))
    return next((text for text in texts if len(text) <= width), f"{value:.0e}").rjust(width)


def _rate(count: float) -> str:
    """Format a rate in five columns: ``3,280``, ``21.5k``, `` 228k``, ``1.52M``."""
    if math.isnan(count):
        return "    ?"
    unit, divisor = ("M", 1e6) if count >= 999.5e3 else ("k", 1e3) if count >= 9_999.5 else ("", 1)
    return f"{count:5,.0f}" if not unit else _in_columns(count / divisor, 4) + unit


def _is_finite_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite_or_null(value):
    """Replace what JSON cannot express by null."""
    if isinstance(value, dict):
        return {name: _finite_or_null(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _monitor_name(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
