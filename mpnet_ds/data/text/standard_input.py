"""Standard input as a source: it is stored first, so that it can be divided, and read twice."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mpnet_ds.data.text.source import STANDARD_INPUT, Source
from mpnet_ds.errors import UserError
from mpnet_ds.files import BLOCK, fast_checksum

STORED = "standard-input"


def recorded(source: Source) -> Source:
    """As it is recorded: the file that held standard input will be gone, only its checksum tells what it was."""
    stem = Path(source.path).stem
    if source.modified or not stem.startswith(f"{STORED}-"):
        return source
    return replace(source, path="standard input", version=stem.removeprefix(f"{STORED}-"))


@contextmanager
def stored_standard_input(inputs: list[str], folder: Path, kind: str) -> Iterator[list[str]]:
    """The inputs with ``-`` replaced by a file in ``folder`` that holds what standard input had; gone at the end."""
    if STANDARD_INPUT not in inputs:
        yield inputs
        return
    if inputs.count(STANDARD_INPUT) > 1:
        raise UserError("--input - is named twice: standard input can be read once.")
    if sys.stdin is None:
        raise UserError("--input -: standard input is closed. Pipe text into this program: zcat a.gz | … --input -")
    if sys.stdin.isatty():
        raise UserError("--input -: standard input is a terminal. Pipe text into this program: zcat a.gz | … --input -")
    stored = folder / STORED
    with open(stored, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, BLOCK)
    os.utime(stored, (0, 0))
    # Its name tells other contents from these when an interrupted build goes on.
    path = stored.rename(folder / f"{STORED}-{fast_checksum(stored)}.{kind}")
    try:
        yield [str(path) if name == STANDARD_INPUT else name for name in inputs]
    finally:
        path.unlink(missing_ok=True)
