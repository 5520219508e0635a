"""Progress in logs and on terminals."""

import os
import pty
import queue
import sys
import threading

import pytest

from mpnet_ds import progress
from mpnet_ds.progress import Progress


class Lines(queue.Queue):
    """A stream: each text that is written to it."""

    def write(self, text: str) -> None:
        self.put(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def test_a_log_gets_lines_while_nothing_is_finished_and_none_after_the_end(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BEFORE_FIRST_LINE", 0.01)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(sys, "stderr", lines := Lines())
    with Progress("Reading", 2_000, unit="B") as reading:
        assert lines.get(timeout=10) == "Reading: 0 of 2,000 B (0 %)"
        reading.update(500)
        reading.note("so far")
        while (line := lines.get(timeout=10)) != "Reading: 500 of 2,000 B (25 %)  so far":
            assert line.isspace() or line.startswith("Reading: ")
    for thread in threading.enumerate():
        if thread.name == "progress":
            thread.join(10)
    while not lines.empty():
        lines.get()
    reading.update(1_500)
    with pytest.raises(queue.Empty):
        lines.get(timeout=0.05)


def test_a_terminal_that_does_not_know_its_width_shows_a_bar(monkeypatch):
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("Reading", 10):
            assert b"Reading:   0%" in os.read(master, 1000)
    os.close(master)
