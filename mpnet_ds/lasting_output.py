"""Standard output and standard error that survive the loss of their reader.

A launcher that is told to stop exits first, and with it the pipe into which its ranks print; a terminal is closed; ``head``
has read enough. What a program is doing must not fail because of a message that nobody reads.
"""

import errno
import os
import sys
from typing import TextIO

from mpnet_ds import start_up

READER_IS_GONE = (errno.EPIPE, errno.EIO)
"""Errors of a pipe, and of a terminal, that nobody reads any more."""


class LastingStream:
    """A text stream that discards output once its reader is gone; otherwise it behaves like ``stream``.

    Args:
        speaks: whether the program's own output goes there, beside which nobody needs to be told that it has started.
    """

    def __init__(self, stream: TextIO, speaks: bool = False):
        self._stream, self._speaks = stream, speaks
        self.never_fails = False
        """Whether text is discarded, too, that cannot be written for another reason: the disk of a log may be full."""

    def write(self, text: str) -> int:
        """Write ``text``, or discard it if the reader is gone."""
        if self._speaks:
            start_up.hand_over()
        try:
            return self._stream.write(text)
        except OSError as error:
            self._forgive(error)
            return len(text)

    def flush(self) -> None:
        """Flush the buffer, or discard it if the reader is gone."""
        try:
            self._stream.flush()
        except OSError as error:
            self._forgive(error)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _forgive(self, error: OSError) -> None:
        """Redirect the file to /dev/null if its reader is gone, also for other code that writes to it."""
        if error.errno in READER_IS_GONE:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        elif not self.never_fails:
            raise error


def outlive_readers(never_fail: bool = False) -> None:
    """Replace standard output and standard error by such streams, which may ``never_fail``; closed ones by /dev/null."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # another file would get its number, and messages of C libraries with it
            while (nowhere := os.open(os.devnull, os.O_WRONLY)) < number:
                pass
            stream = os.fdopen(nowhere, "w")
        if not isinstance(stream, LastingStream):
            stream = LastingStream(stream, speaks=number == 1)
            setattr(sys, name, stream)
        stream.never_fails |= never_fail
