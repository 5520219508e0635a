"""What a run says until its first step: a line when each part of the start begins, and while a part takes long.

Libraries take seconds to load, on a network disk a minute: nobody should wonder whether anything happens. Rank 0 speaks, on
standard output. This file imports nothing that takes time, since its first line comes before everything else.
"""

import os
import sys
import threading
import time

RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "FLUX_TASK_RANK", "PMI_RANK", "SLURM_PROCID")
"""Environment variables that hold the rank before ranks/launchers.py is loaded; the first that is set counts."""
PATIENCE = 2.5  # seconds of a part until a line says that it is still running
LONG, RARELY = 60.0, 10.0  # after that many seconds of a part, a line every so many

_now: "_StartUp | None" = None


class _StartUp:
    """The start that is under way in this process, told by a thread of its own."""

    def __init__(self):
        self._begin, self._what, self._since = time.monotonic(), "", time.monotonic()
        self._changed, self._is_over = threading.Condition(), False
        self._thread = threading.Thread(target=self._repeat, name="start-up", daemon=True)

    def enter(self, what: str) -> None:
        with self._changed:
            self._what, self._since = what, time.monotonic()
            self._say(what)
            self._changed.notify()
        if not self._thread.is_alive():
            self._thread.start()

    def end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._begin:5.1f} s] {text}", flush=True)

    def _repeat(self) -> None:
        with self._changed:
            while not self._is_over:
                is_news = self._changed.wait(PATIENCE if time.monotonic() - self._since < LONG else RARELY)
                if not is_news and not self._is_over:
                    self._say(f"still {self._what}, for {time.monotonic() - self._since:.0f} s")


def begin(what: str) -> None:
    """From now on ``enter`` speaks, on rank 0, until ``end``; the first line is ``what``, unless --help is asked for."""
    global _now
    rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
    if rank == "0" and not {"-h", "--help"}.intersection(sys.argv):
        _now = _StartUp()
        enter(what)


def enter(what: str) -> None:
    """Say what begins, such as ``loading PyTorch``."""
    if _now is not None:
        _now.enter(what)


def end() -> None:
    """Say no more: the first step is done, or the program ends."""
    global _now
    if _now is not None:
        _now.end()
    _now = None
