"""What a program says until it shows its progress: a line when each part of the start begins, and while a part takes long.

Libraries take seconds to load, on a network disk a minute: nobody should wonder whether anything happens. A run speaks from
the beginning to its first step, on rank 0's standard output. Other programs, whose output may be read by others, speak on
standard error, and only if they take longer than ``AFTER``. This file imports nothing that takes time, since its first line
comes before everything else.
"""

import os
import sys
import threading
import time
from typing import TextIO

RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "FLUX_TASK_RANK", "PMI_RANK", "SLURM_PROCID")
"""Environment variables that hold the rank before ranks/launchers.py is loaded; the first that is set counts."""
PATIENCE = 2.5  # seconds of a part until a line says that it is still running
AFTER = 1.5
"""Seconds after which a program other than a run says what it does."""
LONG, RARELY = 60.0, 10.0  # after that many seconds of a part, a line every so many

_now: "_StartUp | None" = None


class _StartUp:
    """The start that is under way in this process, told by a thread of its own; silent for ``after`` seconds."""

    def __init__(self, after: float, file: TextIO | None):
        self.after, self._file, self._is_silent = after, file, after > 0
        self._begin, self.what, self._since = time.monotonic(), "", time.monotonic()
        self._changed, self._is_over = threading.Condition(), False
        self._thread = threading.Thread(target=self._repeat, name="start-up", daemon=True)

    def enter(self, what: str) -> None:
        """Begin ``what``; nothing is said while it is empty."""
        with self._changed:
            self.what, self._since = what, time.monotonic()
            if what and not self._is_silent:
                self._say(what)
            self._changed.notify()
        if not self._thread.is_alive():
            self._thread.start()

    def end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._begin:5.1f} s] {text}", file=self._file, flush=True)

    def _repeat(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over, self.after)
            self._is_silent = False
            if self.after and self.what and not self._is_over:
                self._say(self.what)
            while not self._is_over:
                is_news = self._changed.wait(PATIENCE if time.monotonic() - self._since < LONG else RARELY)
                if not is_news and self.what and not self._is_over:
                    self._say(f"still {self.what}, for {time.monotonic() - self._since:.0f} s")


def begin(what: str, after: float = 0.0, file: TextIO | None = None) -> None:
    """From now on ``enter`` speaks, on rank 0, until ``end``; the first line is ``what``, unless --help is asked for.

    Args:
        after: seconds to wait before the first line.
        file: default: standard output.
    """
    global _now
    end()
    rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
    if rank == "0" and not {"-h", "--help"}.intersection(sys.argv):
        _now = _StartUp(after, file)
        enter(what)


def enter(what: str) -> None:
    """Say what begins, such as ``loading PyTorch``."""
    if _now is not None:
        _now.enter(what)


def hand_over() -> None:
    """Leave the word to a progress bar or the program's own output, until something else is entered.

    A run keeps it until its first step.
    """
    if _now is not None and _now.after and _now.what:
        _now.enter("")


def is_on() -> bool:
    """Whether this process is starting, and speaks of it."""
    return _now is not None


def end() -> None:
    """Say no more: the first step is done, or the program ends."""
    global _now
    if _now is not None:
        _now.end()
    _now = None
