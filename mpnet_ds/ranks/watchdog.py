"""A watchdog on each rank: when a run stands still it says which rank is to blame, leaves all Python stacks, and ends it.

The main thread calls ``beat`` at each phase of its work, which is one assignment. Two threads look on:

    watch   counts the time since the last beat; at ``timeout`` it raises the alarm, writes ``folder/rank-00001.txt``
            and, a little later, leaves the process with exit code 1 (the main thread cannot be unwound)
    board   posts this rank's report and sees whether another rank has raised the alarm, see board.py

The rank whose alarm came first reads the reports of all and says who is to blame (``find_culprits``). The alarm is also
raised when a rank posts nothing for ``lost_timeout`` (it is dead, stopped, or the link to it is broken), when a collective
fails because another rank has gone, and when a rank ends with an exception, for which the others would wait.

``timeout`` must exceed the longest phase: a phase is silent while it lasts, be it a compilation, an evaluation batch or
the save of many GB. Time in which the process was stopped as a whole (SIGSTOP, a suspended job) does not count; after a
long one, stacks may be printed once, and the run goes on.
"""

import faulthandler
import linecache
import os
import re
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch.distributed

from mpnet_ds.ranks.heartbeat import Board, Report
from mpnet_ds.ranks.launchers import name_ranks
from mpnet_ds.ranks.process_group import Ranks

EXIT_CODE = 1
STARTING = ("starting", 0, 0)
"""The phase before the first beat, which may take as long as it likes: an engine is built, perhaps compiled, and loaded."""
LEAST_GRACE = 2.0  # seconds
FOLDER = "hang"
"""Of the output, where ranks of a run that hangs leave their stacks."""
GOES_ON = "The same command goes on from the newest checkpoint."
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/")
_LOST_CONTACT = re.compile(r"\bgloo\b|\bNCCL\b")
_DEVICE_WAIT = re.compile(r"\.(item|tolist|cpu|wait|synchronize)\(|\bsynchronize\(")


def find_culprits(reports: Sequence[Report], silent: Collection[int] = ()) -> tuple[list[int], list[str]]:
    """Ranks to blame, and why; all of ``reports`` and no reason where nothing tells them apart.

    A silent rank is to blame before all others. Else those in the earliest step; of these, those that do not seem to
    wait for other ranks; of these, those in the earliest phase.
    """
    if silent:
        return sorted(silent), ["it is silent: stopped, dead, or cut off from the other ranks"]
    suspects, reasons = list(reports), []
    for key, reason in (
        (lambda report: report.step, "other ranks are at a later step"),
        (lambda report: report.waiting, "others seem to wait for other ranks, it does not (a guess from the stacks)"),
        (lambda report: report.beats, "others are in a later phase of the step"),
    ):
        first = min(map(key, suspects))
        fewer = [report for report in suspects if key(report) == first]
        if len(fewer) < len(suspects):
            suspects, reasons = fewer, [*reasons, reason]
    return sorted(report.rank for report in suspects), reasons


