"""Standard output and standard error that survive the loss of their reader.

A launcher that is told to stop exits first, and with it the pipe into which its ranks print. They still have to write a
checkpoint, and must not fail because of a message.
"""

import os
import sys
from typing import TextIO


class LastingStream:
    """A text stream that discards output once its reader is gone; otherwise it behaves like ``stream``."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``, or discard it if the reader is gone."""
        try:
            return self._stream.write(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Flush the buffer, or discard it if the reader is gone."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _let_go(self) -> None:
        """Redirect the file to /dev/null, also for other code that writes to it."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def outlive_readers() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by such streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, LastingStream):
            setattr(sys, name, LastingStream(stream))
