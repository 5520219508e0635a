r"""Rows of CSV and TSV files in the dialects that occur.

| ``csv_quotes`` | meaning of quotes |
|---|---|
| ``doubled`` | a field that begins with one ends with the next; ``""`` in it stands for a quote |
| ``backslash`` | the same, and ``\"`` stands for a quote, too (Spark, MySQL) |
| ``none`` | none: they are characters like others, as usual in .tsv |

What the options leave open is found from the beginning of each file: of the dialects in which the header has the wanted
column, the one that loses the fewest rows there; if several do, the first of ``_DELIMITERS`` and ``_QUOTES``.

A row that cannot be read costs one line: it is reported, and the next line is taken as the start of the next row.
"""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mpnet_ds.data.text.source import (
    AUTO,
    LONGEST_DOCUMENT,
    NAMED_DELIMITERS,
    Chunk,
    Fault,
    ParsedChunk,
    ReadOptions,
    Source,
    sequences_of,
)
from mpnet_ds.errors import UserError, did_you_mean

SAMPLE_CHARACTERS = 1 << 16
_DELIMITERS = {"csv": ",;|\t", "tsv": "\t,;|"}
_QUOTES = {"csv": ("doubled", "backslash"), "tsv": ("none", "doubled", "backslash")}
_EXCELS_LINE = re.compile(r'\A"?sep=."?\n')  # names the delimiter, which is found anyway
_BACKSLASH = re.compile(r'(\\["\\])|\\')


Report = Callable[[Chunk, int, str], None]
"""Is told of a row that cannot be read: its chunk, the number of its first line in that, from 0, and what is wrong."""


