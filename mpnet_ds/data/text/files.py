"""Documents of text, JSON lines and CSV files, plain or compressed, by parts that begin and end between documents.

A file is read in stretches of whole lines. The part (a, b) of a file holds the bytes from ``find_document_start(a)`` to ``find_document_start(b)``,
where a find_document_start is the first place at or after a byte at which a document may begin: after a line's end, and for documents
that blank lines separate after the next blank line. So parts meet exactly, whoever reads them.

Bytes that are no UTF-8 are carried as lone surrogates ("surrogateescape") as far as the document that holds them.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from mpnet_ds.data.text.source import LONGEST_DOCUMENT, Block, Faults, ReadOptions, Source, split_lines
from mpnet_ds.errors import UserError, did_you_mean

CHUNK_BYTES = 1 << 22
PACKED_BYTES = 1 << 16  # taken from a compressed file at once: what is lost where it is damaged
HALF_PAIR = "a document of the lines that begin here holds half a surrogate pair."
_SURROGATE, _NO_TEXT = re.compile("[\ud800-\udfff]"), re.compile("[\ud800-\udfff\0]")
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, OSError, pa.ArrowException)  # what decompression raises


Fault = tuple[int, str]
"""At which byte, and what."""


@dataclass
class _Chunk:
    """Whole lines of a file."""

    text: str
    offset: int
    """Byte at which it begins."""
    num_bytes: int
    fault: Fault | None = None
    """The first, if it holds bytes that are no UTF-8, or NUL characters."""
    follows_gap: bool = False
    """Whether a line before it was left out."""


@dataclass
class _ParsedChunk:
    """Documents of a stretch, before those with faults are mended or left out."""

    documents: list[list[str]]
    fault: Fault | None = None
    """Not None if documents of it have to be looked at."""


def read(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[Block]:
    """The documents of a part of a file; see ``corpus.read``."""
    reader = {"txt": _read_txt, "jsonl": _read_json_lines, "csv": _read_csv, "tsv": _read_csv}[source.kind]
    with open(source.path, "rb") as stored:
        lines = _LineReader(stored, source, start, end, options, faults)
        done = stored.tell()
        for found in reader(lines, options):
            now = stored.tell()
            yield Block(_repair(found, lines) if found.fault else found.documents, max(now - done, 0))
            done = now


def decompressed(stored: BinaryIO, source: Source) -> BinaryIO:
    """The content of an open file."""
    if source.compression == "gz":
        return gzip.GzipFile(fileobj=stored)
    if source.compression == "zst":
        return pa.BufferedInputStream(pa.CompressedInputStream(stored, "zstd"), CHUNK_BYTES)
    return stored


def find_document_start(
    file: BinaryIO, byte: int, num_bytes: int, after_blank_line: bool, report_far: Callable[[int], None] = lambda place: None
) -> int:
    """A place at or after ``byte`` at which a document may begin, or the file's end: the first after a whole blank line.

    ``report_far`` is told of the place if there is none for the length of ``LONGEST_DOCUMENT``.
    """
    if byte == 0 or byte >= num_bytes:
        return min(byte, num_bytes)
    file.seek(byte - 1)
    place = byte - 1 + _skip_line(file)
    is_blank, limit = not after_blank_line, place + LONGEST_DOCUMENT
    while not is_blank and (line := file.readline(CHUNK_BYTES)):
        place += len(line)
        is_blank = not line.decode("utf-8", "replace").strip()
        if not line.endswith(b"\n"):
            is_blank = False
            place += _skip_line(file)
        if place > limit:
            report_far(byte)
            limit = num_bytes
    return place


def _skip_line(file: BinaryIO) -> int:
    """Reads past the next line end and returns how many bytes that were."""
    skipped = 0
    while part := file.readline(CHUNK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _repair(found: _ParsedChunk, lines: "_Lines") -> list[list[str]]:
    """Puts U+FFFD for lone surrogates and NUL characters, or leaves out documents that hold them, or stops there."""
    kept, no_text = [], _SURROGATE if lines.source.kind == "jsonl" else _NO_TEXT  # a NUL of JSON was written as one
    for document in found.documents:
        text = "\n".join(document)
        mended = no_text.sub("\ufffd", text)
        if mended != text:
            lines.report(*found.fault, can_replace=True)
        if mended == text or lines.faults.on_error == "replace":
            kept.append(mended.split("\n"))
    return kept


class _LineReader:
    """A part of a file in stretches of whole lines; a line longer than ``LONGEST_DOCUMENT`` is reported and left out."""

    def __init__(self, stored: BinaryIO, source: Source, start: int, end: int, options: ReadOptions, faults: Faults):
        self.source, self.faults, self._has_gap = source, faults, False
        self.file = decompressed(stored, source)
        self.first, self.last = 0, None
        if source.is_divisible:
            blank_lines = source.kind == "txt" and options.txt_documents == "blank_line"
            self.last, self.first = (
                find_document_start(stored, byte, source.num_bytes, blank_lines, self._report_far) for byte in (end, start)
            )
            stored.seek(self.first)

    def __iter__(self) -> Iterator[_Chunk]:
        for raw, offset in self._chunks():
            mark = len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0
            try:
                text, first, what = raw[mark:].decode("utf-8"), raw.find(b"\0"), "a NUL character (is it UTF-16?)"
            except UnicodeDecodeError as error:
                text, first = raw[mark:].decode("utf-8", "surrogateescape"), mark + error.start
                what = f"not UTF-8 ({error.reason})"
            fault = (offset + first, f"{what}: convert the file.") if first >= 0 else None
            if fault and self.faults.on_error == "stop":
                self.report(*fault, can_replace=True)
            yield _Chunk(text, offset + mark, len(raw), fault, self._has_gap)
            self._has_gap = False

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        offset, rest = self.first, b""
        while more := self._read(offset + len(rest)):
            cut = more.rfind(b"\n") + 1
            if cut:
                yield rest + more[:cut], offset
                offset, rest = offset + len(rest) + cut, more[cut:]
                continue
            rest += more
            if len(rest) > LONGEST_DOCUMENT:
                self.report_too_long(offset)
                self._has_gap = True
                offset, rest = self._next_line(offset + len(rest))
        if rest:
            yield rest, offset

    def _next_line(self, offset: int) -> tuple[int, bytes]:
        """Where the next line begins, and what of it is read."""
        while more := self._read(offset):
            cut = more.find(b"\n") + 1
            if cut:
                return offset + cut, more[cut:]
            offset += len(more)
        return offset, b""

    def _read(self, offset: int) -> bytes:
        """The next bytes; none at the end, or where a damaged file cannot be read on."""
        wanted = CHUNK_BYTES if self.last is None else min(CHUNK_BYTES, self.last - offset)
        parts: list[bytes] = []
        try:
            while wanted > 0 and (part := self.file.read1(wanted if not self.source.compression else PACKED_BYTES)):
                parts.append(part)
                wanted -= len(part)
        except _DAMAGE as error:
            if not parts:
                place = f"{self.source.path} is damaged or cut short: it ends at byte {offset} of its text ({error})."
                self.faults.report(f"{place} Fetch it again.")
        return b"".join(parts)

    def report(self, offset: int, what: str, can_replace: bool = False) -> None:
        """Says ``a.txt: byte 17 (line 3): what``, or counts it."""
        line = f" (line {self._line_number(offset)})" if self.faults.on_error == "stop" else ""  # that takes time
        of = " of its text" if self.source.compression else ""
        self.faults.report(f"{self.source.path}: byte {offset}{of}{line}: {what}", can_replace)

    def _report_far(self, place: int) -> None:
        """Where no document ends for long. One who wants such documents left out has to wait for the next end."""
        if self.faults.on_error == "stop":
            self.report_too_long(place)

    def report_too_long(self, offset: int) -> None:
        cure = "break it up."
        if self.source.kind == "txt":
            cure = "blank lines separate documents; if each line is one, add --txt_documents line."
        self.report(offset, f"a document of more than {LONGEST_DOCUMENT >> 20} MiB: {cure}")

    def _line_number(self, offset: int) -> int:
        number = 1
        with open(self.source.path, "rb") as stored:
            file = decompressed(stored, self.source)
            while offset > 0 and (part := file.read(min(offset, CHUNK_BYTES))):
                number += part.count(b"\n")
                offset -= len(part)
        return number


def _read_txt(lines: _LineReader, options: ReadOptions) -> Iterator[_ParsedChunk]:
    if options.txt_documents == "line":
        for stretch in lines:
            yield _ParsedChunk([[line] for line in split_lines(stretch.text)], stretch.fault)
        return
    paragraphs = _Paragraphs(lines)
    for stretch in lines:
        yield paragraphs.of(stretch)
    yield paragraphs.rest()


class _Paragraphs:
    """Documents that blank lines separate; one may reach over several stretches."""

    def __init__(self, lines: _LineReader):
        self.lines = lines
        self._begin()

    def _begin(self) -> None:
        self.begun: list[str] = []
        self.size, self.offset, self.fault, self.is_too_long = 0, 0, None, False

    def of(self, stretch: _Chunk) -> _ParsedChunk:
        """The documents that end in this stretch."""
        if stretch.follows_gap:  # a line of the document was left out, and counted: so is the document
            self.is_too_long, self.begun = True, []
        stripped = list(map(str.strip, stretch.text.split("\n")))
        if stretch.text.endswith("\n"):
            stripped.pop()
        found, start = _ParsedChunk([], stretch.fault), 0
        for _ in range(stripped.count("")):
            end = stripped.index("", start)
            if not self.is_too_long and (document := self.begun + stripped[start:end]):
                found.documents.append(document)
                found.fault = self.fault or found.fault
            self._begin()
            start = end + 1
        self._continue(stripped[start:], stretch)
        return found

    def _continue(self, sequences: list[str], stretch: _Chunk) -> None:
        if self.is_too_long or not sequences:
            return
        self.offset = self.offset if self.begun else stretch.offset
        self.begun += sequences
        self.fault = self.fault or stretch.fault
        self.size += sum(map(len, sequences))
        if self.size > LONGEST_DOCUMENT:
            self.lines.report_too_long(self.offset)
            self.is_too_long, self.begun = True, []

    def rest(self) -> _ParsedChunk:
        return _ParsedChunk([self.begun] if self.begun else [], self.fault)


def _read_json_lines(lines: _LineReader, options: ReadOptions) -> Iterator[_ParsedChunk]:
    for stretch in lines:
        found = _ParsedChunk([], stretch.fault)
        for number, line in enumerate(stretch.text.split("\n")):
            if line and not line.isspace():
                text, fault = _text_of_json(line, options.text_field)
                if fault:
                    lines.report(_offset_of_line(stretch, number), fault)
                elif text:
                    if "\\ud" in line or "\\uD" in line:  # perhaps half of a surrogate pair
                        found.fault = found.fault or (stretch.offset, HALF_PAIR)
                    found.documents.append(split_lines(text))
        yield found


def _text_of_json(line: str, field: str) -> tuple[str, str]:
    """(text, fault): one of them is empty. No text, as in ``null``, is an empty document."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return "", f"not JSON: {error}. Each line must hold one object."
    if not isinstance(record, dict):
        return "", f"a JSON {type(record).__name__}, not an object with the field '{field}'."
    text = record.get(field, 0)
    if text is None or isinstance(text, str):
        return text or "", ""
    if field in record:
        return "", f"field '{field}' is no text but {json.dumps(text)[:40]}."
    return "", f"no text in field '{field}' (found: {', '.join(sorted(record))}): use --text_field."


