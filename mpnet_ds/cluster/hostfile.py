"""Hostfiles: which hosts take part, and with how many ranks. One line for each, as DeepSpeed's launcher reads it:

    node-a slots=8

Empty lines, lines that begin with # and whatever follows the number are passed over. DeepSpeed takes a hostfile that is
missing for "this machine alone", and a host without slots for a host; both are errors here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mpnet_ds.errors import UserError

FORM = "Each line must read: HOST slots=N"
_LINE = re.compile(r"^(\S+)\s+slots=(\d+)", re.ASCII)


@dataclass(frozen=True)
class Host:
    """One line of a hostfile."""

    name: str
    slots: int
    """Ranks that are started there."""


def read_hostfile(path: str | Path) -> list[Host]:
    """The hosts in their order; the first is where rank 0 runs.

    Raises:
        UserError: the file is missing or no text, or what is wrong with it, line by line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no hostfile {path}: deepspeed would train on this machine alone. {FORM}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path} is no hostfile. {FORM}") from None
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, path: str) -> list[Host]:
    """As ``read_hostfile``; ``path`` is for messages."""
    hosts: dict[str, Host] = {}
    lines: dict[str, int] = {}
    problems = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.match(line)
        if not found:
            problems.append(f"{path}, line {number}: '{line}' names no host with its slots. {FORM}")
        elif found[1] in hosts:
            problems.append(f"{path}, line {number}: {found[1]} stands in line {lines[found[1]]} already: join the two.")
        elif int(found[2]) == 0:
            problems.append(f"{path}, line {number}: {found[1]} has slots=0: remove the line, or put a # before it.")
        else:
            hosts[found[1]], lines[found[1]] = Host(found[1], int(found[2])), number
    if not hosts and not problems:
        problems = [f"{path} names no host. {FORM}"]
    if problems:
        raise UserError(*problems)
    return list(hosts.values())
