"""What DeepSpeed's launcher hands to the hosts: some of its own environment variables, and those of ``.deepspeed_env``."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mpnet_ds.findings import Finding

PREFIXES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Of the variables that it exports; NCCL where it finds a GPU, which does no harm elsewhere."""
FILE_NAME = ".deepspeed_env"


def exported_variables(environ: Mapping[str, str], folder: Path) -> tuple[dict[str, str], list[Finding]]:
    """Name → value on every host of a run that is started in ``folder``, and lines on which the launcher would break."""
    exported = {name: value for name, value in environ.items() if name.startswith(PREFIXES)}
    exported["PYTHONPATH"] = ":".join(filter(None, (str(folder), environ.get("PYTHONPATH"))))
    findings = []
    for place in (Path(environ.get("HOME") or Path.home()), folder):
        path = place / environ.get("DS_ENV_FILE", FILE_NAME)
        if path.is_file():
            own, problems = read_environment_file(path)
            exported |= own
            findings += problems
    return exported, findings


def read_environment_file(path: Path) -> tuple[dict[str, str], list[Finding]]:
    """The variables that a ``.deepspeed_env`` names, and its lines without a ``=``, which stop the launcher."""
    variables, findings = {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, equals, value = line.partition("=")
        if equals:
            variables[name.strip()] = value.strip()
        else:
            what = f"'{line}' is no NAME=VALUE" if line.strip() else "an empty line"
            text = f"{path}, line {number}: {what}, and deepspeed's launcher breaks on it: remove the line."
            findings.append(Finding(text))
    return variables, findings


def check_pdsh() -> list[Finding]:
    """Whether this machine can start a run over several hosts as ``deepspeed`` does by default."""
    if shutil.which("pdsh"):
        return []
    text = "pdsh is not installed on this machine: deepspeed --hostfile needs it where the run is started"
    return [Finding(f"{text} (apt install pdsh); mpirun, srun and torchrun do not.", is_fatal=False)]


def start_folder() -> Path:
    """Where the launcher goes on every host: the folder in which it was started."""
    return Path(os.path.abspath("."))
