"""A watchdog on each rank: when a run hangs it says which rank is to blame, writes all Python stacks, and ends the run.

The main thread calls ``beat`` at each phase of its work, which is one assignment. Two threads look on:

    watchdog    counts the time since the last beat; at ``timeout`` it raises the alarm, writes ``folder/rank-00001.txt``
                and, a little later, leaves the process with exit code 1 (the main thread cannot be unwound)
    heartbeats  posts how this rank is, and sees whether another rank has raised the alarm (heartbeat.py)

The rank whose alarm came first reads the heartbeats of all ranks and says who is to blame (blame.py). The alarm is also
raised when a rank is silent for ``lost_timeout`` (it is dead, stopped, or cut off), when a collective fails because another
rank is gone, and when a rank ends with an exception, for which the others would wait.

``timeout`` must exceed the longest phase, be it a compilation, an evaluation batch or the save of many GB. Time in which
the process was suspended (SIGSTOP) does not count; after a long one, stacks may be printed once, and the run continues.
"""

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Collection
from pathlib import Path

from mpnet_ds.last_word import leave_in_order, say
from mpnet_ds.ranks.blame import find_culprits, is_lost_contact, locate
from mpnet_ds.ranks.heartbeat import CONNECT_TIMEOUT, Heartbeat, Heartbeats
from mpnet_ds.ranks.launchers import name_ranks
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.ranks.siblings import EXIT_CODE, RESUME

FOLDER = "hang"
"""Folder of the output in which the ranks of a run that hangs leave their stacks."""
STARTING = ("starting", 0, 0)
"""The phase before the first beat, which may take as long as it likes: an engine is built, compiled, and loaded."""
LEAST_GRACE = 2.0  # seconds