def _offset_of_line(stretch: _Chunk, number: int) -> int:
    before = stretch.text.split("\n")[:number]
    return stretch.offset + sum(len(line.encode("utf-8", "surrogatepass")) + 1 for line in before)


def _read_csv(lines: _LineReader, options: ReadOptions) -> Iterator[_ParsedChunk]:
    csv.field_size_limit(LONGEST_DOCUMENT)
    pending = _ParsedChunk([])
    begins = []  # stretches that the reader has entered

    def rows_of_text() -> Iterator[str]:
        for stretch in lines:
            begins.append(stretch)
            yield from io.StringIO(stretch.text, newline="\n")

    rows = csv.reader(rows_of_text(), delimiter="\t" if lines.source.kind == "tsv" else ",", strict=True)
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise UserError(f"{lines.source.path}: its first line is no CSV ({error}): are its line ends CR alone?") from error
    column = _column(header, options.text_field, lines.source)
    while (row := _next_row(rows, lines, begins)) is not None:
        if len(row) == len(header):
            pending.documents.append(split_lines(row[column]))
        elif row:
            offset, number = begins[-1].offset, rows.line_num
            lines.report(offset, f"a row soon after has {len(row)} of {len(header)} columns (it ends in line {number}).")
        if len(begins) > 1:
            pending.fault = next((stretch.fault for stretch in begins if stretch.fault), None)
            del begins[:-1]
            yield pending
            pending = _ParsedChunk([])
    pending.fault = next((stretch.fault for stretch in begins if stretch.fault), None)
    yield pending


def _next_row(rows, lines: _LineReader, begins: list[_Chunk]) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        lines.report(begins[-1].offset, f"not CSV in line {rows.line_num} ({error}); the rest of the file is left out.")
        return None


def _column(header: list[str], name: str, source: Source) -> int:
    names = [cell.strip() for cell in header]
    if name not in names:
        hint = did_you_mean(name, names) if names else "The file is empty."
        raise UserError(f"{source.path}: no column '{name}' in its first line. {hint} Name it with --text_field.")
    return names.index(name)
