"""The one exception that means "the user must change something"."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Its text names the thing and the cure; command-line programs print it and leave with exit code 2."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest of ``choices``, or all of them when none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(choices)}."
