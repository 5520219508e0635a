"""Reading the ``metrics.jsonl`` of a run, and its time stamps; ``training/metrics.py`` describes its content."""

import json
from datetime import datetime, timezone
from pathlib import Path

FILE_NAME = "metrics.jsonl"


def time_stamp() -> str:
    """Now, in UTC, in the one format of metrics.jsonl and run.json: ``2026-11-28T15:02:11.123+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def read_metrics(path: Path) -> list[dict]:
    """Read all lines, except those that a kill or a full disk truncated; a missing file has none."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines
