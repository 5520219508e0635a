"""Standard input as a source: stored in a file first, so that it can be split and read twice."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mpnet_ds.data.text.source import STANDARD_INPUT, Source
from mpnet_ds.errors import UserError, printable
from mpnet_ds.files import BLOCK, fast_checksum

STORED = "standard-input"


def as_recorded(source: Source) -> Source:
    """Return a source as the manifest records it: of standard input only the checksum, since its file is deleted."""
    stem = Path(source.path).stem
    if source.modified or not stem.startswith(f"{STORED}-"):
        return replace(source, path=printable(source.path))
    return replace(source, path="standard input", version=stem.removeprefix(f"{STORED}-"))


@contextmanager
def stored_standard_input(inputs: list[str], folder: Path, kind: str) -> Iterator[list[str]]:
    """Store standard input in ``folder`` and yield the inputs with ``-`` replaced by that file; delete it at the end."""
    if STANDARD_INPUT not in inputs:
        yield inputs
        return
    if inputs.count(STANDARD_INPUT) > 1:
        raise UserError("--input - is given twice: standard input can be read only once.")
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise UserError(f"--input -: standard input is {what}. Pipe text into this program: zcat a.gz | … --input -")
    stored = folder / STORED
    with open(stored, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, BLOCK)
    os.utime(stored, (0, 0))
    # The checksum in its name shows whether a resumed build gets the same input.
    path = stored.rename(folder / f"{STORED}-{fast_checksum(stored)}.{kind}")
    try:
        yield [str(path) if name == STANDARD_INPUT else name for name in inputs]
    finally:
        path.unlink(missing_ok=True)
