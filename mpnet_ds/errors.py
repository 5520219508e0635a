"""The exceptions that mean "the user must change something"."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Its text names the thing and the cure; command-line programs print it and leave with exit code 2.

    ``UserError(text)`` is one finding; several texts are several findings, which are said as a numbered list.
    """

    @property
    def findings(self) -> tuple[str, ...]:
        """One text for each thing that must be changed."""
        return self.args

    def __str__(self) -> str:
        if len(self.findings) < 2:
            return "".join(self.findings)
        lines = [f"\n  {number}. {text}" for number, text in enumerate(self.findings, 1)]
        return f"{len(lines)} things must be changed first:{''.join(lines)}"


class AgreedError(UserError):
    """A ``UserError`` that every rank raises with the same text, so that rank 0 can say it for all."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest of ``choices``, or all of them when none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(choices)}."
