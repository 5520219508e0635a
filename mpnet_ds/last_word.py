"""Who has the last word: a launcher ends all ranks as soon as one of them leaves with an exit code other than 0.

So one rank, the speaker, says how the run ended, and all leave by one handshake, ``leave_in_order``, which holds back those
that must not leave yet. Its users, and who speaks there:

    command_line   the first rank of each host, or rank 0 where the ranks have agreed on an error
    rendezvous     rank 0: when a rank does not come, and when the run is over
    watchdog       the rank whose alarm came first; rank 0 when another rank has failed
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress

HEAD_START = 5.0
"""Seconds that the speaker has where nothing tells the other ranks that it has spoken."""

Wait = Callable[[float], object]
"""Waits for something, for so many seconds at most: ``threading.Event.wait``, for example."""


def leave_in_order(
    is_speaker: bool, seconds: float = HEAD_START, spoken: Wait | None = time.sleep, heard: Wait | None = None
) -> None:
    """Return when this rank may leave, which the speaker may at once unless it is still needed (``heard``).

    Args:
        seconds: longest wait, whatever became of the other ranks.
        spoken: how the other ranks wait for the speaker; None: they have done so already.
        heard: how the speaker waits for those that need it still, since its end is the store's, for example; None: nobody.
    """
    wait = heard if is_speaker else spoken
    if wait is not None:
        wait(seconds)


def say(text: str) -> None:
    """Write to standard error itself: another thread, or what a signal interrupted, may hold the lock of the stream."""
    with suppress(OSError):  # the launcher that read it may be gone
        os.write(2, (text + "\n").encode())
