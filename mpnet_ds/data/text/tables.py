"""Documents of parquet files and ``datasets`` datasets, one per row.

A parquet file is split by row groups, a dataset by rows, a streamed dataset by its own shards.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpnet_ds.data.text.files import decompressed
from mpnet_ds.data.text.source import LONGEST_DOCUMENT, Block, Faults, ReadOptions, Source, sequences_of
from mpnet_ds.errors import UserError, did_you_mean

ROWS_AT_ONCE = 1024


def with_row_groups(source: Source, options: ReadOptions) -> Source:
    """Return the source with its number of row groups; a missing column is found here, before anything is built."""
    file = _open_parquet(source)
    _check_column(source.path, file.schema_arrow, options.text_field)
    return replace(source, units=file.num_row_groups)


def row_group_bytes(source: Source) -> list[int]:
    """Return the uncompressed size of each row group in bytes."""
    metadata = _open_parquet(source).metadata
    return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]


def dataset_source(options: ReadOptions) -> Source:
    """Return the ``datasets`` dataset of the options as a source; it is downloaded here unless it is streamed."""
    name = options.dataset
    data = _load_dataset(name, options.dataset_config, options.split, options.streaming)
    if data.column_names is not None:
        _check_column_name(name, options.text_field, data.column_names)
    if options.streaming:
        return Source(name, "datasets", 0, units=data.num_shards)
    num_bytes = data.data.nbytes if data.num_rows else 0
    return Source(name, "datasets", num_bytes, units=data.num_rows, version=data._fingerprint)


@lru_cache(maxsize=2)
def _load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Any:
    """Load one split of a folder that ``save_to_disk`` wrote, or of anything that ``load_dataset`` accepts."""
    import datasets

    try:
        if (Path(name) / "dataset_info.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            data = _split_of(name, datasets.load_from_disk(name), split)
            return data.to_iterable_dataset() if streaming else data
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # the library lets through anything that its readers, its cache or the network raise
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"--dataset {name}: {type(error).__name__}: {first_line}") from error


def _split_of(name: str, data: Any, split: str) -> Any:
    if not isinstance(data, dict):
        return data
    if split not in data:
        raise UserError(f"{name}: no split '{split}'. {did_you_mean(split, data)}")
    return data[split]


def read(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[Block]:
    """Yield the documents of a range of row groups, rows or shards; see ``corpus.read``."""
    reader = _read_parquet if source.kind == "parquet" else _read_streamed if options.streaming else _read_rows
    num_rows = _open_parquet(source).metadata.num_rows if source.kind == "parquet" else source.units
    for texts, first_row in reader(source, start, end, options, faults):
        documents = []
        for row, text in enumerate(texts, first_row):
            if text is not None and not isinstance(text, str):
                faults.report(f"{source.path}, row {row}: '{options.text_field}' is {str(text)[:40]!r}, not text.")
            elif text is not None and len(text) > LONGEST_DOCUMENT:
                faults.report(f"{source.path}, row {row}: a document of more than {LONGEST_DOCUMENT >> 20} MiB: split it.")
            elif text:
                documents.append(sequences_of(text, options))
        size = source.num_bytes * len(texts) // max(num_rows, 1) if source.num_bytes else sum(map(len, map(str, texts)))
        yield Block(documents, size)


def _read_parquet(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[tuple[list, int]]:
    file = _open_parquet(source)
    row = sum(file.metadata.row_group(i).num_rows for i in range(start))
    for group in range(start, end):
        next_row = row + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[options.text_field]):
                yield _texts_of(batch.column(0), f"{source.path}, from row {row}", faults), row
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            faults.report(f"{source.path} is damaged between rows {row} and {next_row} ({error}). Download it again.")
        row = next_row


def _read_rows(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[tuple[list, int]]:
    data = _load_dataset(source.path, options.dataset_config, options.split, False)
    for row in range(start, end, ROWS_AT_ONCE):
        rows = data.with_format("arrow")[row : min(row + ROWS_AT_ONCE, end)]
        column = rows.column(options.text_field).combine_chunks()
        yield _texts_of(column, f"{source.path}, from row {row}", faults), row


def _texts_of(column: pa.Array, where: str, faults: Faults) -> list:
    """Return the values of a column; a text that is not UTF-8 is reported, then skipped or repaired."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        texts = []
        for value in column.cast(pa.large_binary()).to_pylist():
            try:
                texts.append(value if value is None else value.decode("utf-8"))
            except UnicodeDecodeError as error:
                faults.report(f"{where}: a text is not UTF-8 ({error.reason}).", can_replace=True)
                texts.append(value.decode("utf-8", "replace") if faults.on_error == "replace" else None)
        return texts


def _read_streamed(source: Source, start: int, end: int, options: ReadOptions, _: Faults) -> Iterator[tuple[list, int]]:
    data = _load_dataset(source.path, options.dataset_config, options.split, True)
    for number in range(start, end):
        row = 0
        for batch in data.shard(source.units, number).iter(ROWS_AT_ONCE):
            _check_column_name(source.path, options.text_field, batch)
            yield batch[options.text_field], row
            row += len(batch[options.text_field])


@lru_cache(maxsize=1)
def _open_parquet(source: Source) -> pq.ParquetFile:
    """Open a file, or return the last one: many ranges may come from it, and opening a compressed one takes long."""
    try:
        if not source.compression:
            return pq.ParquetFile(source.path)
        plain = tempfile.TemporaryFile()  # parquet is read from its end, which a compressed stream does not allow
        with open(source.path, "rb") as stored:
            shutil.copyfileobj(decompressed(stored, source), plain)
        return pq.ParquetFile(plain)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{source.path} is not a complete parquet file ({error}). Download it again.") from error


def _check_column(path: str, schema: pa.Schema, name: str) -> None:
    _check_column_name(path, name, schema.names)
    if schema.names.count(name) > 1:
        raise UserError(f"{path}: several columns are called '{name}': rename all but one.")
    kind = schema.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
        raise UserError(f"{path}: column '{name}' holds {kind}, not text. Choose another with --text_field.")


def _check_column_name(path: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise UserError(f"{path}: no column '{name}'. {did_you_mean(name, names)} Use --text_field.")
