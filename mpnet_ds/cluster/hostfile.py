"""Hostfiles: which hosts take part, and with how many ranks. One line for each, ``node-a slots=8``, as DeepSpeed reads it.

Empty lines, lines that begin with # and whatever follows the number are ignored. DeepSpeed takes a hostfile that is missing
for "this machine alone", and a host without slots for a host; both are errors here.
"""

import re
from pathlib import Path
from typing import NamedTuple

from mpnet_ds.errors import UserError

FORM = "Each line must read: HOST slots=N"


class Host(NamedTuple):
    """A host, and how many ranks are started there."""

    name: str
    slots: int


def read_hostfile(path: str | Path) -> list[Host]:
    """The hosts in their order; rank 0 runs on the first. ``UserError`` names every line that is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no hostfile {path}: deepspeed would train on this machine alone. {FORM}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path} is not a hostfile. {FORM}") from None
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, path: str) -> list[Host]:
    """The hosts that a text names; ``path`` is for messages."""
    hosts: dict[str, Host] = {}
    problems = []
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        found = re.match(r"(\S+)\s+slots=(\d+)", line, re.ASCII)
        if not line or line.startswith("#"):
            continue
        if not found:
            problems.append(f"{path}, line {number}: '{line}' names no host with its slots. {FORM}")
        elif found[1] in hosts:
            problems.append(f"{path}, line {number}: {found[1]} is in a line above already: join the two.")
        elif int(found[2]) == 0:
            problems.append(f"{path}, line {number}: {found[1]} has slots=0: remove the line, or put a # before it.")
        else:
            hosts[found[1]] = Host(found[1], int(found[2]))
    if problems or not hosts:
        raise UserError(*(problems or [f"{path} names no host. {FORM}"]))
    return list(hosts.values())
