"""Progress of long operations: a bar on a terminal, occasional plain lines elsewhere."""

import os
import sys
import threading
from typing import TextIO

from tqdm import tqdm

from mpnet_ds import start_up

SECONDS_BEFORE_FIRST_LINE, SECONDS_BETWEEN_LINES = 0.5, 10.0


class Progress:
    """Counts ``total`` units of work (None: unknown), in any thread, and shows the progress on standard error.

    On a terminal this is a ``tqdm`` bar; in a log file or a pipe a thread prints a line after half a second and every
    ``SECONDS_BETWEEN_LINES`` from then on, or none with ``plain_lines=False``, for work that prints lines itself.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str = "it",
        initial: int = 0,
        enabled: bool = True,
        plain_lines: bool = True,
    ):
        start_up.hand_over()
        self.what, self.total, self.unit, self.done = what, total, unit, initial
        self._note, self._lock, self._enabled = "", threading.Lock(), enabled
        self._bar, self._is_closed = None, threading.Event()
        if enabled and sys.stderr.isatty():
            knows_width = os.get_terminal_size(sys.stderr.fileno()).columns > 0  # else tqdm would show nothing
            width = {"dynamic_ncols": True} if knows_width else {"ncols": 80, "nrows": 24}
            self._bar = tqdm(total=total, initial=initial, desc=what, unit=unit, unit_scale=unit == "B", **width)
        elif enabled and plain_lines:
            threading.Thread(target=self._print_lines, name="progress", daemon=True).start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Add ``count`` finished units."""
        with self._lock:
            self.done += count
            if self._bar is not None:
                self._bar.update(count)

    def _print_lines(self) -> None:
        seconds = SECONDS_BEFORE_FIRST_LINE
        while not self._is_closed.wait(seconds):
            seconds = SECONDS_BETWEEN_LINES
            share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
            note = f"  {self._note}" if self._note else ""
            of = f" of {self.total:,}" if self.total else ""
            print(f"{self.what}: {self.done:,}{of} {self.unit}{share}{note}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show ``text`` after the bar, or at the end of the next line."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def write(self, line: str, file: TextIO | None = None) -> None:
        """Print a line, by default to standard output, without breaking the bar."""
        if self._enabled:
            file = file or sys.stdout
            tqdm.write(line, file=file) if self._bar is not None else print(line, file=file, flush=True)

    def close(self) -> None:
        """Stop updating the bar, and printing lines."""
        self._is_closed.set()
        if self._bar is not None:
            self._bar.close()


def show_duration(seconds: float) -> str:
    """Format a duration as ``2h05m``, ``3m20s`` or ``12s``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
