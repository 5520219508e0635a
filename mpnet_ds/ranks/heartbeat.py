"""Heartbeats of all ranks, by which they notice that one of them hangs, has failed, or is lost.

A thread of each rank posts the rank's heartbeat at the store of the rendezvous every few seconds, over a connection of its
own, and looks whether an alarm has been raised. Rank 0 counts how long each other rank has been silent, and the last rank
does so for rank 0: a rank that is dead, stopped or cut off posts nothing. Rank 0 reads all heartbeats each time, the others
one key: about 400 bytes for each rank and interval.

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

CONNECT_TIMEOUT = 60.0
"""Seconds for the first connection to the store."""
LEAST_READINGS = 3
"""Readings of all heartbeats after which the speaker can tell who is silent."""


@dataclass(frozen=True)
class Heartbeat:
    """What a rank posts of itself."""

    rank: int
    pid: int
    phase: str
    step: int
    phases: int
    """Phases of the step so far, by which ranks in the same step can be compared."""
    age: float
    """Seconds in this phase, to within an interval."""
    waiting: bool
    """Whether the main thread seems to wait for other ranks, or for its device, which may wait for them."""
    place: str
    """Where the main thread is: function, file and line."""
    number: int
    """Count of this rank's heartbeats: a rank is silent while it stays the same."""


@dataclass(frozen=True)
class Alarm:
    """Why the run ends. The first one counts."""

    by: int
    """The rank that raised it. Unless it has failed it is the speaker: it reads all heartbeats and says who is to blame."""
    cause: str
    is_failure: bool = False
    """Whether the rank ended with an exception, of which ``cause`` tells."""


class Heartbeats:
    """This rank's part in the exchange of heartbeats.

    Args:
        interval: seconds between two heartbeats.
        lost_timeout: seconds of silence after which a rank is lost; 0 waits for ever.
        make: makes this rank's heartbeat with a given number.
    """

    def __init__(self, ranks: Ranks, interval: float, lost_timeout: float, make: Callable[[int], Heartbeat]):
        self._ranks, self._interval, self._lost_timeout, self._make = ranks, interval, lost_timeout, make
        self.alarm: Alarm | None = None
        """The alarm of all ranks, once this rank knows it."""
        self.has_alarm, self.seen_by_all = threading.Event(), threading.Event()
        """Set when this rank knows the alarm, or never will, and when all do that have not been killed."""
        self.answered, self.store_is_gone = threading.Event(), threading.Event()
        """Set after each exchange with the store, and when it can no longer be reached."""
        self.can_tell = threading.Event()
        """Set on the speaker when it has read all heartbeats often enough to tell who is silent."""
        self.failure = ""
        """Why the store can no longer be reached, in words."""
        self._raised: Alarm | None = None
        self._heard: dict[int, tuple[Heartbeat, float]] = {}  # rank → its last heartbeat, seconds of silence since then
        self._left: set[int] = set()  # in good order
        self._readings = 0  # of all heartbeats, on the speaker
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def stop(self) -> None:
        """Post that this rank leaves in good order, or give up on a store that does not answer."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._interval)

    def raise_alarm(self, cause: str, is_failure: bool = False) -> None:
        """Have the alarm posted, and return at once."""
        self._raised = self._raised or Alarm(self._ranks.rank, cause, is_failure)
        self._wake.set()

    @property
    def is_speaker(self) -> bool:
        """Whether this rank's alarm was the first, so that it has to say who is to blame."""
        return self.alarm is not None and self.alarm.by == self._ranks.rank and not self.alarm.is_failure

    def read(self) -> tuple[list[Heartbeat], set[int]]:
        """Return, on the speaker, the last heartbeats by rank, and the ranks that have been silent since the alarm."""
        present = set(range(self._ranks.world_size)) - self._left
        since = (max(LEAST_READINGS, self._readings) - 1) * self._interval
        silent = {rank for rank in present if rank not in self._heard or self._heard[rank][1] >= since}
        return [self._heard[rank][0] for rank in sorted(present & self._heard.keys())], silent

    def exchange(self, store, number: int) -> None:
        """Post the heartbeat with this number and take in what others have posted."""
        raised = self._raised
        store.set(str(self._ranks.rank), json.dumps(asdict(self._make(number))))
        self._listen(store)
        silences = {rank: seconds for rank, (_, seconds) in self._heard.items() if rank not in self._left}
        lost = [rank for rank, seconds in silences.items() if 0 < self._lost_timeout <= seconds]
        if lost and not raised:
            silence = f"no heartbeat from {name_ranks(lost, self._ranks.hosts)} for {self._lost_timeout:g} s"
            self._raised = raised = Alarm(self._ranks.rank, f"{silence} (run.lost_timeout)")
        if raised and self.alarm is None:
            store.compare_set("alarm", "", json.dumps(asdict(raised)))
        if raised or store.check(["alarm"]):
            self.alarm = self.alarm or Alarm(**json.loads(store.get("alarm")))
            is_news = not self.has_alarm.is_set()
            self.has_alarm.set()
            if store.add("seen", int(is_news)) >= self._ranks.world_size - self._ranks.siblings.num_killed:
                self.seen_by_all.set()
        self.answered.set()

    def _listen(self, store) -> None:
        """Read the heartbeats that this rank looks after: all on rank 0 and on the speaker, rank 0's on the last rank."""
        size, keys = self._ranks.world_size, []
        if self.is_speaker or (self._lost_timeout and self._ranks.rank in (0, size - 1)):
            keys = [str(rank) for rank in range(size if self.is_speaker or self._ranks.is_main else 1)]
        self._readings += self.is_speaker
        posted = keys if not keys or store.check(keys) else [key for key in keys if store.check([key])]
        texts = dict(zip(map(int, posted), store.multi_get(posted) if posted else [], strict=True))
        self._left |= {rank for rank, text in texts.items() if not text}
        for rank in texts.keys() - self._left:
            heartbeat, (before, seconds) = Heartbeat(**json.loads(texts[rank])), self._heard.get(rank, (None, 0.0))
            is_news = before is None or before.number != heartbeat.number
            # Counted, not measured: the clock runs on while a job is suspended.
            self._heard[rank] = heartbeat, 0.0 if is_news else seconds + self._interval
        if self._readings >= LEAST_READINGS:
            self.can_tell.set()

    def _run(self) -> None:
        try:
            store = rendezvous.with_prefix(rendezvous.connect(CONNECT_TIMEOUT), "heartbeats")
            number = 0
            while not self._stopped:
                number += 1
                self.exchange(store, number)
                self._wake.wait(self._interval)
                self._wake.clear()
            store.set(str(self._ranks.rank), "")  # leaves in good order
        except (RuntimeError, OSError) as error:  # the host of the store is gone
            self.failure = f" ({str(error).strip().splitlines()[0]})" if str(error).strip() else ""
            self.store_is_gone.set()
            self.has_alarm.set()
