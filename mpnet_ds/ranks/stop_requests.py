"""Requests to stop a run or to save it, on which all ranks agree before each step.

A run is asked to stop by a signal to any rank (SIGTERM; SIGHUP, when its terminal closes, unless ``nohup`` has it ignored;
SIGUSR1, which SLURM sends before time is up; SIGINT, Ctrl-C), by the end of the launcher that started the ranks, or by a
file ``STOP`` in its output folder; a file ``SAVE`` asks for a checkpoint. The requests of all ranks are summed in one small
all-reduce between CPUs (gloo: nothing waits for the device), so that all ranks act before the same step. The same all-reduce
counts the predicted tokens of the step. It begins while the previous step is still being computed, which hides it: a request
that comes later than that waits for one more step.

DeepSpeed's launcher is two processes: ``deepspeed`` starts ``launch.py``, which starts the ranks. The former dies of
any of these signals and tells nobody; the latter passes SIGTERM and SIGINT on as SIGTERM, to one rank after the other.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import psutil
import torch
import torch.distributed

from mpnet_ds import start_up
from mpnet_ds.last_word import say
from mpnet_ds.ranks.process_group import Ranks, ancestors, connecting
from mpnet_ds.ranks.siblings import EXIT_CODE, STOPS

EXIT_REQUEUE = 75
"""Exit code of a run that was told to stop, has saved, and can be resumed: EX_TEMPFAIL of sysexits.h."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, the same as in shells."""
SECONDS_BETWEEN_LOOKS = 1.0  # for the launcher


class Request(IntEnum):
    """A request to a run; of several the highest counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    """From the file ``STOP``: the run ends as if it were done."""
    INTERRUPT = 3
    """From Ctrl-C."""
    REQUEUE = 4
    """From a scheduler's signal, or the end of the launcher."""

    @property
    def cause(self) -> str:
        """The origin of the request, in words."""
        return {Request.STOP: "the file STOP", Request.INTERRUPT: "Ctrl-C", Request.REQUEUE: "a signal"}.get(self, "")

    @property
    def exit_code(self) -> int:
        """Exit code of a run that this request has stopped and that has been saved."""
        return {Request.INTERRUPT: EXIT_INTERRUPTED, Request.REQUEUE: EXIT_REQUEUE}.get(self, 0)

    @property
    def stops(self) -> bool:
        """Whether the run ends."""
        return self >= Request.STOP


@dataclass(frozen=True)
class Agreement:
    """The sums over all ranks before a step."""

    request: Request
    num_targets: list[int]
    """Targets of each term of the loss in this step, on all ranks."""


class _BeforeTraining:
    """Handler of signals while nobody can stop between steps: what is asked is for ``StopRequests``.

    A rank that left at once would be missed by others that are further. Where one has left already, the launcher ends all.
    """

    def __init__(self, ranks: Ranks):
        self.ranks, self.is_asked = ranks, False

    def __call__(self, number: int, frame) -> None:
        if self.ranks.siblings.have_left and not self.ranks.siblings.is_ending(0):
            self.ranks.siblings.leave()
            os._exit(EXIT_CODE)
        if start_up.is_on() and not self.is_asked:
            say(f"{signal.Signals(number).name}: the run stops before its first step.")
        self.is_asked = True


@contextmanager
def noting_signals(ranks: Ranks) -> Iterator[None]:
    """Note the signals that come before ``StopRequests`` is entered: no rank is killed by them."""
    handler = _BeforeTraining(ranks)
    numbers = [number for number in STOPS if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is handler:
                # A warning that time is nearly up must not end processes that are leaving with their own code.
                signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR1 else signal.SIG_DFL)


class StopRequests:
    """The requests to one run, by signals between ``__enter__`` and ``__exit__`` and by files; every rank must have one.

    The first signal is a request; a second SIGINT ends the process at once, any other repeated signal does no harm. A SIGHUP
    that was ignored before (nohup) remains so.
    """

    def __init__(self, output: Path, ranks: Ranks):
        self.output, self.ranks = output, ranks
        self._asked, self._answered = Request.NOTHING, set()
        self._group = _connect() if ranks.world_size > 1 else None
        self._handlers: dict = {}
        self._launchers = _launchers()
        self._looked = time.monotonic()

    def __enter__(self) -> "StopRequests":
        for number in STOPS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._on_signal)
        if any(isinstance(earlier, _BeforeTraining) and earlier.is_asked for earlier in self._handlers.values()):
            self._asked = max(self._asked, Request.REQUEUE)
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if error is not None and self.ranks.siblings.is_ending():
            return  # signals are ignored now
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agree(self, num_targets: Sequence[int] = ()) -> Agreement:
        """Sum the requests to all ranks; every rank must call it, at the same point."""
        return self.begin(num_targets)()

    def begin(self, num_targets: Sequence[int] = ()) -> Callable[[], Agreement]:
        """Begin to sum the requests that have come by now; return a function that waits for the sum.

        Every rank must begin the same agreements in the same order. Later requests are for the next one.
        """
        asked = max(self._look(), self._asked)  # the look may set the latter
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
        """Remove the file of a request that has been carried out; where it stays, it is looked at no more."""
        if self.ranks.is_main and request in _FILES:
            try:
                (self.output / _FILES[request]).unlink(missing_ok=True)
            except OSError:
                self._answered.add(request)

    def _look(self) -> Request:
        """Look for the files, on rank 0, and now and then for the launcher."""
        now = time.monotonic()
        if now - self._looked >= SECONDS_BETWEEN_LOOKS and not self._asked.stops:
            self._looked = now
            if _launchers()[: len(self._launchers)] != self._launchers:
                self._announce("the launcher is gone")
                self._asked = Request.REQUEUE
        if not self.ranks.is_main:
            return Request.NOTHING
        files = {request: self.output / name for request, name in _FILES.items() if request not in self._answered}
        return max((request for request, path in files.items() if os.path.exists(path)), default=Request.NOTHING)

    def _on_signal(self, number: int, frame) -> None:
        if not self._asked.stops:  # the first is the reason; launchers send SIGTERM after SIGINT
            self._asked = Request.INTERRUPT if number == signal.SIGINT else Request.REQUEUE
            if number == signal.SIGINT:
                self._say("Ctrl-C: the run saves now and stops; a second Ctrl-C quits without saving.")
            else:
                self._announce(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._quit)

    def _quit(self, number: int, frame) -> None:
        self._say("Ctrl-C again: quitting without saving.")
        self.ranks.siblings.leave()
        os._exit(EXIT_INTERRUPTED)  # an exception might be raised in the middle of a save, and would be told to other ranks

    def _announce(self, cause: str) -> None:
        self._say(f"{cause}: the run saves and stops before the next step.")

    def _say(self, text: str) -> None:
        if self.ranks.local_rank == 0:
            say(text)


def _connect():
    """Make a group of all ranks that communicates between CPUs."""
    with connecting():
        return torch.distributed.new_group(backend="gloo")


_FILES = {Request.SAVE: "SAVE", Request.STOP: "STOP"}


def _launchers() -> list[int]:
    """Find the launchers above this process, nearest first: ids of ``launch.py`` and ``deepspeed``, or of ``torchrun``."""
    found = []
    for process in ancestors():
        try:
            program, *words = process.cmdline()[:4] or [""]  # empty if it is about to end
        except psutil.Error:
            break  # it has just ended, and with it the chain
        if "python" not in program or not re.search(r"\b(deepspeed|torchrun|torch\.distributed)\b", " ".join(words)):
            break
        found.append(process.pid)
    return found
