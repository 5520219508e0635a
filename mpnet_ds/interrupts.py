"""Temporary handling of Ctrl-C (SIGINT). Only the main thread can change it; in other threads these do nothing."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType


def ignore_interrupts() -> AbstractContextManager[None]:
    """Ignore Ctrl-C."""
    return _handled_by(signal.SIG_IGN)


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block; processes that are started in it have SIGINT blocked.

    Blocking it is not enough: a thread of a library would receive it, and Python would raise it in the main thread.
    """
    pressed = []
    with _handled_by(lambda *what: pressed.append(what)):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupt_once() -> Iterator[None]:
    """Let the first Ctrl-C interrupt the block and ignore the others, so that cleaning up is not interrupted.

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
