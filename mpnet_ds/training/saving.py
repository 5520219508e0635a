"""When the saves of a run succeed and fail, and what is lost with those that fail."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from mpnet_ds.checkpoint.store import MANIFEST, CheckpointStore, SaveFailed
from mpnet_ds.preflight.plan import StartingPoint
from mpnet_ds.ranks.disks import Disks

PAUSES = (1, 2, 5)
"""Seconds before each further attempt to save the last step: a disk may be full, or gone, for a moment."""
MOST_FAILURES = 2
"""Failed saves after which a start that has saved nothing ends."""


class Saving:
    """The saves of one start; every rank must call its methods at the same points.

    Args:
        attempt: saves a checkpoint of the present step in ``store``; raises ``SaveFailed``.
        report: takes the step, the reason and the newest checkpoint (None if there is none) of a save that failed.
    """

    def __init__(
        self,
        store: CheckpointStore,
        start: StartingPoint,
        disks: Disks,
        attempt: Callable[[], object],
        report: Callable[[int, str, Path | None], None],
    ):
        self._store, self._start, self._disks = store, start, disks
        self._attempt, self._report = attempt, report
        self._has_saved = False
        self.num_failures = 0
        """Steps whose save failed."""
        self.saved_step = start.step
        """Step of the newest checkpoint."""

    def save(self, step: int, pause: float = 0) -> bool:
        """Save a checkpoint; return False if that failed: older ones stay. ``pause``: seconds since the last attempt."""
        time.sleep(pause)
        try:
            self._attempt()
        except SaveFailed as failure:
            if not pause:
                self.num_failures += 1
                self._report(step, str(failure), self._newest())
            return False
        self.saved_step, self._has_saved = step, True
        return True

    def save_last(self, step: int) -> bool:
        """Save the last checkpoint, for which there is no next time: try again after each of ``PAUSES``."""
        return self.save(step) or any(self.save(step, pause) for pause in PAUSES)

    @property
    def is_hopeless(self) -> bool:
        """Whether saves have failed again and again, and none has succeeded."""
        return self.num_failures >= MOST_FAILURES and not self._has_saved

    def describe_loss(self, step: int) -> str:
        """Say what ends with this process, and what the same command does then."""
        newest = self._newest()
        is_own = newest is not None and newest.parent == self._store.root  # another's may have any name
        first = (int(newest.name.rpartition("-")[2]) if is_own else self._start.step) + 1 if newest else 1
        again = f"resumes from {newest}" if newest else "begins anew"
        output = self._start.output
        return f"steps {first} to {step} are lost: once {output} can be written, the same command {again}."

    def _newest(self) -> Path | None:
        """What the same command would resume from, as far as the disks show it."""
        resumed_from = self._start.checkpoint
        is_there = resumed_from is not None and all(self._disks.on_each(lambda: os.path.isfile(resumed_from / MANIFEST)))
        return self._store.newest_everywhere(self._disks) or (resumed_from if is_there else None)
