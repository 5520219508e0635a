"""A corpus: the sources of text, and the documents in each of them.

| kind | documents | can be split at |
|---|---|---|
| ``.txt`` | separated by blank lines, or one per line (``txt_documents``) | a document boundary near any byte |
| ``.jsonl``, ``.ndjson``, ``.json`` | one per line, in the text field of an object | any line |
| ``.csv``, ``.tsv`` | one per row, in the column of that name | nowhere: a quoted field may span lines |
| ``.parquet``, ``.arrow`` | one per row, in the column of that name | row groups; record batches, but for streams |
| a ``datasets`` dataset | one per row | rows; its own shards when streamed |
| ``builtin-sample`` | see ``builtin_sample.py`` | nowhere |

Files may be compressed as ``.gz``, ``.bz2``, ``.xz`` or ``.zst`` and cannot be split then. The order of sources is fixed:
inputs as given, files of a folder or glob sorted by path.

A document is a list of *sequences*: its stripped lines, without empty ones; or its text as it is, for tokenizers to which
white space means something. Readers yield *blocks* of a few megabytes of documents, since all later stages work on blocks.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mpnet_ds.data.text import builtin_sample
from mpnet_ds.data.text.folders import (
    COMPRESSIONS,
    KINDS,
    PassedOver,
    compression_of,
    kind_of,
    text_files_below,
    without_copies,
)
from mpnet_ds.data.text.source import STANDARD_INPUT, Block, Faults, ReadOptions, Source
from mpnet_ds.errors import UserError, collecting

TABLES = ("parquet", "arrow")
ENDINGS = f"{', '.join(KINDS)}, also followed by {', '.join(COMPRESSIONS)}"


class Corpus:
    """All documents of some inputs. Paths are checked at construction, contents while reading; ``passed_over`` holds the
    files of folders and patterns that are not read.

    Args:
        inputs: files, folders, globs, ``builtin-sample``; may be empty where ``options`` name a ``dataset``.
    """

    def __init__(self, inputs: list[str], options: ReadOptions | None = None):
        self.options, self.passed_over = options or ReadOptions(), PassedOver()
        self.sources, findings = [], []
        for name in inputs:
            with collecting(findings):
                self.sources += sources_of(name, self.options, self.passed_over)
        if findings:
            raise UserError(*findings)
        if self.options.dataset is not None:
            from mpnet_ds.data.text.tables import dataset_source

            self.sources.append(dataset_source(self.options))
        if not self.sources:
            raise UserError("no input: pass files, folders or 'builtin-sample' with --input, or a dataset with --dataset.")
        self._refuse_duplicates()
        self.num_bytes = sum(source.num_bytes for source in self.sources)

    def _refuse_duplicates(self) -> None:
        seen: dict[str, str] = {}
        for source in self.sources:
            real = os.path.realpath(source.path) if source.modified else source.path
            if real in seen:
                again = f" (also as {seen[real]})" if seen[real] != source.path else ""
                raise UserError(f"{source.path} is given twice{again}: name each file once; to weight texts, mix datasets.")
            seen[real] = source.path

    def blocks(self, faults: Faults | None = None) -> Iterator[Block]:
        """Yield all documents; ``faults`` counts unreadable ones."""
        faults = faults or Faults(self.options.on_error)
        for source in self.sources:
            yield from read(source, 0, num_units(source), self.options, faults)


def read(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[Block]:
    """Yield the documents of a range of a source.

    Args:
        start, end: bytes of a divisible file; row groups, rows or shards of a table. Ranges that tile 0 … ``num_units``
            hold each document exactly once.
    Raises:
        UserError: an unreadable document, unless ``faults`` allows it; a source that changed since it was listed.
    """
    check_unchanged(source)
    if source.kind == "builtin-sample":
        yield Block(builtin_sample.documents(), source.num_bytes)
    elif source.kind in (*TABLES, "datasets"):
        from mpnet_ds.data.text import tables

        yield from tables.read(source, start, end, options, faults)
    else:
        from mpnet_ds.data.text import files

        yield from files.read(source, start, end, options, faults)
    check_unchanged(source)


def num_units(source: Source) -> int:
    """Size of a source in the units by which it is split: bytes, row groups, rows or shards; 1 if it cannot be split."""
    if source.is_divisible:
        return source.num_bytes
    return source.units if source.kind in (*TABLES, "datasets") else 1


def check_unchanged(source: Source) -> None:
    """Raise ``UserError`` if the size or time of a file is not what it was when it was listed."""
    if not source.modified:
        return
    try:
        now = os.stat(source.path)
    except OSError as error:
        raise UserError(f"{source.path} can no longer be read: {error.strerror}.") from error
    if (now.st_size, now.st_mtime) != (source.num_bytes, source.modified):
        raise UserError(f"{source.path} was changed while it was being read: start again.")


def sources_of(name: str, options: ReadOptions, passed_over: PassedOver) -> list[Source]:
    """List the sources of one input; raise ``UserError`` if there are none."""
    if name == builtin_sample.NAME:
        import platform

        total = sum(path.stat().st_size for path in builtin_sample.files())
        path = f"documentation strings of Python {platform.python_version()}"
        return [Source(path, "builtin-sample", total, version=platform.python_version())]
    if os.path.isdir(name):
        files = text_files_below(name, passed_over)
        if not files:
            raise UserError(f"{name}: this folder has no file that ends with {ENDINGS}. {passed_over}".strip())
    elif os.path.exists(name):
        files = [Path(name)]
    elif glob.has_magic(name):
        found = sorted(Path(path) for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        files = without_copies(found, passed_over)
        if not files:
            raise UserError(f"{name}: no file matches this pattern.")
    else:
        check_inputs([name])
    return [_file_source(file, options) for file in files]


def check_inputs(inputs: Iterable[str]) -> None:
    """Raise ``UserError`` with a text for each input that is not a file, a folder or a pattern."""
    special = (builtin_sample.NAME, STANDARD_INPUT)
    names = (name for name in inputs if name not in special and not os.path.exists(name) and not glob.has_magic(name))
    if missing := [f"{name}: no such file or folder." for name in names]:
        raise UserError(*missing)


def _file_source(file: Path, options: ReadOptions) -> Source:
    kind = kind_of(file)
    if kind is None:
        raise UserError(f"{file}: unknown file extension; it must be one of {ENDINGS}.")
    if not os.access(file, os.R_OK):
        raise UserError(f"{file} cannot be read: permission denied.")
    found = file.stat()
    source = Source(str(file), kind, found.st_size, found.st_mtime, compression_of(file))
    if kind in TABLES:
        from mpnet_ds.data.text.tables import with_units

        return with_units(source, options)
    return source
