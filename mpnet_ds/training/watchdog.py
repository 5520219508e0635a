"""A watchdog on each rank: when a run stands still it says which rank is to blame, leaves all Python stacks, and ends it.

The main thread calls ``beat`` at each phase of its work, which is one assignment. Two threads look on:

    watch   counts the time since the last beat; at ``timeout`` it raises the alarm, writes ``folder/rank-00001.txt``
            and, a little later, leaves the process with exit code 1 (the main thread cannot be unwound)
    board   publishes this rank's report every few seconds on the store through which the ranks found each other, over a
            connection of its own, and sees there whether another rank has raised the alarm

The rank whose alarm came first reads the reports of all and says who is to blame (``find_culprits``). Only the board
talks to the store, so a store whose host is stopped or dead delays nobody: that it does not answer is then the finding.

``timeout`` must exceed the longest phase: a phase is silent while it lasts, be it a compilation, an evaluation batch or
the save of many GB. Time in which the process was stopped as a whole (SIGSTOP, a suspended job) does not count; after a
long one, stacks may be printed once, and the run goes on.
"""

import faulthandler
import json
import linecache
import os
import re
import socket
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from mpnet_ds.training.processes import Ranks

EXIT_CODE = 1
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/")
_DEVICE_WAIT = re.compile(r"\.(item|tolist|cpu|wait|synchronize)\(|\bsynchronize\(")


@dataclass(frozen=True)
class Report:
    """What a rank publishes of itself."""

    rank: int
    host: str
    pid: int
    phase: str
    step: int
    beats: int
    """Since the step began: how far it has come in the step, if all ranks go through the same phases."""
    idle: float
    """Seconds since the last beat, to within an interval."""
    waiting: bool
    """Whether the main thread seems to wait for other ranks, or for its device, which may wait for them."""
    place: str
    """Where the main thread is: function, file and line."""
    number: int
    """Counts the reports of this rank: two readings with the same number show a silent rank."""


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
        or _DEVICE_WAIT.search(linecache.getline(path, frame.f_lineno))
    )
    own = frame
    while own.f_back is not None and own.f_code.co_filename.startswith(_LIBRARIES):
        own = own.f_back
    if own.f_code.co_filename.startswith(_LIBRARIES):
        own = frame
    place = f"{own.f_code.co_name} ({own.f_code.co_filename}:{own.f_lineno})"
    return waiting, place if own is frame else f"{place} in {frame.f_code.co_name} ({Path(path).name}:{frame.f_lineno})"