class _Dialect(NamedTuple):
    """How rows are divided into cells."""

    delimiter: str
    quotes: str
    skips_blanks: bool
    """Whether blanks before a quote do not belong to the cell."""

    def __str__(self) -> str:
        return f"--csv_delimiter '{'tab' if self.delimiter == chr(9) else self.delimiter}' --csv_quotes {self.quotes}"

    def lines(self, chunk: Chunk) -> list[str]:
        """Return the lines of a chunk for ``reader``."""
        lines = list(io.StringIO(chunk.text, newline="\n"))
        if self.quotes == "backslash":  # csv drops a backslash that escapes nothing
            return [_BACKSLASH.sub(lambda found: found[1] or r"\\", line) if "\\" in line else line for line in lines]
        return lines

    def reader(self, lines: Iterable[str]):
        """Return a ``csv.reader``."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_NONE if self.quotes == "none" else csv.QUOTE_MINIMAL,
            escapechar="\\" if self.quotes == "backslash" else None,
            skipinitialspace=self.skips_blanks,
            strict=True,
        )


def read(chunks: Iterator[Chunk], source: Source, options: ReadOptions, report: Report) -> Iterator[ParsedChunk]:
    """Yield the documents of a file."""
    csv.field_size_limit(LONGEST_DOCUMENT)
    first = next((chunk for chunk in chunks if chunk.text.strip()), None)
    if first is None:  # an empty file
        return
    first.text = _EXCELS_LINE.sub("\n", first.text)
    dialect, column = _find_dialect(first, source, options)

    def report_row(chunk: Chunk, number: int, what: str) -> None:
        report(chunk, number, f"{what} with {dialect}.")

    is_header = options.csv_header != "none"
    for texts, fault in _cells(column, itertools.chain([first], chunks), dialect, report_row):
        documents = [sequences_of(text, options) for text in (texts[1:] if is_header else texts)]
        yield ParsedChunk(documents, fault)
        is_header = is_header and not texts


class _Buffer:
    """Lines of which no row has been made yet, and the chunks that they are from."""

    def __init__(self):
        self.lines: list[str] = []
        self._origins: list[tuple[int, Chunk]] = []  # the index here of a chunk's first line, below 0 if that is gone

    def add(self, lines: list[str], chunk: Chunk) -> None:
        """Append the lines of a chunk."""
        self._origins.append((len(self.lines), chunk))
        self.lines += lines

    def drop(self, count: int) -> None:
        """Remove the first lines."""
        ends = [*(index for index, _ in self._origins[1:]), len(self.lines)]
        left = [origin for origin, end in zip(self._origins, ends, strict=False) if end > count]
        self.lines, self._origins = self.lines[count:], [(index - count, chunk) for index, chunk in left]

    def origin(self, line: int) -> tuple[Chunk, int]:
        """Return the chunk of a line, and the number of the line in it."""
        index, chunk = [one for one in self._origins if one[0] <= line][-1]
        return chunk, line - index

    @property
    def fault(self) -> Fault | None:
        """The first fault of the bytes of these lines."""
        return next((chunk.fault for _, chunk in self._origins if chunk.fault), None)


def _cells(
    column: int | slice, chunks: Iterable[Chunk], dialect: _Dialect, report: Report
) -> Iterator[tuple[list, Fault | None]]:
    """Yield a column of the rows that end in each chunk, without blank ones, and a fault of the bytes that they come from.

    A row of another width than the first cannot be read.
    """
    buffer, width = _Buffer(), 0
    for chunk in itertools.chain(chunks, [None]):
        if chunk is not None:
            buffer.add(dialect.lines(chunk), chunk)
        found, start, is_open = [], 0, False
        while start < len(buffer.lines) and not is_open:
            begin, what = start, ""
            reader = dialect.reader(map(buffer.lines.__getitem__, range(begin, len(buffer.lines))))
            try:
                for cells in reader:
                    width = width or len(cells)
                    if cells and len(cells) == width:
                        found.append(cells[column])
                    elif cells:
                        what = f"a row of {len(cells)} columns instead of {width}"
                        break
                    start = begin + reader.line_num
            except csv.Error as error:
                what = f"not CSV ({error}; if quotes mean nothing in this file, --csv_quotes none)"
                is_open = chunk is not None and begin + reader.line_num == len(buffer.lines)  # the next chunk may close it
            if what and not is_open:
                report(*buffer.origin(start), what)
                start += 1
        yield found, buffer.fault
        buffer.drop(start)


def _find_dialect(first: Chunk, source: Source, options: ReadOptions) -> tuple[_Dialect, int]:
    """Return the dialect of a file, found from its first chunk, and the index of the column with the text."""
    end = first.text.find("\n", SAMPLE_CHARACTERS) + 1 or len(first.text)
    sample = Chunk(first.text[:end], b"", 0)
    found = []
    for dialect in _dialects(source.kind, options):
        header, lost = _try(dialect, sample)
        column = _column_of(header, options)
        if column is not None:
            found.append(((lost, len(header) == 1, len(found)), dialect, column, header))
            if not lost and len(header) > 1:
                break
    if not found:
        raise UserError(_no_column(sample, source, options))
    _, dialect, column, header = min(found)
    if options.csv_header != "none" and header.count(options.text_field) > 1:
        raise UserError(f"{source.path}: several columns are called '{options.text_field}': rename all but one.")
    return dialect, column


def _try(dialect: _Dialect, sample: Chunk) -> tuple[list[str], int]:
    """Return the cells of the first row, and how many rows are lost."""
    lost = []
    cells = _cells(slice(None), [sample], dialect, lambda *fault: lost.append(fault))
    rows = [row for rows, _ in cells for row in rows]
    return [cell.strip() for cell in rows[0]] if rows else [], len(lost)


def _dialects(kind: str, options: ReadOptions) -> Iterator[_Dialect]:
    """Yield the dialects that the options allow, the usual one first."""
    delimiter, quotes = NAMED_DELIMITERS.get(options.csv_delimiter, options.csv_delimiter), options.csv_quotes
    for one in _DELIMITERS[kind] if delimiter == AUTO else delimiter:
        for skips_blanks in (False, True):
            for meaning in _QUOTES[kind] if quotes == AUTO else (quotes,):
                yield _Dialect(one, meaning, skips_blanks)


def _column_of(header: list[str], options: ReadOptions) -> int | None:
    """Return the index of the column with the text, if a first row of these cells has it."""
    name = options.text_field
    if options.csv_header != "none":
        return header.index(name) if name in header else None
    return int(name) - 1 if name.isdecimal() and 0 < int(name) <= len(header) else None


def _no_column(sample: Chunk, source: Source, options: ReadOptions) -> str:
    dialect = next(_dialects(source.kind, options))
    names, _ = _try(dialect, sample)
    if options.csv_header == "none":
        cure = f"--text_field is the number of the column, 1 to {len(names)}"
        return f"{source.path}: with --csv_header none {cure}, not '{options.text_field}'; the first row is {names}."
    hint = did_you_mean(options.text_field, names) if names else ""
    cure = "Use --text_field or --csv_delimiter; --csv_header none if that line is not a header."
    return f"{source.path}: no column '{options.text_field}' in the first line ({dialect}). {hint} {cure}"
