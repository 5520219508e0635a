"""What Ctrl-C (SIGINT) does for a while. Only the main thread can say so: in others the handler stays as it is."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ctrl-C does nothing."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Ctrl-C takes effect at the end, and never in processes that are started meanwhile: there SIGINT stays blocked.

    To block it here is not enough: a thread that a library started takes it, and Python raises it in the main thread.
    """
    pressed = []
    with _handled_by(lambda *what: pressed.append(what)), _blocked():
        yield
    if pressed:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupt_once() -> Iterator[None]:
    """The first Ctrl-C interrupts; others do nothing, so that it comes out of the block as it is.

    A program that ignores SIGINT, or has a handler of its own, keeps that.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with _handled_by(_interrupt_and_ignore_the_next):
        yield


def _interrupt_and_ignore_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    signal.default_int_handler(number, frame)


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
