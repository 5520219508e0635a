"""The history of a run, as ``run.json`` keeps it: the settings of each of its starts, and what changed between them.

    {…the settings of the newest start…,
     "starts": [{"time": "2026-11-28T15:02:11.123+00:00", "output_dir": "runs/first", "from_step": 0, "to_step": 20,
                 "checkpoint": null, "init_from": "base-model", "base_model": "base-model", "changes": {}, …its settings…},
                {…, "from_step": 20, "to_step": null, "checkpoint": "runs/first/checkpoints/step-00000020", "changes":
                 {"optimization.learning_rate": [0.003, 0.001], "world_size": [1, 2]}, …}]}

``to_step`` is where a start ended: null while it runs; where it was killed, the next start fills in where that begins.
A start with a smaller ``from_step`` withdraws the steps after it. ``changes`` compare a start with the one that made the
step before its first; null stands for a value that was or is not set. A run that begins with the checkpoint of another
folder takes over the starts of that one.
"""

import json
from pathlib import Path

from mpnet_ds.errors import UserError
from mpnet_ds.files import write_atomically
from mpnet_ds.metrics_file import time_stamp
from mpnet_ds.preflight.inspection import flatten
from mpnet_ds.preflight.plan import StartingPoint
from mpnet_ds.run_record import FILE_NAME, STARTS, read_record, starts_of, stretches_of
from mpnet_ds.validation import shorten

COMPARED = ("world_size", "zero_stage", "precision", "device", "hosts")
COMPARED_INSIDE = ("datasets", "versions", "execution", "monitors", "deepspeed_config")
"""Settings whose values are compared one by one; those of DeepSpeed's only where nothing above changed alike."""
SHOWN_AS = {"world_size": "ranks", "zero_stage": "ZeRO stage"}
MOST_LINES = 20

Changes = dict[str, list]
"""Key → its value before and now."""


def earlier_starts(start: StartingPoint) -> list[dict]:
    """The starts of the run that is continued, oldest first: those in its folder, then those of the checkpoint's if it is
    of another folder. Of a checkpoint without its run's record nothing but the folder is known.
    """
    own = read_record(start.output)
    starts = list(starts_of(own)) if own is not None else []
    if start.checkpoint is None or (folder := start.checkpoint.resolve().parent.parent) == start.output.resolve():
        return starts
    try:
        record = read_record(folder)
    except UserError:
        record = None
    is_of_it = record is not None and record.get("identity") == start.identity
    theirs = starts_of(record) if is_of_it else [{"output_dir": str(folder)}]
    known = [one | {"to_step": None} for one in starts]
    return starts if all(one | {"to_step": None} in known for one in theirs) else [*starts, *theirs]


def changes_since(earlier: list[dict], settings: dict, step: int) -> Changes:
    """What differs from the start that made step ``step``; empty at the beginning, or where that is not known."""
    stretches = stretches_of(earlier, step)
    return _changes(stretches[-1].start, settings) if stretches else {}


def continued(earlier: list[dict], settings: dict, start: StartingPoint, changes: Changes) -> dict:
    """The record of a run with one more start, from its ``settings``."""
    starts = [dict(one) for one in earlier]
    if starts and starts[-1].get("to_step") is None:
        starts[-1]["to_step"] = max(start.step, starts[-1].get("from_step", 0))
    first = next((part.start for part in stretches_of(earlier, start.step)), {})
    base = {key: first[key] for key in ("init_from", "base_model") if first.get(key)}
    entry = {
        "time": time_stamp(),
        "output_dir": str(start.output),
        "from_step": start.step,
        "to_step": None,
        "checkpoint": None if start.checkpoint is None else str(start.checkpoint),
        "changes": changes,
    }
    return settings | base | {STARTS: [*starts, entry | settings | base]}


def end(output: Path, step: int) -> None:
    """Note where the newest start ended."""
    record = read_record(output)
    if record is not None:
        starts_of(record)[-1]["to_step"] = step
        write(output, record)


def write(output: Path, record: dict) -> None:
    """Write ``run.json``."""
    write_atomically(output / FILE_NAME, json.dumps(record, indent=2) + "\n")


def describe_changes(changes: Changes, step: int) -> list[str]:
    """Lines for a person: ``optimization.learning_rate 0.003 → 0.001 from step 20 on``."""
    shown = {SHOWN_AS.get(key, key): map(_show, values) for key, values in changes.items()}
    lines = [f"{key} {before} → {now} from step {step} on" for key, (before, now) in shown.items()]
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"and {more} more changes, listed in {FILE_NAME}"]


def _changes(before: dict, now: dict) -> Changes:
    before, now = _comparable(before), _comparable(json.loads(json.dumps(now)))  # tuples become lists, as in the file
    known = {key.partition(".")[0] for key in before}
    changes: Changes = {}
    for key in dict.fromkeys([*now, *before]):
        pair = [before.get(key), now.get(key)]
        follows = key.startswith("deepspeed_config.") and pair in changes.values()
        if pair[0] != pair[1] and not follows and key.partition(".")[0] in known:
            changes[key] = pair
    return changes


def _comparable(settings: dict) -> dict:
    """What may differ between two starts, by key: that of the recipe, or of run.json.

    The model may not, so a key of it that an older version did not have is no change.
    """
    recipe = {key: value for key, value in settings.get("recipe", {}).items() if key != "model"}
    facts = flatten("", recipe) | {key: settings[key] for key in COMPARED if key in settings}
    for key in COMPARED_INSIDE:
        facts |= flatten(key, settings.get(key, {}))
    return facts


def _show(value) -> str:
    text = "unset" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shorten(text, 40)
