"""What checks find, and how facts are told in which ranks or hosts must agree."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

Holder = TypeVar("Holder")


@dataclass(frozen=True)
class Finding:
    """Something to be changed, or only to be known."""

    text: str
    is_fatal: bool = True


def disagreement(
    name: str, facts: Iterable[tuple[Holder, Any]], show: Callable[[list[Holder]], str], everyone: str
) -> str | None:
    """What most holders of a fact have, and who has something else; None where all have the same.

    Args:
        name: of the fact.
        facts: holder → value that can be written as JSON, the most trusted first: where it is even, its value counts.
        show: some holders in words.
        everyone: all of them in a word: ``ranks``.
    """
    who: dict[str, list[Holder]] = {}
    for holder, value in facts:
        who.setdefault(json.dumps(value, sort_keys=True), []).append(holder)
    if len(who) < 2:
        return None
    usual, *others = sorted(who, key=lambda value: -len(who[value]))
    odd = "; ".join(f"{_short(value)} on {show(who[value])}" for value in others)
    return f"{name} is {_short(usual)} on {show(who[usual])}, but {odd}: all {everyone} must have the same."


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:30] + "…"
