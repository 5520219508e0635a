"""Progress of long operations: a bar on a terminal, occasional plain lines elsewhere."""

import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts ``total`` units of work (None: unknown), in any thread, and shows the progress on standard error.

    On a terminal this is a ``tqdm`` bar; in a log file or a pipe it prints a line every ``SECONDS_BETWEEN_LINES``, or none
    with ``plain_lines=False``, for work that prints lines itself.
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
        self.what, self.total, self.unit, self.done = what, total, unit, initial
        self._note, self._lock = "", threading.Lock()
        self._enabled, self._plain_lines = enabled, plain_lines
        self._last_line = time.monotonic()
        on_terminal = enabled and sys.stderr.isatty()
        scale = unit == "B"
        self._bar = (
            tqdm(total=total, initial=initial, desc=what, unit=unit, unit_scale=scale, dynamic_ncols=True)
            if on_terminal
            else None
        )

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
            elif self._enabled and self._plain_lines and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
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
        """Stop updating the bar."""
        if self._bar is not None:
            self._bar.close()


def show_duration(seconds: float) -> str:
    """Format a duration as ``2h05m``, ``3m20s`` or ``12s``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
