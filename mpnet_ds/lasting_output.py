"""Standard output and error that outlive their readers.

A launcher that is told to stop dies first, and with it the pipe into which its ranks print. They still have a checkpoint to
write, and must not die of a message about it.
"""

import os
import sys
from typing import TextIO


class LastingStream:
    """A text stream that throws away what nobody reads any more; all else is that of ``stream``."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes ``text``, or drops it if the reader has gone."""
        try:
            return self._stream.write(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Hands on what is buffered, or drops it."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _let_go(self) -> None:
        """From now on it all goes nowhere, also what other code writes to the same file."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def outlive_readers() -> None:
    """Makes ``sys.stdout`` and ``sys.stderr`` such streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, LastingStream):
            setattr(sys, name, LastingStream(stream))
