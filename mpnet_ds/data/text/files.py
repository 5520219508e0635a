"""Documents of text, JSON lines and CSV files, plain or compressed, in byte ranges that start and end between documents.

Files are read in chunks of whole lines. The range (a, b) of a file stands for the bytes from ``find_document_start(a)`` to
``find_document_start(b)``: the first offset at or after a byte where a document may start, which is after a line break, and
for documents that are separated by blank lines after the next blank line. So neighbouring ranges meet exactly.

Bytes that are not UTF-8 are carried as lone surrogates ("surrogateescape") up to the document that holds them.
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

from mpnet_ds.data.text.source import LONGEST_DOCUMENT, Block, Faults, ReadOptions, Source, sequences_of
from mpnet_ds.errors import UserError, did_you_mean

CHUNK_BYTES = 1 << 22
COMPRESSED_CHUNK_BYTES = 1 << 16  # read from a compressed file at once: what is lost where it is damaged
HALF_PAIR = "a document in the lines that start here holds half a surrogate pair."
_SURROGATE, _NO_TEXT = re.compile("[\ud800-\udfff]"), re.compile("[\ud800-\udfff\0]")
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, OSError, pa.ArrowException)  # raised by decompression

Fault = tuple[int, str]
"""Byte offset and description."""


@dataclass
class _Chunk:
    """Whole lines of a file."""

    text: str
    offset: int
    """Byte offset of its start."""
    num_bytes: int
    fault: Fault | None = None
    """The first bytes that are not UTF-8, or the first NUL character, if there are any."""
    follows_gap: bool = False
    """Whether a line before it was skipped."""


@dataclass
class _ParsedChunk:
    """Documents of a chunk, before faulty ones are repaired or skipped."""

    documents: list[list[str]]
    fault: Fault | None = None
    """None if every document is sound."""


def read(source: Source, start: int, end: int, options: ReadOptions, faults: Faults) -> Iterator[Block]:
    """Yield the documents of a range of a file; see ``corpus.read``."""
    reader = {"txt": _read_txt, "jsonl": _read_json_lines, "csv": _read_csv, "tsv": _read_csv}[source.kind]
    with open(source.path, "rb") as stored:
        lines = _LineReader(stored, source, start, end, options, faults)
        done = stored.tell()
        for parsed in reader(lines, options):
            now = stored.tell()
            yield Block(_repair(parsed, lines) if parsed.fault else parsed.documents, max(now - done, 0))
            done = now


def decompressed(stored: BinaryIO, source: Source) -> BinaryIO:
    """Open the content of an open file, decompressed if it is compressed."""
    if source.compression == "gz":
        return gzip.GzipFile(fileobj=stored)
    if source.compression == "zst":
        return pa.BufferedInputStream(pa.CompressedInputStream(stored, "zstd"), CHUNK_BYTES)
    return stored


def find_document_start(
    file: BinaryIO, byte: int, num_bytes: int, after_blank_line: bool, report_far: Callable[[int], None]
) -> int:
    """Return the first offset at or after ``byte`` where a document may start: after a line, or a blank line; or the end.

    Calls ``report_far(byte)`` if there is none within ``LONGEST_DOCUMENT``.
    """
    if byte == 0 or byte >= num_bytes:
        return min(byte, num_bytes)
    file.seek(byte - 1)
    offset = byte - 1 + _skip_line(file)
    is_blank, limit = not after_blank_line, offset + LONGEST_DOCUMENT
    while not is_blank and (line := file.readline(CHUNK_BYTES)):
        offset += len(line)
        is_blank = not line.decode("utf-8", "replace").strip()
        if not line.endswith(b"\n"):
            is_blank = False
            offset += _skip_line(file)
        if offset > limit:
            report_far(byte)
            limit = num_bytes
    return offset


def _skip_line(file: BinaryIO) -> int:
    """Read past the next line break and return how many bytes that were."""
    skipped = 0
    while part := file.readline(CHUNK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _repair(parsed: _ParsedChunk, lines: "_LineReader") -> list[list[str]]:
    """Replace lone surrogates and NUL characters by U+FFFD, or skip the documents that hold them, or stop there."""
    kept, no_text = [], _SURROGATE if lines.source.kind == "jsonl" else _NO_TEXT  # a NUL in JSON was escaped, so meant
    for document in parsed.documents:
        text = "\n".join(document)
        repaired = no_text.sub("\ufffd", text)
        if repaired != text:
            lines.report(*parsed.fault, can_replace=True)
        if repaired == text or lines.faults.on_error == "replace":
            kept.append(repaired.split("\n"))
    return kept


class _LineReader:
    """A range of a file in chunks of whole lines; a line longer than ``LONGEST_DOCUMENT`` is reported and skipped."""

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
        """Skip to the next line; return its offset and what of it has been read."""
        while more := self._read(offset):
            cut = more.find(b"\n") + 1
            if cut:
                return offset + cut, more[cut:]
            offset += len(more)
        return offset, b""

    def _read(self, offset: int) -> bytes:
        """Read the next bytes; none at the end, or where a damaged file cannot be read further."""
        wanted = CHUNK_BYTES if self.last is None else min(CHUNK_BYTES, self.last - offset)
        read: list[bytes] = []
        try:
            while wanted > 0 and (more := self.file.read1(COMPRESSED_CHUNK_BYTES if self.source.compression else wanted)):
                read.append(more)
                wanted -= len(more)
        except _DAMAGE as error:
            if not read:
                where = f"byte {offset} of its uncompressed text" if self.source.compression else f"byte {offset}"
                self.faults.report(f"{self.source.path} is damaged or truncated at {where} ({error}). Download it again.")
        return b"".join(read)

    def report(self, offset: int, what: str, can_replace: bool = False) -> None:
        """Report ``a.txt: byte 17 (line 3): what``, or count it."""
        line = f" (line {self._line_number(offset)})" if self.faults.on_error == "stop" else ""  # counting takes time
        of = " of its uncompressed text" if self.source.compression else ""
        self.faults.report(f"{self.source.path}: byte {offset}{of}{line}: {what}", can_replace)

    def _report_far(self, offset: int) -> None:
        """Stop where no document ends within the limit. With ``skip`` the search for the next end continues."""
        if self.faults.on_error == "stop":
            self.report_too_long(offset)

    def report_too_long(self, offset: int) -> None:
        """Report a document that is longer than ``LONGEST_DOCUMENT``."""
        cure = "split it."
        if self.source.kind == "txt":
            cure = "blank lines separate documents; if each line is a document, use --txt_documents line."
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
        for chunk in lines:
            lines_of_chunk = _lines(chunk.text, options)
            yield _ParsedChunk([[line] for line in lines_of_chunk if line], chunk.fault)
        return
    paragraphs = _Paragraphs(lines, options)
    for chunk in lines:
        yield paragraphs.parse(chunk)
    yield paragraphs.finish()


def _lines(text: str, options: ReadOptions) -> list[str]:
    """Split a .txt into its lines, stripped unless white space is kept; blank lines become empty."""
    if not options.keep_white_space:
        return list(map(str.strip, text.split("\n")))
    return [line.removesuffix("\r") if line.strip() else "" for line in text.split("\n")]


class _Paragraphs:
    """Documents separated by blank lines; one may span several chunks."""

    def __init__(self, lines: _LineReader, options: ReadOptions):
        self.lines, self.options = lines, options
        self._start_document()

    def _start_document(self) -> None:
        self.pending: list[str] = []
        self.size, self.offset, self.fault, self.is_too_long = 0, 0, None, False

    def parse(self, chunk: _Chunk) -> _ParsedChunk:
        """Return the documents that end in this chunk."""
        if chunk.follows_gap:  # a line of the document was skipped and counted: skip the document too
            self.is_too_long, self.pending = True, []
        stripped = _lines(chunk.text, self.options)
        if chunk.text.endswith("\n"):
            stripped.pop()
        parsed, start = _ParsedChunk([], chunk.fault), 0
        for _ in range(stripped.count("")):
            end = stripped.index("", start)
            if not self.is_too_long and (document := self.pending + stripped[start:end]):
                parsed.documents.append(document)
                parsed.fault = self.fault or parsed.fault
            self._start_document()
            start = end + 1
        self._extend_document(stripped[start:], chunk)
        return parsed

    def _extend_document(self, sequences: list[str], chunk: _Chunk) -> None:
        if self.is_too_long or not sequences:
            return
        self.offset = self.offset if self.pending else chunk.offset
        self.pending += sequences
        self.fault = self.fault or chunk.fault
        self.size += sum(map(len, sequences))
        if self.size > LONGEST_DOCUMENT:
            self.lines.report_too_long(self.offset)
            self.is_too_long, self.pending = True, []

    def finish(self) -> _ParsedChunk:
        """Return the last document, if there is one."""
        return _ParsedChunk([self.pending] if self.pending else [], self.fault)


def _read_json_lines(lines: _LineReader, options: ReadOptions) -> Iterator[_ParsedChunk]:
    for chunk in lines:
        parsed = _ParsedChunk([], chunk.fault)
        for number, line in enumerate(chunk.text.split("\n")):
            if line and not line.isspace():
                text, fault = _text_of_json(line, options.text_field)
                if fault:
                    lines.report(_offset_of_line(chunk, number), fault)
                elif text:
                    if "\\ud" in line or "\\uD" in line:  # perhaps half a surrogate pair
                        parsed.fault = parsed.fault or (chunk.offset, HALF_PAIR)
                    parsed.documents.append(sequences_of(text, options))
        yield parsed


def _text_of_json(line: str, field: str) -> tuple[str, str]:
    """Return (text, fault), of which one is empty; both are for ``null`` and ``""``, which are empty documents."""
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
        return "", f"field '{field}' is {json.dumps(text)[:40]}, not text."
    return "", f"no field '{field}' (found: {', '.join(sorted(record))}): use --text_field."


def _offset_of_line(chunk: _Chunk, number: int) -> int:
    before = chunk.text.split("\n")[:number]
    return chunk.offset + sum(len(line.encode("utf-8", "surrogatepass")) + 1 for line in before)


def _read_csv(lines: _LineReader, options: ReadOptions) -> Iterator[_ParsedChunk]:
    csv.field_size_limit(LONGEST_DOCUMENT)
    pending = _ParsedChunk([])
    entered: list[_Chunk] = []  # chunks that the CSV reader has started since the last block

    def text_lines() -> Iterator[str]:
        for chunk in lines:
            entered.append(chunk)
            yield from io.StringIO(chunk.text, newline="\n")

    rows = csv.reader(text_lines(), delimiter="\t" if lines.source.kind == "tsv" else ",", strict=True)
    try:
        header = next(rows, [])
    except csv.Error as error:
        found = f"{lines.source.path}: the first line is not CSV ({error})"
        raise UserError(f"{found}. If its line breaks are CR alone, convert them to LF.") from error
    column = _column(header, options.text_field, lines.source)
    while (row := _next_row(rows, lines, entered)) is not None:
        if len(row) == len(header):
            pending.documents.append(sequences_of(row[column], options))
        elif row:
            found = f"a row near here has {len(row)} columns instead of {len(header)} (it ends in line {rows.line_num})."
            lines.report(entered[-1].offset, found)
        if len(entered) > 1:
            pending.fault = next((chunk.fault for chunk in entered if chunk.fault), None)
            del entered[:-1]
            yield pending
            pending = _ParsedChunk([])
    pending.fault = next((chunk.fault for chunk in entered if chunk.fault), None)
    yield pending


def _next_row(rows, lines: _LineReader, entered: list[_Chunk]) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        lines.report(entered[-1].offset, f"not CSV in line {rows.line_num} ({error}); the rest of the file is skipped.")
        return None


def _column(header: list[str], name: str, source: Source) -> int:
    names = [cell.strip() for cell in header]
    if name not in names:
        hint = did_you_mean(name, names) if names else "The file is empty."
        raise UserError(f"{source.path}: no column '{name}' in the first line. {hint} Use --text_field.")
    return names.index(name)