class Watchdog:
    """``with Watchdog(ranks, output / "hang", timeout) as watchdog: … watchdog.beat("drawing data", step) …``

    Args:
        ranks: this process among the others; ``MASTER_ADDR`` and ``MASTER_PORT`` must name their store if there are others.
        folder: where the stacks go; made when they are written.
        timeout: seconds without a beat; 0 watches nothing.
    """

    def __init__(self, ranks: Ranks, folder: Path, timeout: float):
        self.ranks, self.folder, self.timeout = ranks, Path(folder), timeout
        self._interval = min(5.0, max(0.25, timeout / 8))
        self._grace = 4 * self._interval  # for all ranks to see the alarm, write their stacks and report again
        self._beat = ("starting", 0, 0)
        self._idle = 0.0
        self._stopped = threading.Event()
        self._board: _Board | None = None

    def __enter__(self) -> "Watchdog":
        if self.timeout:
            self._main = threading.get_ident()
            self._host = socket.gethostname()
            if self.ranks.world_size > 1:
                self._board = _Board(self.ranks, self._interval, self._report)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._stopped.set()
        if self.timeout:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        if self._board is not None:
            self._board.stop()

    def beat(self, phase: str, step: int) -> None:
        """This rank begins ``phase`` of ``step``. All ranks should go through the same phases of a step."""
        last = self._beat
        self._beat = (phase, step, last[2] + 1 if last[1] == step else 0)

    def _report(self, number: int = 0) -> Report:
        phase, step, beats = self._beat
        waiting, place = look_at(sys._current_frames().get(self._main))
        host, pid = self._host, os.getpid()
        return Report(self.ranks.rank, host, pid, phase, step, beats, self._idle, waiting, place, number)

    def _watch(self) -> None:
        seen = self._beat
        while not self._stopped.wait(self._interval):
            beat = self._beat
            # Counted, not measured: after a suspension the clock would have run on.
            self._idle = 0.0 if beat is not seen else self._idle + self._interval
            seen = beat
            # Should the main thread keep the interpreter's lock for itself, this thread gets no further: dump from C then.
            faulthandler.dump_traceback_later(self.timeout, file=sys.__stderr__)
            if self._idle >= self.timeout or (self._board is not None and self._board.alarm.is_set()):
                self._end()

    def _end(self) -> None:
        """Leaves the process, unless the run ends by itself meanwhile."""
        last_resort = threading.Timer(2 * self._grace + 5, os._exit, [EXIT_CODE])  # files or stderr may hang as well
        last_resort.daemon = True
        last_resort.start()
        if self._board is not None:
            self._board.raise_alarm()
        report = self._report()
        _say(f"rank {report.rank}: {_describe(report)}\n  {self._write_stacks(report)}")
        if self._stopped.wait(self._grace):
            last_resort.cancel()
            return
        if self._board is None:
            _say(self._verdict([report], ()))
        elif not self._board.answers:
            _say(self._verdict_without_store())
        elif self._board.reads:
            _say(self._verdict(*self._board.read()))
        else:
            self._stopped.wait(
                2 * self._interval
            )  # leaves time to the rank that speaks: a launcher ends all after the first
        os._exit(EXIT_CODE)

    def _write_stacks(self, report: Report) -> str:
        """Of all threads, the main thread's first; returns what became of it."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != self._main)
        parts = [f"rank {report.rank}: {_describe(report)}\n"]
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

    def _verdict(self, reports: list[Report], silent: Collection[int]) -> str:
        culprits, reasons = find_culprits(reports, silent)
        known = {report.rank: report for report in reports}
        who = f"rank{'s' * (len(culprits) > 1)} {', '.join(map(str, culprits[:16]))}{', …' * (len(culprits) > 16)}"
        alone = self.ranks.world_size == 1
        verdict = f"{who} hang{'s' * (len(culprits) == 1)}" if reasons or alone else f"nothing tells apart {who}"
        lines = [f"error: no progress for {self.timeout:g} s (run.hang_timeout): {verdict}"]
        lines += [f"  why: {reason}" for reason in reasons]
        order = [*culprits, *sorted(known.keys() - set(culprits))]
        lines += [f"  rank {rank}: {_describe(known[rank]) if rank in known else 'never reported'}" for rank in order[:16]]
        return "\n".join([*lines, f"  Python stacks of the ranks that could write them: {self.folder}"])

    def _verdict_without_store(self) -> str:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        who = "the launcher of the first host" if agent else "rank 0"
        what = f"{who} is stopped, dead, or cut off from rank {self.ranks.rank}"
        return (
            f"error: no progress for {self.timeout:g} s (run.hang_timeout): {who} hangs\n"
            f"  why: {what}: the store of the ranks at {address} does not answer{self._board.failure}\n"
            f"  Python stacks of the ranks that could write them: {self.folder}"
        )


class _Board:
    """This rank's connection to the store: publishes its reports, carries the alarm, reads the others' reports."""

    def __init__(self, ranks: Ranks, interval: float, report: Callable[[int], Report]):
        self._ranks, self._interval, self._report = ranks, interval, report
        self.alarm = threading.Event()
        """Set when any rank has raised the alarm."""
        self.reads = False
        """Whether this rank was the first to raise it."""
        self.answers = False
        """Whether the store has answered since the alarm."""
        self.failure = ""
        """Why the store cannot be reached any more, in words."""
        self._raised = False
        self._number = 0
        self._readings: list[dict[int, Report]] = []
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="watchdog-board", daemon=True)
        self._thread.start()

    def raise_alarm(self) -> None:
        """Returns at once."""
        self._raised, self.answers = True, False
        self._wake.set()

    def stop(self) -> None:
        """Gives up on a store that does not answer."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=self._interval)

    def read(self) -> tuple[list[Report], set[int]]:
        """The last reports, by rank, and the ranks that published none since the alarm."""
        first, last = self._readings[0], self._readings[-1]
        missing = set(range(self._ranks.world_size)) - last.keys()
        stale = {rank for rank in first if first[rank].number == last[rank].number} if first is not last else set()
        return [last[rank] for rank in sorted(last)], missing | stale

    def _run(self) -> None:
        try:
            store = self._connect()
            while not self._stopped:
                self._exchange(store)
                self._wake.wait(self._interval)
                self._wake.clear()
        except (RuntimeError, OSError) as error:
            # The host of the store has gone: without an answer since the alarm, that is the finding.
            self.failure = f" ({str(error).strip().splitlines()[0]})" if str(error).strip() else ""

    def _connect(self):
        from torch.distributed import PrefixStore, TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
        # torchrun's store outlives its ranks: an alarm of an earlier attempt is not one of this.
        return PrefixStore(f"watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _exchange(self, store) -> None:
        raised = self._raised
        self._number += 1
        store.set(str(self._ranks.rank), json.dumps(asdict(self._report(self._number))))
        if raised and not self.alarm.is_set():
            self.reads = store.compare_set("alarm", "", str(self._ranks.rank)) == str(self._ranks.rank).encode()
        if raised or store.check(["alarm"]):
            self.alarm.set()
        if self.reads:
            keys = [str(rank) for rank in range(self._ranks.world_size)]
            present = keys if store.check(keys) else [key for key in keys if store.check([key])]
            self._readings.append({int(key): Report(**json.loads(store.get(key))) for key in present})
        self.answers = raised


def _describe(report: Report) -> str:
    doing = "seems to wait for other ranks" if report.waiting else "is"
    where = f"on {report.host} (pid {report.pid})"
    return f'in "{report.phase}" of step {report.step} for {report.idle:.0f} s {where}; {doing} at {report.place}'


def _say(text: str) -> None:
    """To standard error's file itself: the main thread may hang with the stream's lock."""
    os.write(2, (text + "\n").encode())
