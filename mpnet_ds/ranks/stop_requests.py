"""What all ranks decide together before each update: go on, save, or stop.

A run is asked to stop by a signal to any rank (SIGTERM; SIGUSR1, which SLURM sends before time is up; SIGINT, Ctrl-C), by
the end of the launcher that started the ranks, or by a file ``STOP`` in its output folder; a file ``SAVE`` asks for a
checkpoint. Requests of all ranks are added up in one small all-reduce between processors (gloo: nothing waits for the
device), so that all ranks act before the same update. The same all-reduce counts the slots that the update predicts. It
begins while the update before is being computed, which hides it: what is asked of a rank later than that waits for one
update more.

DeepSpeed's launcher is two processes: ``deepspeed`` starts ``launch.py``, which starts the ranks. The former dies of
any of these signals and tells nobody; the latter passes SIGTERM and SIGINT on as SIGTERM, to one rank after the other.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import psutil
import torch
import torch.distributed

from mpnet_ds.ranks.process_group import Ranks, ancestors, connecting

EXIT_REQUEUE = 75
"""Exit code of a run that was told to stop by its surroundings, saved, and can go on: EX_TEMPFAIL of sysexits.h."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
SECONDS_BETWEEN_LOOKS = 1.0  # at the launcher


class Request(IntEnum):
    """What may be asked of a run; the higher one wins."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    """By the file: the run ends as if it were done."""
    INTERRUPT = 3
    """By Ctrl-C."""
    REQUEUE = 4
    """By whatever runs the machine."""

    @property
    def cause(self) -> str:
        """What asked, in words."""
        return {Request.STOP: "the file STOP", Request.INTERRUPT: "Ctrl-C", Request.REQUEUE: "a signal"}.get(self, "")

    @property
    def exit_code(self) -> int:
        """Of a run that it stopped, and that could be saved."""
        return {Request.INTERRUPT: EXIT_INTERRUPTED, Request.REQUEUE: EXIT_REQUEUE}.get(self, 0)

    @property
    def stops(self) -> bool:
        """Whether training ends."""
        return self >= Request.STOP


@dataclass(frozen=True)
class Agreement:
    """What holds on all ranks."""

    request: Request
    num_targets: list[int]
    """Targets of each term of the loss in this step, on all ranks."""


class Control:
    """One run's requests. Signals are caught between ``__enter__`` and ``__exit__``; every rank must have one.

    The first signal only asks; a second SIGINT ends the process at once, any other repeated signal does no harm.
    """

    def __init__(self, output: Path, ranks: Ranks):
        self.output, self.ranks = output, ranks
        self._asked = Request.NOTHING
        self._group = _connect() if ranks.world_size > 1 else None
        self._handlers: dict = {}
        self._launchers = _launchers()
        self._looked = time.monotonic()

    def __enter__(self) -> "Control":
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info) -> None:
        # A warning that time is nearly up may come yet, and must not end processes that are leaving: their exit code counts.
        if self._handlers[signal.SIGUSR1] == signal.SIG_DFL:
            self._handlers[signal.SIGUSR1] = signal.SIG_IGN
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agree(self, num_targets: Sequence[int] = ()) -> Agreement:
        """Adds up what the ranks were asked; every rank must call it, at the same point."""
        return self.begin(num_targets)()

    def begin(self, num_targets: Sequence[int] = ()) -> Callable[[], Agreement]:
        """Begins to add up what the ranks have been asked by now; what it returns waits for the sum.

        Every rank must begin the same agreements in the same order. What is asked later on is for the next one.
        """
        asked = max(self._look(), self._asked)  # the look may ask
        counts = torch.zeros(len(Request) + len(num_targets), dtype=torch.int64)
        counts[asked] = 1
        counts[len(Request) :] = torch.tensor(num_targets, dtype=torch.int64)
        work = self._group and torch.distributed.all_reduce(counts, group=self._group, async_op=True)

        def finish() -> Agreement:
            if work is not None:
                work.wait()
            totals = counts.tolist()
            return Agreement(max(request for request in Request if totals[request]), totals[len(Request) :])

        return finish

    def answered(self, request: Request) -> None:
        """Removes the file that asked."""
        if self.ranks.is_main and request in _FILES:
            (self.output / _FILES[request]).unlink(missing_ok=True)

    def _look(self) -> Request:
        """At the files, on rank 0, and now and then at the launcher."""
        now = time.monotonic()
        if now - self._looked >= SECONDS_BETWEEN_LOOKS and not self._asked.stops:
            self._looked = now
            if _launchers()[: len(self._launchers)] != self._launchers:
                self._say("the launcher has gone")
                self._asked = Request.REQUEUE
        if not self.ranks.is_main:
            return Request.NOTHING
        return max((request for request, name in _FILES.items() if (self.output / name).exists()), default=Request.NOTHING)

    def _on_signal(self, number: int, frame) -> None:
        if not self._asked.stops:  # the first says why; launchers let SIGTERM follow on SIGINT
            self._asked = Request.INTERRUPT if number == signal.SIGINT else Request.REQUEUE
            again = "; again Ctrl-C ends at once and saves nothing" if number == signal.SIGINT else ""
            self._say(f"{signal.Signals(number).name}{again}")
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _say(self, what: str) -> None:
        # Not print: a signal may come in the middle of one.
        if self.ranks.local_rank == 0:
            with suppress(OSError):  # the launcher that read it may have gone
                os.write(2, f"{what}: the run saves and stops before the next update.\n".encode())


def _connect():
    """A group of all ranks that talks between processors."""
    with connecting():
        return torch.distributed.new_group(backend="gloo")


_FILES = {Request.SAVE: "SAVE", Request.STOP: "STOP"}


def _launchers() -> list[int]:
    """Process ids of the launchers above this process, nearest first: ``launch.py`` and ``deepspeed``, or ``torchrun``."""
    found = []
    for process in ancestors():
        try:
            program, *words = process.cmdline()[:4] or [""]  # empty: it is about to end
        except psutil.Error:
            break  # it has just ended, and with it the chain
        if "python" not in program or not re.search(r"\b(deepspeed|torchrun|torch\.distributed)\b", " ".join(words)):
            break
        found.append(process.pid)
    return found