class Watchdog:
    """``with Watchdog(ranks, output / "hang", timeout) as watchdog: … watchdog.beat("drawing data", step) …``

    Args:
        ranks: this process among the others; ``MASTER_ADDR`` and ``MASTER_PORT`` must name their store if there are others.
        folder: folder for the stacks, made when they are written.
        timeout: seconds without a beat, after the first; 0 waits for ever.
        lost_timeout: seconds of silence after which another rank is lost: dead, stopped or cut off; 0 waits for ever.
    """

    def __init__(self, ranks: Ranks, folder: Path, timeout: float, lost_timeout: float = 0):
        self.ranks, self.folder = ranks, Path(folder)
        self._has_others = ranks.world_size > 1
        self.timeout, self.lost_timeout = timeout, lost_timeout * self._has_others
        limits = [limit for limit in (self.timeout, self.lost_timeout) if limit]
        self._interval = min(5.0, max(0.25, min(limits, default=0) / 8))
        # For all ranks to see the alarm, write their stacks and post again; busy machines delay them by seconds.
        self._grace = max(LEAST_GRACE, 4 * self._interval)
        self._beat, self._age, self._unanswered = STARTING, 0.0, -CONNECT_TIMEOUT
        self._lost_contact: BaseException | None = None
        self._stopped = threading.Event()
        self._heartbeats = Heartbeats(ranks, self._interval, self.lost_timeout, self._heartbeat)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._main = threading.get_ident()
        if self.timeout or self.lost_timeout:
            if self._has_others:
                self._heartbeats.start()
                self.ranks.siblings.tell = self._tell_of_killed
            self._thread.start()
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if not self._thread.is_alive():
            return
        if error is not None and self._has_others:
            self._tell(error)
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._heartbeats.stop()

    def beat(self, phase: str, step: int) -> None:
        """Begin ``phase`` of ``step``. All ranks should go through the same phases of a step."""
        last = self._beat
        self._beat = (phase, step, last[2] + 1 if last[1] == step else 0)

    def _heartbeat(self, number: int = 0) -> Heartbeat:
        waiting, place = locate(sys._current_frames().get(self._main))
        return Heartbeat(self.ranks.rank, os.getpid(), *self._beat, self._age, waiting, place, number)

    def _tell(self, error: BaseException) -> None:
        """Tell the other ranks, which would wait for this one. Does not return if it is this one that has lost another."""
        me, text = f"rank {self.ranks.rank} ({self.ranks.host})", f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if is_lost_contact(error):
            self._lost_contact = error
            self._heartbeats.raise_alarm(f"{me} lost contact ({text})")
            self._thread.join()  # it finds out with whom, and ends the process
        self._heartbeats.raise_alarm(f"{me} failed: {text}", is_failure=True)
        self._stopped.set()
        self._heartbeats.has_alarm.wait(2 * self._interval)
        leave_in_order(self.ranks.is_main, 4 * self._interval, spoken=None, heard=self._heartbeats.seen_by_all.wait)

    def _tell_of_killed(self, cause: str) -> None:
        """Tell the other hosts, if there are any, that a rank of this one was killed."""
        if len(set(self.ranks.hosts)) > 1:
            self._heartbeats.raise_alarm(cause, is_failure=True)
            self._heartbeats.has_alarm.wait(2 * self._interval)
            leave_in_order(self.ranks.is_main, 4 * self._interval, spoken=None, heard=self._heartbeats.seen_by_all.wait)

    def _watch(self) -> None:
        seen = self._beat
        while not self._stopped.wait(self._interval):
            # Counted, not measured: the clock runs on while a job is suspended.
            beat = self._beat
            self._age = 0.0 if beat is not seen or beat is STARTING else self._age + self._interval
            self._unanswered = 0.0 if self._heartbeats.answered.is_set() else self._unanswered + self._interval
            self._heartbeats.answered.clear()
            seen = beat
            # Should the main thread hold the interpreter's lock, this thread gets no further: dump from C then.
            faulthandler.dump_traceback_later(self.timeout or self.lost_timeout, file=sys.__stderr__)
            cause = self._find_cause()
            if cause:
                self._end(cause)

    def _find_cause(self) -> str:
        """Return why the run must end, in words; empty if it need not."""
        if self.ranks.siblings.is_ending(0):  # which says more
            return ""
        if self._heartbeats.alarm is not None:
            return self._heartbeats.alarm.cause
        if self.timeout and self._age >= self.timeout:
            return f"no progress for {self.timeout:g} s (run.hang_timeout)"
        if self._lost_contact and (self._heartbeats.failure or self._unanswered >= self._grace):
            return f"rank {self.ranks.rank} ({self.ranks.host}) lost contact{self._heartbeats.failure}"
        if self.lost_timeout and self._unanswered >= self.lost_timeout:
            silence = f"no answer from the store of rank 0 for {self.lost_timeout:g} s (run.lost_timeout)"
            return f"{silence}{self._heartbeats.failure}"
        return ""

    def _end(self, cause: str) -> None:
        """Leave the process, unless the run ends by itself meanwhile."""
        last_resort = threading.Timer(3 * self._grace + 5, os._exit, [EXIT_CODE])  # files or stderr may hang as well
        last_resort.daemon = True
        last_resort.start()
        others, me = self._heartbeats, self._heartbeat()
        others.raise_alarm(cause)
        if others.alarm is not None and others.alarm.is_failure:
            self._follow(cause)
        others.answered.clear()
        written = self._write_stacks(me)
        if self._lost_contact is None:
            say(f"rank {me.rank}: {self._describe(me)}\n  {written}")
        if self._stopped.wait(self._grace):
            last_resort.cancel()
            return
        # Rank 0 is lost if its store does not answer, as the first rank of each host says, and rank 1 on rank 0's host.
        is_store_lost = self._has_others and not (others.alarm is not None and others.answered.is_set())
        if is_store_lost and (self.ranks.local_rank == 0 or self.ranks.rank == 1):
            say(self._verdict(cause, [me], {0}))
        elif not self._has_others:
            say(self._verdict(cause, [me], ()))
        elif others.is_speaker and not is_store_lost:
            others.can_tell.wait(2 * self._grace)
            say(self._verdict(cause, *others.read()))
        else:
            leave_in_order(False, 2 * self._interval)
        self._leave()

    def _follow(self, cause: str) -> None:
        """Leave the process because another rank has failed, which says more about it itself."""
        if self.ranks.is_main:
            say(f"error: {cause}. {RESUME}")
        # The rank that failed needs time to say why. If it is rank 0, the store tells when it has left.
        seconds = (2 if self.ranks.is_main else 8) * self._interval
        leave_in_order(False, seconds, spoken=self._heartbeats.store_is_gone.wait)
        self._leave()

    def _leave(self) -> None:
        self.ranks.siblings.leave()
        os._exit(EXIT_CODE)

    def _write_stacks(self, me: Heartbeat) -> str:
        """Write the stacks of all threads, the main thread's first; return what became of it."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = [f"rank {me.rank}: {self._describe(me)}\n"]
        if self._lost_contact is not None:
            parts += ["\n", *traceback.format_exception(self._lost_contact)]
        for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != self._main):
            parts += [f"\nThread {names.get(ident, ident)} (most recent call last):\n", *traceback.format_stack(frame)]
        path = self.folder / f"rank-{me.rank:05d}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(parts), encoding="utf-8")
        except OSError as error:
            return f"Its Python stacks could not be written ({error}):\n" + "".join(parts)
        return f"Its Python stacks are in {path}"

    def _verdict(self, cause: str, heartbeats: list[Heartbeat], silent: Collection[int]) -> str:
        culprits, reason = find_culprits(heartbeats, silent)
        known = {heartbeat.rank: heartbeat for heartbeat in heartbeats}
        who, one = name_ranks(culprits, self.ranks.hosts), len(culprits) == 1
        what = ("is lost" if one else "are lost") if silent else ("hangs" if one else "hang")
        blamed = f"{who} {what}" if reason or not self._has_others else f"nothing tells {who} apart"
        order = [*culprits, *sorted(known.keys() - set(culprits))][:16]
        ranks = [f"rank {rank}: {self._describe(known[rank]) if rank in known else 'no heartbeat'}" for rank in order]
        stacks = f"Python stacks of the ranks that could write them: {self.folder}"
        return "\n  ".join([f"error: {cause}: {blamed}", *([f"why: {reason}"] if reason else []), *ranks, stacks, RESUME])

    def _describe(self, heartbeat: Heartbeat) -> str:
        doing = "seems to wait for other ranks" if heartbeat.waiting else "is"
        where = f"on {self.ranks.hosts[heartbeat.rank]} (pid {heartbeat.pid})"
        since = f'in "{heartbeat.phase}" of step {heartbeat.step} for {heartbeat.age:.0f} s'
        return f"{since} {where}; {doing} at {heartbeat.place}"
