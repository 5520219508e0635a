"""A corpus: which sources of text there are, and the documents that each of them holds.

| kind | documents | can be divided at |
|---|---|---|
| ``.txt`` | separated by blank lines, or one a line (``txt_documents``) | a boundary between documents near any byte |
| ``.jsonl`` (``.json`` when named itself) | one a line, in the text field of an object | any line |
| ``.csv``, ``.tsv`` | one a row, in the column of that name | nowhere: a quoted field may span lines |
| ``.parquet`` | one a row, in the column of that name | row groups |
| a ``datasets`` set | one a row | rows; when it is streamed, its own shards |
| ``builtin-sample`` | see ``builtin_sample.py`` | nowhere |

A file may be compressed as ``.gz`` or ``.zst``; then it can be divided nowhere. Sources come in a fixed order: inputs as
given, files of a folder or glob sorted by path.

A document is a list of *sequences*: its lines without blanks at both ends, empty ones left out. Readers yield *blocks* of
some megabytes of documents, since all that follows works on blocks.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from mpnet_ds.data.text import builtin_sample
from mpnet_ds.data.text.source import Block, Faults, ReadOptions, Source
from mpnet_ds.errors import UserError

TEXT_KINDS = {".txt": "txt", ".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
NAMED_KINDS = TEXT_KINDS | {".json": "jsonl", ".ndjson": "jsonl"}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
NOT_TEXT = {"dataset.json", "tokenizer.json"}  # what a folder with one of these holds was made of text


class Corpus:
    """All documents of some inputs. Paths are checked on construction, contents while reading.

    Args:
        inputs: files, folders, globs, ``builtin-sample``; may be empty where ``options`` name a ``dataset``.
    """

    def __init__(self, inputs: list[str], options: ReadOptions | None = None):
        self.options = options or ReadOptions()
        self.sources = [source for name in inputs for source in sources_of(name, self.options)]
        if self.options.dataset is not None:
            from mpnet_ds.data.text.tables import dataset_source

            self.sources.append(dataset_source(self.options))
        if not self.sources:
            raise UserError("no input: give files, folders or 'builtin-sample' with --input, or a set with --dataset.")
        self._check_twice()
        self.num_bytes = sum(source.num_bytes for source in self.sources)

    def _check_twice(self) -> None:
        seen: dict[str, str] = {}
        for source in self.sources:
            real = os.path.realpath(source.path) if source.modified else source.path
            if real in seen:
                again = f" (as {seen[real]}, too)" if seen[real] != source.path else ""
                raise UserError(f"{source.path} is named twice{again}: name each file once. To weigh texts, mix datasets.")
            seen[real] = source.path

    def blocks(self, faults: Faults | None = None) -> Iterator[Block]:
        """All documents; ``faults`` counts those that could not be read."""
        faults = faults or Faults(self.options.on_error)
        for source in self.sources:
            yield from read(source, 0, num_units(source), self.options, faults)


def read(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[Block]:
    """The documents of a part of a source.

    Args:
        start, end: bytes of a divisible file, row groups, rows or shards of a table. The parts of a source that tile
            0 … ``num_units`` hold each document exactly once.
    Raises:
        UserError: what cannot be read, unless ``faults`` lets it pass; a source that has changed since it was listed.
    """
    check_unchanged(source)
    if source.kind == "builtin-sample":
        yield Block(builtin_sample.documents(), source.num_bytes)
    elif source.kind in ("parquet", "datasets"):
        from mpnet_ds.data.text import tables

        yield from tables.read(source, start, end, options, faults)
    else:
        from mpnet_ds.data.text import files

        yield from files.read(source, start, end, options, faults)
    check_unchanged(source)


def num_units(source: Source) -> int:
    """Where a source ends, in the unit by which it is divided."""
    if source.is_divisible:
        return source.num_bytes
    return source.units if source.kind in ("parquet", "datasets") else 1


def check_unchanged(source: Source) -> None:
    """Raises ``UserError`` if a file's size or time are not what they were when it was listed."""
    if not source.modified:
        return
    try:
        now = os.stat(source.path)
    except OSError as error:
        raise UserError(f"{source.path} cannot be read any more: {error.strerror}.") from error
    if (now.st_size, now.st_mtime) != (source.num_bytes, source.modified):
        raise UserError(f"{source.path} was changed while the dataset was built from it: build again.")


def sources_of(name: str, options: ReadOptions) -> list[Source]:
    """What an input stands for; raises ``UserError`` if that is nothing."""
    if name == builtin_sample.NAME:
        import platform

        total = sum(path.stat().st_size for path in builtin_sample.files())
        path = f"documentation strings of Python {platform.python_version()}"
        return [Source(path, "builtin-sample", total, version=platform.python_version())]
    if os.path.isdir(name):
        files = [file for file in _files_below(name) if _kind(file, TEXT_KINDS)]
        if not files:
            raise UserError(f"{name}: no {', '.join(TEXT_KINDS)} file in this folder (also .gz or .zst).")
    elif os.path.exists(name):
        files = [Path(name)]
    elif glob.has_magic(name):
        files = sorted(Path(path) for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if not files:
            raise UserError(f"{name}: no file has such a name.")
    else:
        raise UserError(f"{name}: no such file or folder.")
    return [_file_source(file, options) for file in files]


def _files_below(folder: str) -> list[Path]:
    """All files, sorted; links are followed, each folder is entered once, datasets and tokenizers are passed over."""

    def refuse(error: OSError):
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.")

    files, seen = [], set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or NOT_TEXT & set(names):
            folders.clear()
            continue
        seen.add(real)
        files += [Path(place, name) for name in names if os.path.isfile(os.path.join(place, name))]
    return sorted(files)


def _file_source(file: Path, options: ReadOptions) -> Source:
    kind = _kind(file, NAMED_KINDS)
    if kind is None:
        known = ", ".join(NAMED_KINDS)
        raise UserError(f"{file}: the kind of text is told from the ending; known are {known}, each also with .gz or .zst.")
    if not os.access(file, os.R_OK):
        raise UserError(f"{file} cannot be read: permission denied.")
    found = file.stat()
    source = Source(str(file), kind, found.st_size, found.st_mtime, COMPRESSIONS.get(file.suffix.lower(), ""))
    if kind == "parquet":
        from mpnet_ds.data.text.tables import with_row_groups

        return with_row_groups(source, options)
    return source


def _kind(file: Path, kinds: dict[str, str]) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return kinds.get(suffixes[-1]) if suffixes else None
