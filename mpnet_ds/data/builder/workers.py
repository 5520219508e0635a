"""Processes that build shards: each takes the next shard plan and writes the files itself.

Only plans and byte counts pass between the processes. A worker exits when its parent does, however that ended, so that
no orphan writes into a folder that the next run has taken over.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from mpnet_ds.data.builder.plan import ShardPlan
from mpnet_ds.data.builder.shard_builder import Job, ShardBuilder
from mpnet_ds.errors import UserError
from mpnet_ds.interrupts import defer_interrupts, ignore_interrupts

_POLL_SECONDS = 0.2


def build_shards(job: Job, plans: dict[int, ShardPlan], advance: Callable[[int], None]) -> None:
    """Build the shards by number; raise ``UserError`` for the first one that cannot be built."""
    workers = min(job.options.num_workers(), len(plans))
    if workers == 1:
        builder = ShardBuilder(job)
        for number, plan in plans.items():
            builder.build(number, plan, advance)
        return
    context = multiprocessing.get_context("spawn")
    done_bytes, stop = context.Value("q", 0), context.RawValue("b", 0)
    arguments = (job, done_bytes, stop, os.getpid())
    pool = ProcessPoolExecutor(workers, context, initializer=_initialize, initargs=arguments)
    try:
        with defer_interrupts():  # before _initialize, a worker would print a traceback
            running = {pool.submit(_build, number, plan): number for number, plan in plans.items()}
        _wait_for_all(running, done_bytes, advance)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died. If it was killed for lack of memory, use fewer --workers; the same command continues "
            "this build. A script of your own needs 'if __name__ == \"__main__\":'."
        ) from error
    finally:
        with ignore_interrupts():  # a second Ctrl-C must not leave workers behind that were not told to stop
            stop.value = 1
            pool.shutdown(cancel_futures=True)


def _wait_for_all(running: dict[Future, int], done_bytes, advance: Callable[[int], None]) -> None:
    seen = 0
    while running:
        finished, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in sorted(finished, key=running.get):
            future.result()
            del running[future]
        now = done_bytes.get_obj().value  # without the lock: a killed worker may hold it forever
        advance(now - seen)
        seen = now


# In the worker process.

_builder: ShardBuilder
_advance: Callable[[int], None]


class _Stopped(Exception):
    """The build is being stopped: this shard is no longer needed."""


def _initialize(job: Job, done_bytes, stop, parent: int) -> None:
    global _builder, _advance
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()

    def advance(num_bytes: int) -> None:
        with done_bytes.get_lock():
            done_bytes.value += num_bytes
        if stop.value:
            raise _Stopped

    _builder, _advance = ShardBuilder(job), advance


def _build(number: int, plan: ShardPlan) -> None:
    _advance(0)  # the build may have been stopped while this process started
    _builder.build(number, plan, _advance)


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
