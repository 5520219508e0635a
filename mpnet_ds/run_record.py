"""Reading ``run.json``, the record of a run in its output folder: its settings and versions, and those of all its starts.

The top level has the settings of the newest start. ``starts`` has those of every start, oldest first; run/history.py says
what else is in each.
"""

import json
from pathlib import Path
from typing import NamedTuple

from mpnet_ds.errors import UserError

FILE_NAME = "run.json"
STARTS = "starts"
OBJECTS = ("identity", "recipe", "datasets", "versions", "execution", "monitors", "deepspeed_config", "arguments", "data")
"""Entries whose values are looked into."""


class Stretch(NamedTuple):
    """Steps of a run that one of its starts made and none withdrew."""

    start: dict
    """Its entry of ``starts``."""
    first: int
    """Steps done before."""
    last: int


def read_record(output: Path) -> dict | None:
    """Read the record in a folder; None if there is none, ``UserError`` if it is damaged."""
    path = output / FILE_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not all(map(_describes_a_start, [record, *starts_of(record)])):
            raise ValueError("it does not describe a run")
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another --output_dir.") from error
    return record


def _describes_a_start(entry) -> bool:
    """Whether what is there of an entry is of the kinds that readers expect."""
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(key, {}), dict) for key in OBJECTS)
        and all(isinstance(entry.get(key) or 0, int) for key in ("from_step", "to_step"))
    )


def starts_of(record: dict) -> list[dict]:
    """All starts, oldest first. Of a run of an older version only the newest is known: it counts as the first."""
    return record.get(STARTS) or [record]


def stretches_of(starts: list[dict], step: int) -> list[Stretch]:
    """Which starts made the first ``step`` steps, oldest first. A start withdraws what others did after its first step."""
    stretches, last = [], step
    for start in reversed(starts):
        first = start.get("from_step", 0)
        if first < last:
            stretches.insert(0, Stretch(start, first, last))
            last = first
    return stretches
