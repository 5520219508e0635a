"""What Ctrl-C (SIGINT) does for a while. Only the main thread can say so: in others the handler stays as it is."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextmanager
def interrupted_later() -> Iterator[None]:
    """Ctrl-C takes effect at the end, and never in processes that are started meanwhile: there SIGINT stays blocked.

    To block it here is not enough: a thread that a library started takes it, and Python raises it in the main thread.
    """
    pressed = []
    with _handled_by(lambda *what: pressed.append(what)), _blocked():
        yield
    if pressed:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _handled_by(handler: Callable | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
