"""The lines of a run's ``metrics.jsonl``; what they hold is told in ``training/metrics.py``."""

import json
from pathlib import Path

FILE_NAME = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict]:
    """The lines of a ``metrics.jsonl``, without those that a kill or a full disk cut short; none of a missing file."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines
