"""A watchdog on each rank: when a run hangs it says which rank is to blame, writes all Python stacks, and ends the run.

The main thread calls ``beat`` at each phase of its work, which is one assignment. Two threads look on:

    watchdog    counts the time since the last beat; at ``timeout`` it raises the alarm, writes ``folder/rank-00001.txt``
                and, a little later, leaves the process with exit code 1 (the main thread cannot be unwound)
    heartbeats  posts how this rank is, and sees whether another rank has raised the alarm (heartbeat.py)

The rank whose alarm came first reads the heartbeats of all ranks and says who is to blame. The alarm is also raised when a
rank is silent for ``lost_timeout`` (it is dead, stopped, or cut off), when a collective fails because another rank is gone,
and when a rank ends with an exception, for which the others would wait.

``timeout`` must exceed the longest phase, be it a compilation, an evaluation batch or the save of many GB. Time in which
the process was suspended (SIGSTOP) does not count; after a long one, stacks may be printed once, and the run continues.
"""

import faulthandler
import linecache
import os
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType

import torch.distributed

from mpnet_ds.last_word import leave_in_order, say
from mpnet_ds.ranks.heartbeat import Heartbeat, Heartbeats
from mpnet_ds.ranks.launchers import name_ranks
from mpnet_ds.ranks.process_group import Ranks

EXIT_CODE = 1
FOLDER = "hang"
"""Folder of the output in which the ranks of a run that hangs leave their stacks."""
STARTING = ("starting", 0, 0)
"""The phase before the first beat, which may take as long as it likes: an engine is built, compiled, and loaded."""
LEAST_GRACE = 2.0  # seconds
RESUME = "The same command resumes from the newest checkpoint."
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/")
_LOST_CONTACT = re.compile(r"\bgloo\b|\bNCCL\b")
_DEVICE_WAIT = re.compile(r"\.(item|tolist|cpu|wait|synchronize)\(|\bsynchronize\(")
_SIGNS = (  # attributes of a heartbeat, of which the least tells; the first that differs is the most telling
    ("step", "other ranks are at a later step"),
    ("waiting", "others seem to wait for other ranks, it does not (a guess from the stacks)"),
    ("phases", "others are in a later phase of the step"),
)


def find_culprits(heartbeats: Sequence[Heartbeat], silent: Collection[int] = ()) -> tuple[list[int], list[str]]:
    """Return the ranks to blame, and why: silent ones, else those that are behind; all, and no reason, if none is."""
    if silent:
        return sorted(silent), ["it is silent: stopped, dead, or cut off from the other ranks"]
    suspects, reasons = list(heartbeats), []
    for sign, reason in _SIGNS:
        least = min(getattr(heartbeat, sign) for heartbeat in suspects)
        behind = [heartbeat for heartbeat in suspects if getattr(heartbeat, sign) == least]
        reasons += [reason] if len(behind) < len(suspects) else []
        suspects = behind
    return sorted(heartbeat.rank for heartbeat in suspects), reasons


def locate(frame: FrameType | None) -> tuple[bool, str]:
    """Return whether a thread with this innermost frame seems to wait for other ranks, and where it is.

    It does inside ``torch.distributed`` and ``deepspeed.comm``, in autograd's backward, whose hooks may wait in other
    threads, and on a line that waits for the device or for a handle (``.item()``, ``.wait()`` …). This is a guess.
    """
    if frame is None:
        return False, "nowhere: the main thread has ended"
    name, path, number = frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno
    try:
        line = linecache.getline(path, number)
    except TypeError:  # another thread was filling the cache
        line = ""
    waiting = bool(_COLLECTIVE.search(path) or name == "_engine_run_backward" or _DEVICE_WAIT.search(line))
    frames = [one for one, _ in traceback.walk_stack(frame)]
    own = next((one for one in frames if not one.f_code.co_filename.startswith(_LIBRARIES)), frame)
    place = f"{own.f_code.co_name} ({own.f_code.co_filename}:{own.f_lineno})"
    return waiting, place if own is frame else f"{place} in {name} ({Path(path).name}:{number})"


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
        self.timeout, self.lost_timeout = timeout, lost_timeout if ranks.world_size > 1 else 0
        limits = [limit for limit in (self.timeout, self.lost_timeout) if limit]
        self._interval = min(5.0, max(0.25, min(limits, default=0) / 8))
        # For all ranks to see the alarm, write their stacks and post again; busy machines delay them by seconds.
        self._grace = max(LEAST_GRACE, 4 * self._interval)
        self._beat, self._age, self._unanswered = STARTING, 0.0, 0.0
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._others = (
            Heartbeats(ranks, self._interval, self.lost_timeout, self._heartbeat) if ranks.world_size > 1 else None
        )
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._main = threading.get_ident()
        if self.timeout or self.lost_timeout:
            if self._others is not None:
                self._others.start()
            self._thread.start()
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if not self._thread.is_alive():
            return
        if error is not None and self._others is not None:
            self._tell(error)
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._others is not None:
            self._others.stop()

    def beat(self, phase: str, step: int) -> None:
        """Begin ``phase`` of ``step``. All ranks should go through the same phases of a step."""
        last = self._beat
        self._beat = (phase, step, last[2] + 1 if last[1] == step else 0)

    def _heartbeat(self, number: int = 0) -> Heartbeat:
        waiting, place = locate(sys._current_frames().get(self._main))
        return Heartbeat(self.ranks.rank, os.getpid(), *self._beat, self._age, waiting, place, number)

    def _tell(self, error: BaseException) -> None:
        """Tell the other ranks, which would wait for this one. Does not return if it is this one that has lost another."""
        text, me = f"{type(error).__name__}: {error}".strip().splitlines()[0], f"rank {self.ranks.rank} ({self.ranks.host})"
        if _is_lost_contact(error):
            self._error = error
            self._others.raise_alarm(f"{me} lost contact ({text})")
            self._thread.join()  # it finds out with whom, and ends the process
        self._others.raise_alarm(f"{me} failed: {text}", is_failure=True)
        self._stopped.set()
        self._others.has_alarm.wait(2 * self._interval)
        leave_in_order(self.ranks.is_main, 4 * self._interval, spoken=None, heard=self._others.seen_by_all.wait)

    def _watch(self) -> None:
        seen, rounds = self._beat, 0
        while not self._stopped.wait(self._interval):
            # Counted, not measured: the clock runs on while a job is suspended.
            beat = self._beat
            self._age = 0.0 if beat is not seen or beat is STARTING else self._age + self._interval
            seen = beat
            if self._others is not None:
                answered = self._others.rounds
                self._unanswered = 0.0 if answered != rounds else self._unanswered + self._interval
                rounds = answered
            # Should the main thread hold the interpreter's lock, this thread gets no further: dump from C then.
            faulthandler.dump_traceback_later(self.timeout or self.lost_timeout, file=sys.__stderr__)
            cause = self._find_cause()
            if cause:
                self._end(cause)

    def _find_cause(self) -> str:
        """Return why the run must end, in words; empty if it need not."""
        if self._others is not None and self._others.alarm is not None:
            return self._others.alarm.cause
        if self.timeout and self._age >= self.timeout:
            return f"no progress for {self.timeout:g} s (run.hang_timeout)"
        if self._error is not None and (self._others.failure or self._unanswered >= self._grace):
            return f"rank {self.ranks.rank} ({self.ranks.host}) lost contact"
        if self.lost_timeout and self._unanswered >= self.lost_timeout:
            return f"no answer from the store of the ranks for {self.lost_timeout:g} s (run.lost_timeout)"
        return ""

    def _end(self, cause: str) -> None:
        """Leave the process, unless the run ends by itself meanwhile."""
        last_resort = threading.Timer(2 * self._grace + 5, os._exit, [EXIT_CODE])  # files or stderr may hang as well
        last_resort.daemon = True
        last_resort.start()
        others, rounds = self._others, self._others.rounds if self._others else 0
        if others is not None:
            others.raise_alarm(cause)
            if others.alarm is not None and others.alarm.is_failure:
                self._follow(cause)
        heartbeat = self._heartbeat()
        written = self._write_stacks(heartbeat)
        if self._error is None:
            say(f"rank {heartbeat.rank}: {self._describe(heartbeat)}\n  {written}")
        if self._stopped.wait(self._grace):
            last_resort.cancel()
            return
        answers = others is not None and others.alarm is not None and others.rounds > rounds
        if others is None:
            say(self._verdict(cause, [heartbeat], ()))
        elif answers and others.is_speaker:
            say(self._verdict(cause, *others.read()))
        elif not answers and self._speaks_for_host:
            say(self._verdict_without_store(cause))
        else:
            leave_in_order(False, 2 * self._interval, spoken=self._stopped.wait)
        os._exit(EXIT_CODE)

    def _follow(self, cause: str) -> None:
        """Leave the process because another rank has failed, which says more about it itself."""
        if self.ranks.is_main:
            say(f"error: {cause}. {RESUME}")
        # The rank that failed needs time to say why. If it is rank 0, the store tells when it has left.
        seconds = (2 if self.ranks.is_main else 8) * self._interval
        leave_in_order(False, seconds, spoken=self._others.store_is_gone.wait)
        os._exit(EXIT_CODE)

    @property
    def _speaks_for_host(self) -> bool:
        """Whether this is the first rank on its host, apart from rank 0 if there are others."""
        own = [rank for rank, host in enumerate(self.ranks.hosts) if host == self.ranks.host]
        return self.ranks.rank == ([rank for rank in own if rank] or own)[0]

    def _write_stacks(self, heartbeat: Heartbeat) -> str:
        """Write the stacks of all threads, the main thread's first; return what became of it."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = [f"rank {heartbeat.rank}: {self._describe(heartbeat)}\n"]
        if self._error is not None:
            parts += ["\n", *traceback.format_exception(self._error)]
        for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != self._main):
            parts += [f"\nThread {names.get(ident, ident)} (most recent call last):\n", *traceback.format_stack(frame)]
        path = self.folder / f"rank-{heartbeat.rank:05d}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(parts), encoding="utf-8")
        except OSError as error:
            return f"Its Python stacks could not be written ({error}):\n" + "".join(parts)
        return f"Its Python stacks are in {path}"

    def _verdict(self, cause: str, heartbeats: list[Heartbeat], silent: Collection[int]) -> str:
        culprits, reasons = find_culprits(heartbeats, silent)
        known = {heartbeat.rank: heartbeat for heartbeat in heartbeats}
        who, one = name_ranks(culprits, self.ranks.hosts), len(culprits) == 1
        what = ("is lost" if one else "are lost") if silent else ("hangs" if one else "hang")
        blamed = f"{who} {what}" if reasons or self._others is None else f"nothing tells {who} apart"
        order = [*culprits, *sorted(known.keys() - set(culprits))][:16]
        ranks = [f"rank {rank}: {self._describe(known[rank]) if rank in known else 'no heartbeat ever'}" for rank in order]
        return self._join(f"{cause}: {blamed}", [*(f"why: {reason}" for reason in reasons), *ranks])

    def _verdict_without_store(self, cause: str) -> str:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        agent, first = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True", self.ranks.hosts[0]
        who = f"the launcher of the first host ({first})" if agent else f"rank 0 ({first})"
        what = f"{who} is stopped, dead, or cut off from rank {self.ranks.rank} ({self.ranks.host})"
        why = f"why: {what}: the store of the ranks at {address} does not answer{self._others.failure}"
        return self._join(f"{cause}: {who} is lost", [why])

    def _join(self, error: str, lines: list[str]) -> str:
        stacks = f"Python stacks of the ranks that could write them: {self.folder}"
        return "\n  ".join([f"error: {error}", *lines, stacks, RESUME])

    def _describe(self, heartbeat: Heartbeat) -> str:
        doing = "seems to wait for other ranks" if heartbeat.waiting else "is"
        where = f"on {self.ranks.hosts[heartbeat.rank]} (pid {heartbeat.pid})"
        since = f'in "{heartbeat.phase}" of step {heartbeat.step} for {heartbeat.age:.0f} s'
        return f"{since} {where}; {doing} at {heartbeat.place}"


def _is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another rank, or the way to it, is gone."""
    is_distributed = isinstance(error, torch.distributed.DistError)
    return is_distributed or (isinstance(error, RuntimeError) and bool(_LOST_CONTACT.search(str(error))))
