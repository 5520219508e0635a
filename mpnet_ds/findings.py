"""Findings of checks, and the wording of disagreements between ranks or hosts."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

Holder = TypeVar("Holder")


@dataclass(frozen=True)
class Finding:
    """An error that must be fixed, or a warning."""

    text: str
    is_fatal: bool = True


def disagreement(
    name: str, facts: Iterable[tuple[Holder, Any]], show: Callable[[list[Holder]], str], everyone: str
) -> str | None:
    """Describe which value most holders of a fact have, and who has another one; None if all agree.

    Args:
        name: name of the fact.
        facts: (holder, JSON value) pairs, the most trusted holder first: its value counts in a tie.
        show: formats some holders.
        everyone: word for all holders: ``ranks``.
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
