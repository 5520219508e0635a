"""What DeepSpeed's launcher hands to the hosts: some of its own environment variables, and those of ``.deepspeed_env``."""

from collections.abc import Mapping
from pathlib import Path

from mpnet_ds.findings import Finding

PREFIXES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")  # NCCL only where there is a GPU: it does no harm elsewhere


def exported_variables(environ: Mapping[str, str], folder: Path) -> tuple[dict[str, str], list[Finding]]:
    """Name → value on every host of a run that is started in ``folder``, and lines on which the launcher would fail."""
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
