"""Documents of text, JSON lines and CSV files, plain or compressed, in byte ranges that start and end between documents.

Files are read in chunks of whole lines. A line ends with LF, CR LF or CR, in any mixture; CR CR LF ends one line too, as in
files that were converted twice. The range (a, b) of a file stands for the bytes from ``find_document_start(a)`` to
``find_document_start(b)``: the first offset at or after a byte where a document may start, which is after a line end, and
for documents that are separated by blank lines after the next blank line. So neighbouring ranges meet exactly.

Bytes that are not UTF-8 are carried as lone surrogates ("surrogateescape") up to the document that holds them.
"""

import codecs
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from mpnet_ds.data.text import csv_rows
from mpnet_ds.data.text.decoding import COMPRESSED_CHUNK_BYTES, decompressed, explain
from mpnet_ds.data.text.source import LONGEST_DOCUMENT, Block, Chunk, Faults, ParsedChunk, ReadOptions, Source, sequences_of

CHUNK_BYTES = 1 << 22
HALF_PAIR = "a document in the lines that start here holds half a surrogate pair."
_LINE_END = re.compile(rb"\n|\r(?:(?<!\r\r)\r*\n)?")
_CR_LINE_END = re.compile(r"\r(?:(?<!\r\r)\r*\n)?")
_ONE_OBJECT_A_LINE = "Each line must hold one object: convert a list with jq -c '.[]', indented objects with jq -c ."
_MISSING = object()
_SURROGATE, _NO_TEXT = re.compile("[\ud800-\udfff]"), re.compile("[\ud800-\udfff\0]")


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


def find_document_start(
    file: BinaryIO, byte: int, num_bytes: int, after_blank_line: bool, report_far: Callable[[int], None]
) -> int:
    """Return the first offset at or after ``byte`` where a document may start: after a line, or a blank line; or the end.

    Calls ``report_far(byte)`` if there is none within ``LONGEST_DOCUMENT``.
    """
    if byte == 0 or byte >= num_bytes:
        return min(byte, num_bytes)
    lines = _lines_from(file, byte - 1)
    offset, _ = next(lines, (num_bytes, b""))
    limit = offset + LONGEST_DOCUMENT
    for end, line in lines if after_blank_line else ():
        offset = end
        if not line.decode("utf-8", "replace").strip():
            break
        if offset > limit:
            report_far(byte)
            limit = num_bytes
    return offset


