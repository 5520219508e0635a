"""A board on which all ranks post how they are: by it they notice that one of them hangs, has failed or cannot be reached.

Each rank has a thread that every few seconds posts the rank's report on the store at which the ranks met, over a connection
of its own, and looks whether an alarm has been raised. Rank 0 counts for how long each of the others has posted nothing,
and the last rank does so for rank 0: a rank that is dead, stopped or behind a broken link posts nothing. Rank 0 reads all
reports each time, the others one key: some 400 bytes for each rank and interval.

Only this thread talks to the store, so a store whose host is stopped or dead delays nobody: that it does not answer is
then the finding.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

from mpnet_ds.ranks import rendezvous
from mpnet_ds.ranks.launchers import name_ranks
from mpnet_ds.ranks.process_group import Ranks


@dataclass(frozen=True)
class Report:
    """What a rank posts of itself."""

    rank: int
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


@dataclass(frozen=True)
class Alarm:
    """Why the run ends. The first one counts."""

    by: int
    """The rank that raised it; unless it failed, it reads all reports and says who is to blame."""
    cause: str
    is_failure: bool = False
    """Whether rank ``by`` ended with an exception, of which ``cause`` tells."""


class Board:
    """This rank's connection to the board.

    Args:
        interval: seconds between two reports.
        lost_timeout: seconds without a report after which a rank is lost; 0 waits for ever.
        report: makes this rank's report with a given number.
    """

    def __init__(self, ranks: Ranks, interval: float, lost_timeout: float, report: Callable[[int], Report]):
        self._ranks, self._interval, self._lost_timeout, self._report = ranks, interval, lost_timeout, report
        self.alarm = threading.Event()
        """Set when any rank has raised the alarm."""
        self.seen_by_all = threading.Event()
        """Set when all ranks have seen it."""
        self.store_has_gone = threading.Event()
        """Set when the store does not answer any more."""
        self.notice: Alarm | None = None
        """The alarm."""
        self.rounds = 0
        """Counts the times that the store answered."""
        self.answers = False
        """Whether it has answered since this rank raised the alarm, or saw it."""
        self.failure = ""
        """Why the store cannot be reached any more, in words."""
        self._raised: Alarm | None = None
        self._unheard: dict[int, tuple[int, float]] = {}  # rank → number of its last report, seconds since then
        self._left: set[int] = set()  # in good order
        self._readings: list[dict[int, Report]] = []
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="watchdog-board", daemon=True)
        self._thread.start()

    def raise_alarm(self, cause: str, is_failure: bool = False) -> None:
        """Returns at once."""
        self._raised, self.answers = self._raised or Alarm(self._ranks.rank, cause, is_failure), False
        self._wake.set()

    @property
    def reads(self) -> bool:
        """Whether this rank is the one that reads the reports and speaks."""
        return self.notice is not None and self.notice.by == self._ranks.rank and not self.notice.is_failure

    def stop(self) -> None:
        """Gives up on a store that does not answer."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=self._interval)

    def read(self) -> tuple[list[Report], set[int]]:
        """The last reports, by rank, and the ranks that posted none since the alarm."""
        first, last = self._readings[0], self._readings[-1]
        missing = set(range(self._ranks.world_size)) - last.keys() - self._left
        stale = {rank for rank in first if first[rank].number == last[rank].number} if first is not last else set()
        return [last[rank] for rank in sorted(last)], missing | stale

    def _run(self) -> None:
        try:
            store = rendezvous.with_prefix(rendezvous.connect(60), "watchdog")
            number = 0
            while not self._stopped:
                number += 1
                self._exchange(store, number)
                self._wake.wait(self._interval)
                self._wake.clear()
            store.set(str(self._ranks.rank), "")  # it leaves in good order
        except (RuntimeError, OSError) as error:
            # The host of the store has gone: without an answer since the alarm, that is the finding.
            self.failure = f" ({str(error).strip().splitlines()[0]})" if str(error).strip() else ""
            self.store_has_gone.set()

    def _exchange(self, store, number: int) -> None:
        raised = self._raised
        store.set(str(self._ranks.rank), json.dumps(asdict(self._report(number))))
        lost = self._find_lost(store)
        if lost and not raised:
            who = name_ranks(lost, self._ranks.hosts)
            cause = f"nothing was heard of {who} for {self._lost_timeout:g} s (run.lost_timeout)"
            self._raised = raised = Alarm(self._ranks.rank, cause)
        if raised and not self.alarm.is_set():
            store.compare_set("alarm", "", json.dumps(asdict(raised)))
        if raised or store.check(["alarm"]):
            self.notice = self.notice or Alarm(**json.loads(store.get("alarm")))
            is_news = not self.alarm.is_set()
            self.alarm.set()
            if store.add("seen", int(is_news)) == self._ranks.world_size:
                self.seen_by_all.set()
        if self.reads:
            self._readings.append(self._fetch(store, range(self._ranks.world_size)))
        self.rounds += 1
        self.answers = self.alarm.is_set()

    def _find_lost(self, store) -> list[int]:
        """Ranks of which nothing has been heard for too long, of those that this rank looks after."""
        last = self._ranks.world_size - 1
        cared_for = range(1, last + 1) if self._ranks.is_main else [0] if self._ranks.rank == last else []
        if not self._lost_timeout or not cared_for:
            return []
        reports = self._fetch(store, cared_for)
        for rank, report in reports.items():
            number, seconds = self._unheard.get(rank, (0, 0.0))
            # Counted, not measured: after a suspension the clock would have run on.
            self._unheard[rank] = (report.number, seconds + self._interval if report.number == number else 0.0)
        return [rank for rank in reports if self._unheard[rank][1] >= self._lost_timeout]

    def _fetch(self, store, ranks) -> dict[int, Report]:
        """The last reports of those that have posted one and not left."""
        keys = [str(rank) for rank in ranks]
        present = keys if store.check(keys) else [key for key in keys if store.check([key])]
        texts = dict(zip(present, store.multi_get(present), strict=True)) if present else {}
        self._left |= {int(key) for key, text in texts.items() if not text}
        return {int(key): Report(**json.loads(text)) for key, text in texts.items() if text}