def look_at(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread with this innermost frame seems to wait for other ranks, and where it is.

    Waiting is: inside ``torch.distributed`` or ``deepspeed.comm``; in autograd's backward, whose hooks may wait in other
    threads; on a line that waits for the device or for a handle (``.item()``, ``.wait()`` …). A guess, no more.
    """
    if frame is None:
        return False, "nowhere: the main thread has ended"
    path = frame.f_code.co_filename
    waiting = bool(
        _COLLECTIVE.search(path)
        or frame.f_code.co_name == "_engine_run_backward"
        or _DEVICE_WAIT.search(_line(path, frame.f_lineno))
    )
    own = frame
    while own.f_back is not None and own.f_code.co_filename.startswith(_LIBRARIES):
        own = own.f_back
    if own.f_code.co_filename.startswith(_LIBRARIES):
        own = frame
    place = f"{own.f_code.co_name} ({own.f_code.co_filename}:{own.f_lineno})"
    return waiting, place if own is frame else f"{place} in {frame.f_code.co_name} ({Path(path).name}:{frame.f_lineno})"


def _line(path: str, number: int) -> str:
    try:
        return linecache.getline(path, number)
    except TypeError:  # another thread was filling the cache
        return ""


class Watchdog:
    """``with Watchdog(ranks, output / "hang", timeout) as watchdog: … watchdog.beat("drawing data", step) …``

    Args:
        ranks: this process among the others; ``MASTER_ADDR`` and ``MASTER_PORT`` must name their store if there are others.
        folder: where the stacks go; made when they are written.
        timeout: seconds without a beat, after the first; 0 waits for ever.
        lost_timeout: seconds without a sign of a rank, which then is dead, stopped or cut off; 0 waits for ever.
    """

    def __init__(self, ranks: Ranks, folder: Path, timeout: float, lost_timeout: float = 0):
        self.ranks, self.folder = ranks, Path(folder)
        self.timeout, self.lost_timeout = timeout, lost_timeout if ranks.world_size > 1 else 0
        limits = [limit for limit in (self.timeout, self.lost_timeout) if limit]
        self._interval = min(5.0, max(0.25, min(limits, default=0) / 8))
        # For all ranks to see the alarm, write their stacks and report again; busy machines delay them by seconds.
        self._grace = max(LEAST_GRACE, 4 * self._interval)
        self._beat = STARTING
        self._idle = self._unanswered = 0.0
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._board: Board | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        if self.timeout or self.lost_timeout:
            self._main = threading.get_ident()
            if self.ranks.world_size > 1:
                self._board = Board(self.ranks, self._interval, self.lost_timeout, self._report)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if error is not None and self._board is not None:
            self._tell(error)
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        if self._board is not None:
            self._board.stop()

    def _tell(self, error: BaseException) -> None:
        """The other ranks, who would wait for this one. Does not return if it is this one that has lost another."""
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if _is_lost_contact(error):
            self._error = error
            self._board.raise_alarm(f"rank {self.ranks.rank} ({self.ranks.host}) lost contact ({text})")
            self._thread.join()  # it finds out with whom, and ends the process
        self._board.raise_alarm(f"rank {self.ranks.rank} ({self.ranks.host}) failed: {text}", is_failure=True)
        self._stopped.set()
        self._board.alarm.wait(2 * self._interval)
        if self.ranks.is_main:  # the store ends with this process: let the others read it
            self._board.seen_by_all.wait(4 * self._interval)

    def beat(self, phase: str, step: int) -> None:
        """This rank begins ``phase`` of ``step``. All ranks should go through the same phases of a step."""
        last = self._beat
        self._beat = (phase, step, last[2] + 1 if last[1] == step else 0)

    def _report(self, number: int = 0) -> Report:
        phase, step, beats = self._beat
        waiting, place = look_at(sys._current_frames().get(self._main))
        return Report(self.ranks.rank, os.getpid(), phase, step, beats, self._idle, waiting, place, number)

    def _watch(self) -> None:
        seen, rounds = self._beat, 0
        while not self._stopped.wait(self._interval):
            # Counted, not measured: after a suspension the clock would have run on.
            beat = self._beat
            self._idle = 0.0 if beat is not seen or beat is STARTING else self._idle + self._interval
            seen = beat
            if self._board is not None:
                answered = self._board.rounds
                self._unanswered = 0.0 if answered != rounds else self._unanswered + self._interval
                rounds = answered
            # Should the main thread keep the interpreter's lock for itself, this thread gets no further: dump from C then.
            faulthandler.dump_traceback_later(self.timeout or self.lost_timeout, file=sys.__stderr__)
            cause = self._find_cause()
            if cause:
                self._end(cause)

    def _find_cause(self) -> str:
        """Why the run must end, in words; empty if it need not."""
        if self._board is not None and self._board.alarm.is_set():
            return self._board.notice.cause
        if self.timeout and self._idle >= self.timeout:
            return f"no progress for {self.timeout:g} s (run.hang_timeout)"
        if self._error is not None and (self._board.failure or self._unanswered >= self._grace):
            return f"rank {self.ranks.rank} ({self.ranks.host}) lost contact"
        if self.lost_timeout and self._unanswered >= self.lost_timeout:
            return f"the store of the ranks has not answered for {self.lost_timeout:g} s (run.lost_timeout)"
        return ""

    def _end(self, cause: str) -> None:
        """Leaves the process, unless the run ends by itself meanwhile."""
        last_resort = threading.Timer(2 * self._grace + 5, os._exit, [EXIT_CODE])  # files or stderr may hang as well
        last_resort.daemon = True
        last_resort.start()
        if self._board is not None:
            self._board.raise_alarm(cause)
            if self._board.alarm.is_set() and self._board.notice.is_failure:
                self._follow(cause)
        report = self._report()
        written = self._write_stacks(report)
        if self._error is None:
            _say(f"rank {report.rank}: {self._describe(report)}\n  {written}")
        if self._stopped.wait(self._grace):
            last_resort.cancel()
            return
        if self._board is None:
            _say(self._verdict(cause, [report], ()))
        elif not self._board.answers:
            if self._speaks_for_host:
                _say(self._verdict_without_store(cause))
        elif self._board.reads:
            _say(self._verdict(cause, *self._board.read()))
        else:
            self._stopped.wait(2 * self._interval)  # for the rank that speaks: a launcher ends all after the first
        os._exit(EXIT_CODE)

    def _follow(self, cause: str) -> None:
        """Leaves the process because another rank has failed, which says more of it itself.

        Not before rank 0, which may be the one and waits for all to read of it: a launcher ends all after the first.
        """
        if self.ranks.is_main:
            _say(f"error: {cause}. {GOES_ON}")
            time.sleep(2 * self._interval)
        else:
            self._board.store_has_gone.wait(8 * self._interval)
        os._exit(EXIT_CODE)

    @property
    def _speaks_for_host(self) -> bool:
        """Whether this is the first rank on its host, rank 0 aside if there are others."""
        own = [rank for rank, host in enumerate(self.ranks.hosts) if host == self.ranks.host]
        return self.ranks.rank == (own[1:] if own[0] == 0 and len(own) > 1 else own)[0]

    def _write_stacks(self, report: Report) -> str:
        """Of all threads, the main thread's first; returns what became of it."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != self._main)
        parts = [f"rank {report.rank}: {self._describe(report)}\n"]
        if self._error is not None:
            parts += ["\n", *traceback.format_exception(self._error)]
        for ident, frame in frames:
            parts.append(f"\nThread {names.get(ident, ident)} (most recent call last):\n")
            parts += traceback.format_stack(frame)
        path = self.folder / f"rank-{report.rank:05d}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(parts), encoding="utf-8")
        except OSError as error:
            return f"Its Python stacks could not be written ({error}):\n" + "".join(parts)
        return f"Its Python stacks are in {path}"

    def _verdict(self, cause: str, reports: list[Report], silent: Collection[int]) -> str:
        culprits, reasons = find_culprits(reports, silent)
        known = {report.rank: report for report in reports}
        who, one = name_ranks(culprits, self.ranks.hosts), len(culprits) == 1
        what = ("is lost" if one else "are lost") if silent else ("hangs" if one else "hang")
        alone = self.ranks.world_size == 1
        lines = [f"error: {cause}: " + (f"{who} {what}" if reasons or alone else f"nothing tells apart {who}")]
        lines += [f"  why: {reason}" for reason in reasons]
        order = [*culprits, *sorted(known.keys() - set(culprits))]
        lines += [
            f"  rank {rank}: {self._describe(known[rank]) if rank in known else 'never reported'}" for rank in order[:16]
        ]
        return "\n".join([*lines, f"  Python stacks of the ranks that could write them: {self.folder}", f"  {GOES_ON}"])

    def _verdict_without_store(self, cause: str) -> str:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        first = self.ranks.hosts[0]
        who = f"the launcher of the first host ({first})" if agent else f"rank 0 ({first})"
        what = f"{who} is stopped, dead, or cut off from rank {self.ranks.rank} ({self.ranks.host})"
        return (
            f"error: {cause}: {who} is lost\n"
            f"  why: {what}: the store of the ranks at {address} does not answer{self._board.failure}\n"
            f"  Python stacks of the ranks that could write them: {self.folder}\n  {GOES_ON}"
        )

    def _describe(self, report: Report) -> str:
        doing = "seems to wait for other ranks" if report.waiting else "is"
        where = f"on {self.ranks.hosts[report.rank]} (pid {report.pid})"
        return f'in "{report.phase}" of step {report.step} for {report.idle:.0f} s {where}; {doing} at {report.place}'


def _is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another rank, or the way to it, has gone."""
    is_distributed = isinstance(error, torch.distributed.DistError)
    return is_distributed or (isinstance(error, RuntimeError) and bool(_LOST_CONTACT.search(str(error))))


def _say(text: str) -> None:
    """To standard error's file itself: the main thread may hang with the stream's lock."""
    with suppress(OSError):  # the launcher that read it may have gone
        os.write(2, (text + "\n").encode())