def _lines_from(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield where each line from a byte on ends, and the line; of one longer than ``CHUNK_BYTES`` not all of it."""
    file.seek(offset)
    rest, more = b"", b"\n"
    while more:
        more = file.read(max(len(rest), COMPRESSED_CHUNK_BYTES))
        rest += more
        start = 0
        for found in _line_ends(rest, len(rest.rstrip(b"\r")) if more else len(rest)):
            yield offset + found.end(), rest[start : found.start()]
            start = found.end()
        offset, rest = offset + start, rest[start:]
        if len(rest) > CHUNK_BYTES:
            offset, rest = offset + len(rest) - 2, b"\0" + rest[-1:]
    if rest:
        yield offset + len(rest), rest


def _line_ends(content: bytes, end: int) -> Iterator[re.Match]:
    """Find all line ends; what has none is passed over faster than by a regular expression."""
    starts = [start for start in (content.find(b"\n"), content.find(b"\r")) if start >= 0]
    return _LINE_END.finditer(content, min(starts), end) if starts else iter(())


def _with_lf(text: str) -> str:
    """Let each line end with LF."""
    text = text.replace("\r\n", "\n")
    return _CR_LINE_END.sub("\n", text) if "\r" in text else text


def _last_line_end(content: bytes) -> int:
    """Return the end of the last line; a CR at the very end may be half a line end, and is not counted."""
    content = content.rstrip(b"\r")
    return max(content.rfind(b"\n"), content.rfind(b"\r")) + 1


def _repair(parsed: ParsedChunk, lines: "_LineReader") -> list[list[str]]:
    """Replace lone surrogates and NUL characters by U+FFFD, or skip the documents that hold them, or stop there."""
    kept, no_text = [], _SURROGATE if lines.source.kind == "jsonl" else _NO_TEXT  # a NUL in JSON was escaped, so meant
    for document in parsed.documents:
        text = "\n".join(document)
        repaired = no_text.sub("\ufffd", text)
        if repaired != text:
            lines.report(*parsed.fault, can_replace=True)
        if repaired == text or lines.faults.on_error == "replace":
            kept.append(document if repaired == text else repaired.split("\n"))
    return kept


class _LineReader:
    """A range of a file in chunks of whole lines; a line longer than ``LONGEST_DOCUMENT`` is reported and skipped."""

    def __init__(self, stored: BinaryIO, source: Source, start: int, end: int, options: ReadOptions, faults: Faults):
        self.source, self.faults, self._has_gap = source, faults, False
        self._failure: Exception | None = None
        self.file = decompressed(stored, source.compression)
        self.first, self.last = 0, None
        if source.is_divisible:
            blank_lines = source.kind == "txt" and options.txt_documents == "blank_line"
            self.last, self.first = (
                find_document_start(stored, byte, source.num_bytes, blank_lines, self._report_far) for byte in (end, start)
            )
            stored.seek(self.first)

    def __iter__(self) -> Iterator[Chunk]:
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
            yield Chunk(_with_lf(text), raw[mark:], offset + mark, fault, self._has_gap)
            self._has_gap = False

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        offset, rest = self.first, b""
        while more := self._read(offset + len(rest)):
            if cut := _last_line_end(more):
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
            if more.endswith(b"\r"):
                more += self._read(offset + len(more))
            if found := next(_line_ends(more, len(more)), None):
                return offset + found.end(), more[found.end() :]
            offset += len(more)
        return offset, b""

    def _read(self, offset: int) -> bytes:
        """Read the next bytes; none at the end, or where a damaged file cannot be read further."""
        wanted = CHUNK_BYTES if self.last is None else min(CHUNK_BYTES, self.last - offset)
        read: list[bytes] = []
        try:
            while not self._failure and wanted > 0:
                more = self.file.read1(COMPRESSED_CHUNK_BYTES if self.source.compression else wanted)
                if not more:
                    break
                read.append(more)
                wanted -= len(more)
        except Exception as error:  # decoders raise exceptions of many kinds; what was read before is used first
            self._failure = error
        if self._failure and not read:
            where = f"from byte {offset}{' of its uncompressed text' if self.source.compression else ''} on"
            self.faults.report(f"{self.source.path} {explain(self._failure, where, self.source.compression)}")
            self._failure, self.last = None, offset  # and that is the end
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
        number, last = 1, b""
        with open(self.source.path, "rb") as stored:
            file = decompressed(stored, self.source.compression)
            while offset > 0 and (part := file.read(min(offset, CHUNK_BYTES))):
                number += sum(1 for _ in _LINE_END.finditer(part)) - (last + part[:1] == b"\r\n")
                offset, last = offset - len(part), part[-1:]
        return number


def _read_txt(lines: _LineReader, options: ReadOptions) -> Iterator[ParsedChunk]:
    if options.txt_documents == "line":
        for chunk in lines:
            documents = _lines(chunk.text, options)
            yield ParsedChunk([[line] for line in documents if line], chunk.fault)
        return
    paragraphs = _Paragraphs(lines, options)
    for chunk in lines:
        yield paragraphs.parse(chunk)
    yield paragraphs.finish()


def _lines(text: str, options: ReadOptions) -> list[str]:
    """Split a .txt into its lines, stripped unless white space is kept; blank lines become empty."""
    if not options.keep_white_space:
        return list(map(str.strip, text.split("\n")))
    return [line if line.strip() else "" for line in text.split("\n")]


class _Paragraphs:
    """Documents separated by blank lines; one may span several chunks."""

    def __init__(self, lines: _LineReader, options: ReadOptions):
        self.lines, self.options = lines, options
        self._start_document()

    def _start_document(self) -> None:
        self.pending: list[str] = []
        self.size, self.offset, self.fault, self.is_too_long = 0, 0, None, False

    def parse(self, chunk: Chunk) -> ParsedChunk:
        """Return the documents that end in this chunk."""
        if chunk.follows_gap:  # a line of the document was skipped and counted: skip the document too
            self.is_too_long, self.pending = True, []
        stripped = _lines(chunk.text, self.options)
        if chunk.text.endswith("\n"):
            stripped.pop()
        parsed, start = ParsedChunk([], chunk.fault), 0
        for _ in range(stripped.count("")):
            end = stripped.index("", start)
            if not self.is_too_long and (document := self.pending + stripped[start:end]):
                parsed.documents.append(document)
                parsed.fault = self.fault or parsed.fault
            self._start_document()
            start = end + 1
        self._extend_document(stripped[start:], chunk)
        return parsed

    def _extend_document(self, sequences: list[str], chunk: Chunk) -> None:
        if self.is_too_long or not sequences:
            return
        self.offset = self.offset if self.pending else chunk.offset
        self.pending += sequences
        self.fault = self.fault or chunk.fault
        self.size += sum(map(len, sequences))
        if self.size > LONGEST_DOCUMENT:
            self.lines.report_too_long(self.offset)
            self.is_too_long, self.pending = True, []

    def finish(self) -> ParsedChunk:
        """Return the last document, if there is one."""
        return ParsedChunk([self.pending] if self.pending else [], self.fault)


def _read_json_lines(lines: _LineReader, options: ReadOptions) -> Iterator[ParsedChunk]:
    for chunk in lines:
        parsed = ParsedChunk([], chunk.fault)
        for number, line in enumerate(chunk.text.split("\n")):
            if line and not line.isspace():
                text, fault = _text_of_json(line, options.text_field)
                if fault:
                    lines.report(_offset_of_line(chunk, number), fault)
                else:
                    if "\\ud" in line or "\\uD" in line:  # perhaps half a surrogate pair
                        parsed.fault = parsed.fault or (chunk.offset, HALF_PAIR)
                    parsed.documents.append(sequences_of(text, options))
        yield parsed


def _text_of_json(line: str, field: str) -> tuple[str, str]:
    """Return (text, fault), of which one is empty; both are for ``null`` and ``""``, which are empty documents."""
    try:
        record = json.loads(line.removeprefix("\ufeff"))  # of a file that others were appended to
    except json.JSONDecodeError as error:
        cure = _ONE_OBJECT_A_LINE if line.lstrip()[:1] in "[{" else "Each line must hold one object."
        return "", f"not JSON: {error.msg} at column {error.colno}. {cure}"
    except (ValueError, RecursionError) as error:
        return "", f"not JSON: {error}."
    if not isinstance(record, dict):
        cure = f" {_ONE_OBJECT_A_LINE}" if isinstance(record, list) else ""
        return "", f"a JSON {type(record).__name__}, not an object with the field '{field}'.{cure}"
    text = record.get(field, _MISSING)
    if text is _MISSING:
        text = _nested(record, field.split("."))
    if text is _MISSING:
        return "", f"no field '{field}' (found: {', '.join(sorted(record))}): use --text_field."
    if text is None or isinstance(text, str):
        return text or "", ""
    return "", f"field '{field}' is {json.dumps(text)[:40]}, not text."


def _nested(value: Any, names: list[str]) -> Any:
    """Return the field of an object in an object (``meta.text``); None where one of the objects is null."""
    for name in names:
        if value is not None:
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
    return value


def _offset_of_line(chunk: Chunk, number: int) -> int:
    ends = (found.end() for found in _LINE_END.finditer(chunk.raw))
    return chunk.offset + next(itertools.islice(ends, number - 1, None)) if number else chunk.offset


def _read_csv(lines: _LineReader, options: ReadOptions) -> Iterator[ParsedChunk]:
    def report(chunk: Chunk, number: int, fault: str) -> None:
        lines.report(_offset_of_line(chunk, number), fault)

    return csv_rows.read(iter(lines), lines.source, options, report)
