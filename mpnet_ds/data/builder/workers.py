"""Processes that build shards: each takes the next piece and writes its files itself.

Nothing but piece numbers and byte counts passes between the processes. A worker ends when its parent does, however that
ends, so that no orphan writes into a folder that the next run has taken over.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from mpnet_ds.data.builder.plan import Piece
from mpnet_ds.data.builder.shard_builder import Job, ShardBuilder
from mpnet_ds.errors import UserError
from mpnet_ds.interrupts import defer_interrupts, ignore_interrupts

_SECONDS_BETWEEN_LOOKS = 0.2


def build_shards(job: Job, pieces: dict[int, Piece], advance: Callable[[int], None]) -> None:
    """Builds the shards of the numbered pieces; raises ``UserError`` for the first piece that cannot be."""
    workers = min(job.options.num_workers(), len(pieces))
    if workers == 1:
        builder = ShardBuilder(job)
        for number, piece in pieces.items():
            builder.build(number, piece, advance)
        return
    context = multiprocessing.get_context("spawn")
    done_bytes, stop = context.Value("q", 0), context.RawValue("b", 0)
    arguments = (job, done_bytes, stop, os.getpid())
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=arguments)
    try:
        with defer_interrupts():  # a worker that has not come to _start would print a traceback
            waiting = {pool.submit(_build, number, piece): number for number, piece in pieces.items()}
        _await(waiting, done_bytes, advance)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker ended before its work was done. If it was killed for want of memory, take fewer --workers: the same "
            "command goes on from here. If this is a script of your own, it needs 'if __name__ == \"__main__\":'."
        ) from error
    finally:
        with ignore_interrupts():  # a second Ctrl-C must not leave workers behind that were not told to end
            stop.value = 1
            pool.shutdown(cancel_futures=True)


def _await(waiting: dict[Future, int], done_bytes, advance: Callable[[int], None]) -> None:
    seen = 0
    while waiting:
        finished, _ = wait(waiting, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
        for future in sorted(finished, key=waiting.get):
            future.result()
            del waiting[future]
        now = done_bytes.get_obj().value  # without the lock: a worker that was killed may hold it for ever
        advance(now - seen)
        seen = now


# In the worker.

_builder: ShardBuilder
_advance: Callable[[int], None]


class _Stopped(Exception):
    """The build ends: its files are not wanted any more."""


def _start(job: Job, done_bytes, stop, parent: int) -> None:
    global _builder, _advance
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def advance(num_bytes: int) -> None:
        with done_bytes.get_lock():
            done_bytes.value += num_bytes
        if stop.value:
            raise _Stopped

    _builder, _advance = ShardBuilder(job), advance


def _build(number: int, piece: Piece) -> None:
    _advance(0)  # the build may have ended while this process started
    _builder.build(number, piece, _advance)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
