"""What people state of a dataset's texts, and no program can tell: licence, languages, sources. Kept in ``dataset.json``."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from mpnet_ds.command_line import Parser
from mpnet_ds.errors import UserError, one_line

UNKNOWN = "unknown"
"""Stands, in a statement about several datasets, for those about which nothing was stated."""
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8})*")


@dataclass(frozen=True)
class Provenance:
    """The statements; each is empty where nothing was stated."""

    licenses: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    """Codes such as ``en`` or ``pt-BR``."""
    sources: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """What the texts are called; with objective clm and ``control``, the control code."""

    def updated(self, given: "Provenance") -> "Provenance":
        """These statements, with those that ``given`` makes in place of the old ones."""
        return Provenance(*(getattr(given, one.name) or getattr(self, one.name) for one in fields(self)))

    def describe(self) -> list[str]:
        """A line for each statement, for people."""
        return [f"{name}: {', '.join(stated)}" for name, stated in vars(self).items() if stated]


def joined(statements: Iterable[Provenance]) -> Provenance:
    """The statement about several datasets together."""
    statements = list(statements)
    return Provenance(*(_join([getattr(one, name.name) for one in statements]) for name in fields(Provenance)))


def _join(lists: list[list[str]]) -> list[str]:
    if not any(lists):
        return []
    return list(dict.fromkeys(text for stated in lists for text in stated or [UNKNOWN]))


def add_provenance_arguments(parser: Parser) -> None:
    """Add the flags by which a user states these."""
    add = parser.add_argument
    add("--license", metavar="NAME", help="licence of the texts, such as cc-by-sa-4.0, for model cards")
    add("--language", nargs="+", default=[], metavar="CODE", help="languages of the texts, such as en de, for model cards")
    add("--source", nargs="+", default=[], metavar="NAME", help="where the texts come from, for model cards")
    add("--name", metavar="NAME", help="what the texts are called: the control code of objective clm")


def provenance_of(arguments: argparse.Namespace) -> Provenance:
    """What the flags state; ``UserError`` for an empty text or a language that is not a code."""
    stated = {"license": [arguments.license] * (arguments.license is not None)}
    stated |= {"language": arguments.language, "source": arguments.source}
    stated |= {"name": [arguments.name] * (arguments.name is not None)}
    findings = [f"--{flag} is empty: name it, or leave it out." for flag in stated if not all(map(str.strip, stated[flag]))]
    findings += [
        f"--language is '{one}'; it must be a code, such as en, de or pt-BR."
        for one in arguments.language
        if one.strip() and not LANGUAGE_CODE.fullmatch(one)
    ]
    if findings:
        raise UserError(*findings)
    return Provenance(*([one_line(text.strip()) for text in texts] for texts in stated.values()))
