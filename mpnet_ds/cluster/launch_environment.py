"""What DeepSpeed's launcher hands to the hosts: some of its own environment variables, and those of ``.deepspeed_env``."""

import os
from collections.abc import Mapping
from pathlib import Path

from mpnet_ds.errors import UserError

PREFIXES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Of the variables that it exports; NCCL where it finds a GPU, which does no harm elsewhere."""
FILE_NAME = ".deepspeed_env"


def exported_variables(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Name → value on every host of a run that is started in ``folder``.

    Raises:
        UserError: a line of ``.deepspeed_env`` on which the launcher would break.
    """
    exported = {name: value for name, value in environ.items() if name.startswith(PREFIXES)}
    exported["PYTHONPATH"] = ":".join(filter(None, (str(folder), environ.get("PYTHONPATH"))))
    for place in (Path(environ.get("HOME") or Path.home()), folder):
        path = place / environ.get("DS_ENV_FILE", FILE_NAME)
        if path.is_file():
            exported |= read_environment_file(path)
    return exported


def read_environment_file(path: Path) -> dict[str, str]:
    """The variables that a ``.deepspeed_env`` names; ``UserError`` for lines without a ``=``, which stop the launcher."""
    variables, problems = {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, equals, value = line.partition("=")
        if equals:
            variables[name.strip()] = value.strip()
        else:
            what = f"'{line}' is no NAME=VALUE" if line.strip() else "an empty line"
            problems.append(f"{path}, line {number}: {what}, and deepspeed's launcher breaks on it: remove the line.")
    if problems:
        raise UserError(*problems)
    return variables


def start_folder() -> Path:
    """Where the launcher goes on every host: the folder in which it was started."""
    return Path(os.path.abspath("."))
