"""Values of the command line that take the place of a recipe's: ``--set optimization.weight_decay=0.1``, and flags.

A key is dotted: section, then the keys inside it. A value is JSON where it can be read so (a number, ``true``, a list), else
text.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mpnet_ds.errors import UNKNOWN, UserError, collecting
from mpnet_ds.validation import parse_json, shorten

FLAGS = {
    "objective": "--objective",
    "data.seq_length": "--seq_length",
    "data.sample_mode": "--sample_mode",
    "data.isolate_documents": "--isolate_documents",
    "optimization.max_steps": "--max_steps",
    "optimization.micro_batch_size": "--micro_batch_size",
    "optimization.global_batch_size": "--global_batch_size",
    "optimization.learning_rate": "--learning_rate",
    "run.seed": "--seed",
    "run.save_interval": "--save_interval",
    "run.eval_interval": "--eval_interval",
    "run.log_interval": "--log_interval",
    "run.keep": "--keep",
    "run.hang_timeout": "--hang_timeout",
    "run.lost_timeout": "--lost_timeout",
}
"""Key of a recipe → the flag that gives its value too."""


class Override(NamedTuple):
    """One value that replaces a recipe's."""

    value: Any
    """``UNKNOWN`` if it is wrong: then the recipe's does not count either."""
    source: str
    """``--set`` or the flag, for messages."""


def read_overrides(assignments: Iterable[str], flags: Mapping[str, Override]) -> tuple[dict[str, Override], list[str]]:
    """Overrides by key, those of the flags among them, and what is wrong with others.

    Args:
        assignments: ``KEY=VALUE`` texts of ``--set``; it is wrong to leave out "=", or to give a value or a key twice.
        flags: overrides that flags of their own gave.
    """
    overrides, findings = dict(flags), []
    taken = {_same_value(key): override.source for key, override in flags.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not (equals and all(key.split("."))):
            findings.append(f"--set {assignment}: write KEY=VALUE, for example --set optimization.weight_decay=0.1.")
        elif (source := taken.get(_same_value(key))) is not None:
            both = "--set gives it twice" if source == "--set" else f"{source} and --set {key} give the same value"
            findings.append(f"{key}: {both}. Keep one.")
            overrides[_same_value(key)] = Override(UNKNOWN, "--set")
        else:
            try:
                overrides[key] = Override(_value_of(text), "--set")
            except UserError as error:
                findings.append(f"--set {key}: {error}")
                overrides[key] = Override(UNKNOWN, "--set")
            taken[_same_value(key)] = "--set"
    return overrides, findings


def with_overrides(content: dict, overrides: Mapping[str, Override]) -> tuple[dict, list[str]]:
    """A recipe's content with the overrides in it; whole sections are replaced before keys inside them.

    What is wrong beside it: keys inside something that is not a section.
    """
    findings = []
    for key in sorted(overrides, key=lambda key: key.count(".")):
        with collecting(findings):
            content = _put(content, key.split("."), overrides[key], ())
    return content, findings


def _put(section: dict, keys: list[str], override: Override, place: tuple[str, ...]) -> dict:
    """A copy of ``section``, which is at ``place``, with the value at ``keys`` inside it."""
    name, *inner = keys
    if not inner and override.value is UNKNOWN:
        return {key: value for key, value in section.items() if key != name}
    if not inner:
        return section | {name: override.value}
    below = section.get(name, {})
    if not place and name == "objective" and not isinstance(below, dict):
        below = {"name": below}  # a recipe may give just the name
    if not isinstance(below, dict):
        where = ".".join((*place, name))
        value = shorten(json.dumps(below, ensure_ascii=False))
        raise UserError(f"{override.source}: unknown key '{where}.{'.'.join(inner)}': {where} is {value}, not a section.")
    return section | {name: _put(below, inner, override, (*place, name))}


def _same_value(key: str) -> str:
    """One name for the two ways to name the objective."""
    return "objective" if key == "objective.name" else key


def _value_of(text: str) -> Any:
    """JSON, or the text itself; ``UserError`` for JSON that gives a key twice."""
    try:
        return parse_json(text)
    except UserError:
        raise
    except (ValueError, RecursionError):
        return text
