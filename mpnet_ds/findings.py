"""Findings of checks, and the wording of disagreements between ranks or hosts."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Holder = TypeVar("Holder")


@dataclass(frozen=True)
class Finding:
    """An error that must be fixed, or a warning."""

    text: str
    is_fatal: bool = True


def describe_disagreements(
    facts: Collection[tuple[Holder, Mapping[str, Any]]], show: Callable[[list[Holder]], str], everyone: str
) -> Iterator[str]:
    """Describe each fact on which those who know it disagree: which value most of them have, and who has another one.

    Args:
        facts: holders with their facts, name → JSON value; the most trusted holder first: its value counts in a tie.
        show: formats some holders.
        everyone: word for all holders: ``ranks``.
    """
    for name in dict.fromkeys(name for _, known in facts for name in known):
        who: dict[str, list[Holder]] = {}
        for holder, known in facts:
            if name in known:
                who.setdefault(json.dumps(known[name], sort_keys=True), []).append(holder)
        usual, *others = sorted(who, key=lambda value: -len(who[value]))
        if others:
            odd = "; ".join(f"{_short(value)} on {show(who[value])}" for value in others)
            yield f"{name} is {_short(usual)} on {show(who[usual])}, but {odd}: all {everyone} must have the same."


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:30] + "…"
