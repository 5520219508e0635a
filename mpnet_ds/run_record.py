"""Reading ``run.json``, the record of a run in its output folder: all resolved settings and versions."""

import json
from pathlib import Path

from mpnet_ds.errors import UserError

FILE_NAME = "run.json"


def read_record(output: Path) -> dict | None:
    """Read the record in a folder; None if there is none, ``UserError`` if it is damaged."""
    path = output / FILE_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): choose another --output_dir.") from error
