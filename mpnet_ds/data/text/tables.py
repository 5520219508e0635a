"""Documents of parquet files, Arrow files (IPC files and streams) and ``datasets`` datasets, one per row.

A parquet file is split by row groups, an Arrow file by record batches, a dataset by rows, a streamed one by its own shards.
Text may be of any Arrow type that holds UTF-8 (strings, binary, dictionaries of them, JSON, null), or a field of a struct
(``meta.text``). Whatever a foreign reader raises is reported with the place, and reading continues with the next unit.
"""

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mpnet_ds.data.text.decoding import decompressed, explain
from mpnet_ds.data.text.source import LONGEST_DOCUMENT, Block, Faults, ReadOptions, Source, sequences_of
from mpnet_ds.errors import UserError, did_you_mean

ROWS_AT_ONCE = 1024
ARROW_FILE_MAGIC = b"ARROW1"


class _Rows(NamedTuple):
    """Some rows of a table."""

    column: pa.Array | pa.ChunkedArray
    num_bytes: int
    """What they take of the source."""


class _Unit(NamedTuple):
    """What a source can be split into."""

    where: str
    rows: Iterator[_Rows]
    first: int = 0
    """Number of its first row."""
    end: int | None = None
    """Number of the row after the last, where it is known."""


class _ParquetTable:
    """A parquet file, split by row groups."""

    def __init__(self, file: BinaryIO, source: Source):
        self.file, self.source = pq.ParquetFile(file, page_checksum_verification=True), source
        self.schema = self.file.schema_arrow
        groups = [self.file.metadata.row_group(i) for i in range(self.file.num_row_groups)]
        self.unit_bytes = [group.total_byte_size for group in groups]
        self.first_rows = list(itertools.accumulate((group.num_rows for group in groups), initial=0))

    def unit(self, number: int, path: list[str]) -> _Unit:
        """Return a row group."""
        return _Unit(self.source.path, self._rows(number, path), *self.first_rows[number : number + 2])

    def _rows(self, number: int, path: list[str]) -> Iterator[_Rows]:
        for batch in self.file.iter_batches(ROWS_AT_ONCE, row_groups=[number], columns=[".".join(path)]):
            yield _Rows(_column(batch, path), self.source.num_bytes * batch.num_rows // max(self.first_rows[-1], 1))


class _ArrowTable:
    """An Arrow file: an IPC file, split by record batches, or a stream, which is one unit."""

    def __init__(self, file: BinaryIO, source: Source):
        self.file, self.source = file, source
        self.is_stream = file.read(len(ARROW_FILE_MAGIC)) != ARROW_FILE_MAGIC
        file.seek(0)
        self.reader = pa.ipc.open_stream(file) if self.is_stream else pa.ipc.open_file(file)
        self.schema = self.reader.schema
        units = 1 if self.is_stream else self.reader.num_record_batches
        self.unit_bytes = [source.num_bytes // max(units, 1)] * units

    def unit(self, number: int, path: list[str]) -> _Unit:
        """Return a record batch, with rows numbered within it, or the stream."""
        where = "" if self.is_stream else f", record batch {number}"
        return _Unit(f"{self.source.path}{where}", self._rows(number, path))

    def _rows(self, number: int, path: list[str]) -> Iterator[_Rows]:
        for batch, num_bytes in self._batches(number):
            column = _column(batch, path)
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                part = column.slice(start, ROWS_AT_ONCE)
                yield _Rows(part, num_bytes * len(part) // batch.num_rows)

    def _batches(self, number: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        if not self.is_stream:
            yield self.reader.get_batch(number), self.unit_bytes[number]
            return
        self.file.seek(0)
        done = 0
        for batch in pa.ipc.open_stream(self.file):
            yield batch, self.file.tell() - done
            done = self.file.tell()


def with_units(source: Source, options: ReadOptions) -> Source:
    """Return the source with its number of units; a missing column is found here, before anything is built.

    A file that cannot be opened is refused here, or has one unit, which is reported when it is read.
    """
    try:
        table = _open_table(source)
    except UserError as error:
        Faults(options.on_error).report(str(error))
        return replace(source, units=1)
    _find_column(source.path, table.schema, options.text_field)
    return replace(source, units=len(table.unit_bytes))


def unit_bytes(source: Source) -> list[int]:
    """Return the size of each unit of a parquet or Arrow file in bytes."""
    try:
        return _open_table(source).unit_bytes
    except UserError:
        return [source.num_bytes]


def dataset_source(options: ReadOptions) -> Source:
    """Return the ``datasets`` dataset of the options as a source; it is downloaded here unless it is streamed."""
    name = options.dataset
    data = _load_dataset(name, options.dataset_config, options.split, options.streaming)
    if data.features is not None:
        _find_column(name, data.features.arrow_schema, options.text_field)
    if options.streaming:
        return Source(name, "datasets", 0, units=data.num_shards)
    num_bytes = data.data.nbytes if data.num_rows else 0
    return Source(name, "datasets", num_bytes, units=data.num_rows, version=data._fingerprint)


@lru_cache(maxsize=2)
def _load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Any:
    """Load one split of a folder that ``save_to_disk`` wrote, or of anything that ``load_dataset`` accepts."""
    import datasets

    for handler in logging.getLogger("datasets").handlers:  # what it logs as an error is raised, too
        handler.addFilter(lambda record: record.levelno != logging.ERROR)
    try:
        if (Path(name) / "dataset_info.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            data = _split_of(name, datasets.load_from_disk(name), split)
            return data.to_iterable_dataset() if streaming else data
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # the library lets through anything that its readers, its cache or the network raise
        raise UserError(f"--dataset {name} {explain(error)}") from error


def _split_of(name: str, data: Any, split: str) -> Any:
    if not isinstance(data, dict):
        return data
    if split not in data:
        raise UserError(f"{name}: no split '{split}'. {did_you_mean(split, data)}")
    return data[split]


def read(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[Block]:
    """Yield the documents of a range of units; see ``corpus.read``."""
    try:
        units = _units(source, start, end, options)
    except UserError as error:  # with_units lets it through only if faults may be counted
        faults.report(str(error))
        return
    for unit in units:
        yield from _read_unit(unit, source, options, faults)


def _units(source: Source, start: int, end: int, options: ReadOptions) -> Iterator[_Unit]:
    if source.kind == "datasets":
        return (_streamed_units if options.streaming else _row_units)(source, start, end, options)
    table = _open_table(source)
    path = _find_column(source.path, table.schema, options.text_field)
    return (table.unit(number, path) for number in range(start, end))


def _row_units(source: Source, start: int, end: int, options: ReadOptions) -> Iterator[_Unit]:
    data = _load_dataset(source.path, options.dataset_config, options.split, False).with_format("arrow")

    def rows(first: int, last: int) -> Iterator[_Rows]:
        path = _find_column(source.path, data.features.arrow_schema, options.text_field)
        yield _Rows(_column(data[first:last], path), source.num_bytes * (last - first) // source.units)

    for first in range(start, end, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, end)
        yield _Unit(source.path, rows(first, last), first, last)


def _streamed_units(source: Source, start: int, end: int, options: ReadOptions) -> Iterator[_Unit]:
    data = _load_dataset(source.path, options.dataset_config, options.split, True)

    def rows(shard: Any) -> Iterator[_Rows]:
        for table in shard.with_format("arrow").iter(ROWS_AT_ONCE):
            column = _column(table, _find_column(source.path, table.schema, options.text_field))
            yield _Rows(column, column.nbytes)

    for number in range(start, end):
        shard = data.shard(source.units, number)
        yield _Unit(f"{source.path}, shard {number} of {source.units}{_files_of(shard)}", rows(shard))


def _files_of(shard: Any) -> str:
    """Name the files of a streamed shard as far as the library tells: `` (a.jsonl)``."""
    known = getattr(getattr(shard, "_ex_iterable", None), "kwargs", {})
    files = next((known[key] for key in ("original_files", "base_files", "files") if known.get(key)), None)
    return f" ({', '.join(map(str, files))})" if isinstance(files, list) else ""


def _read_unit(unit: _Unit, source: Source, options: ReadOptions, faults: Faults) -> Iterator[Block]:
    row = unit.first
    while True:
        try:
            rows = next(unit.rows, None)
            values = [] if rows is None else _bytes_of(rows.column)
        except UserError:
            raise
        except Exception as error:  # foreign readers raise exceptions of all kinds
            place, lost = (
                (f"from row {row} on", 1) if unit.end is None else (f"in rows {row} to {unit.end - 1}", unit.end - row)
            )
            faults.report(f"{unit.where} {explain(error, place, source.compression)}", count=lost)
            return
        if rows is None:
            return
        yield Block(_documents(values, row, unit.where, options, faults), rows.num_bytes)
        row += len(values)


def _documents(values: list[bytes | None], row: int, where: str, options: ReadOptions, faults: Faults) -> list[list[str]]:
    """Decode texts; null is an empty document, and what is not UTF-8 is reported, then skipped or repaired."""
    documents = []
    for number, value in enumerate(values, row):
        if value is None:
            documents.append([])
        elif len(value) > LONGEST_DOCUMENT:
            faults.report(f"{where}, row {number}: a document of more than {LONGEST_DOCUMENT >> 20} MiB: split it.")
        else:
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError as error:
                faults.report(f"{where}, row {number}: a text is not UTF-8 ({error.reason}).", can_replace=True)
                if faults.on_error != "replace":
                    continue
                text = value.decode("utf-8", "replace")
            documents.append(sequences_of(text, options))
    return documents


@lru_cache(maxsize=1)
def _open_table(source: Source) -> _ParquetTable | _ArrowTable:
    """Open a file, or return the last one: many ranges may come from it, and opening a compressed one takes long."""
    try:
        file = pa.OSFile(os.fsencode(source.path))  # pyarrow refuses a str that is not UTF-8
        if source.compression:
            plain = tempfile.TemporaryFile()  # tables are read from their ends, which a compressed stream does not allow
            shutil.copyfileobj(decompressed(file, source.compression), plain)
            plain.seek(0)
            file = plain
        return (_ParquetTable if source.kind == "parquet" else _ArrowTable)(file, source)
    except Exception as error:
        raise UserError(f"{source.path} {explain(error, compression=source.compression)}") from error


def _find_column(path: str, schema: pa.Schema, name: str) -> list[str]:
    """Return the names that lead to the text: one, or those of nested structs (``meta.text``).

    Raises:
        UserError: the column does not exist, or several do; it does not hold text.
    """
    names = [name] if name in schema.names else name.split(".")
    fields, kind = list(schema), None
    for depth, wanted in enumerate(names):
        found = [field.type for field in fields if field.name == wanted]
        if not found:
            hint = did_you_mean(name, [".".join([*names[:depth], field.name]) for field in fields])
            raise UserError(f"{path}: no column '{name}'. {hint} Use --text_field.")
        if len(found) > 1:
            raise UserError(f"{path}: several columns are called '{name}': rename all but one.")
        kind = found[0]
        fields = list(kind.fields) if pa.types.is_struct(kind) else []
    if not _holds_text(kind):
        example = f", or a field of it, as {name}.{fields[0].name}" if fields else ""
        raise UserError(f"{path}: column '{name}' holds {kind}, not text. Choose another with --text_field{example}.")
    return names


def _holds_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_text(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_text(kind.value_type)
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in (*tests, types.is_binary_view, types.is_null))


def _column(table: pa.RecordBatch | pa.Table, path: list[str]) -> pa.Array | pa.ChunkedArray:
    column = table.column(table.schema.get_field_index(path[0]))
    return pc.struct_field(column, path[1:]) if path[1:] else column


def _bytes_of(column: pa.Array | pa.ChunkedArray) -> list[bytes | None]:
    """Return the values of a column of text; texts that are not UTF-8 among them."""
    try:
        column.validate(full=True)  # damaged offsets end the process
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    return column.cast(pa.large_binary()).to_pylist()
