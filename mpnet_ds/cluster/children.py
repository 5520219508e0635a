"""Processes that an agent starts: each leads a group of its own, and all end with the agent.

Their standard input is a pipe that stays open while they and this process live; one that waits for long should leave when
it ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

_living: set["Child"] = set()


@dataclass(frozen=True)
class Ended:
    """What a child leaves."""

    code: int
    """Exit code, below 0 that of a signal."""
    was_late: bool
    """It did not end by itself in time."""
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """Of its errors; empty where there are none."""
        return next((line.strip() for line in reversed(self.err.splitlines()) if line.strip()), "")


class Child:
    """This interpreter, started anew with ``arguments`` and further environment ``variables``."""

    def __init__(self, *arguments: str, variables: dict[str, str] | None = None):
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        streams = {"stdin": subprocess.PIPE, "stdout": self._out, "stderr": self._err}
        environ = os.environ | (variables or {})
        self._process = subprocess.Popen([sys.executable, *arguments], **streams, env=environ, start_new_session=True)
        _living.add(self)

    def finish(self, seconds: float) -> Ended:
        """Waits for its end, at most so long, then ends it."""
        try:
            self._process.wait(seconds)
            was_late = False
        except subprocess.TimeoutExpired:
            was_late = True
        self.end()
        return Ended(self._process.wait(), was_late, _text(self._out), _text(self._err))

    def end(self) -> None:
        """Ends it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.stdin.close()
        _living.discard(self)


def end_all() -> None:
    """Ends all that were started and not ended yet."""
    for child in list(_living):
        child.end()


def _text(file) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")
