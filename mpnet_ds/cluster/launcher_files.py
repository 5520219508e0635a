"""What DeepSpeed's launcher takes on the machine where a run is started: the hostfile, and variables that it hands on.

A hostfile has a line for each host, ``node-a slots=8``. Empty lines, lines that begin with # and whatever follows the number
are ignored. DeepSpeed takes a hostfile that is missing for "this machine alone", and a host without slots for a host; both
are errors here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding

FORM = "Each line must read: HOST slots=N"
PREFIXES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")  # NCCL only where there is a GPU: it does no harm elsewhere


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
    hosts, problems = {}, []
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


def exported_variables(environ: Mapping[str, str], folder: Path) -> tuple[dict[str, str], list[Finding]]:
    """Name → value on the hosts of a run started in ``folder``; lines of .deepspeed_env on which the launcher fails."""
    exported = {name: value for name, value in environ.items() if name.startswith(PREFIXES)}
    exported["PYTHONPATH"] = ":".join(filter(None, (str(folder), environ.get("PYTHONPATH"))))
    findings = []
    for parent in (Path(environ.get("HOME") or Path.home()), folder):
        path = parent / environ.get("DS_ENV_FILE", ".deepspeed_env")
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            name, equals, value = line.partition("=")
            if equals:
                exported[name.strip()] = value.strip()
            else:
                what = f"'{line}' is not NAME=VALUE" if line.strip() else "an empty line"
                text = f"{path}, line {number}: {what}, and deepspeed's launcher fails on it: remove the line."
                findings.append(Finding(text))
    return exported, findings
