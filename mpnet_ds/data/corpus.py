"""A corpus: documents from text files, JSON lines or the built-in sample, one at a time.

* ``.txt``: documents are separated by blank lines; each line is a sequence of the index.
* ``.jsonl``: each line is an object whose text field is a document; each of its non-blank lines is a sequence.
* ``builtin-sample``: the documentation strings of this interpreter's standard library, about 2 MB of English. Each
  module's and each class's or function's docstring is a document; each paragraph is a sequence.

Documents come in a fixed order: inputs as given, files of a folder sorted by path.
"""

import ast
import codecs
import inspect
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mpnet_ds.errors import UserError

BUILTIN_SAMPLE = "builtin-sample"
SUFFIXES = (".txt", ".jsonl")
_NO_SAMPLE_IN = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One document and how many bytes of its source it took, for progress."""

    sequences: tuple[str, ...]
    num_bytes: int

    @property
    def text(self) -> str:
        return "\n".join(self.sequences)


@dataclass(frozen=True)
class Source:
    """One file of the corpus, as it is recorded in the manifest."""

    path: str
    kind: str
    """``txt``, ``jsonl`` or ``builtin-sample``."""
    num_bytes: int
    modified: float
    """Seconds since 1970; 0 for the built-in sample."""


class Corpus:
    """All documents of some inputs. Paths are checked on construction, contents while reading."""

    def __init__(self, inputs: list[str], text_field: str = "text"):
        self.text_field = text_field
        self.sources = [source for name in inputs for source in _sources_of(name)]
        if not self.sources:
            raise UserError("no input: give files, folders or 'builtin-sample' with --input.")
        self.num_bytes = sum(source.num_bytes for source in self.sources)

    def __iter__(self) -> Iterator[Document]:
        for source in self.sources:
            if source.kind == BUILTIN_SAMPLE:
                yield from _read_standard_library()
            elif source.kind == "jsonl":
                yield from _read_json_lines(source.path, self.text_field)
            else:
                yield from _read_text(source.path)


def _sources_of(name: str) -> list[Source]:
    if name == BUILTIN_SAMPLE:
        total = sum(path.stat().st_size for path in _standard_library_files())
        return [Source(f"documentation strings of Python {platform.python_version()}", BUILTIN_SAMPLE, total, 0.0)]
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
        if not files:
            raise UserError(f"{name}: no {' or '.join(SUFFIXES)} file in this folder.")
    elif not path.exists():
        raise UserError(f"{name}: no such file or folder.")
    elif path.suffix not in SUFFIXES:
        raise UserError(f"{name}: the kind of text is told from the ending; known are {', '.join(SUFFIXES)}.")
    else:
        files = [path]
    return [Source(str(file), file.suffix[1:], file.stat().st_size, file.stat().st_mtime) for file in files]


def _decoded_lines(path: str) -> Iterator[tuple[int, int, str]]:
    """(line number from 1, bytes of the line, text without its line end)."""
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            mark = len(codecs.BOM_UTF8) if number == 1 and raw.startswith(codecs.BOM_UTF8) else 0
            try:
                text = raw[mark:].decode("utf-8")
            except UnicodeDecodeError as error:
                place = f"{path}: byte {offset + mark + error.start} (line {number})"
                raise UserError(
                    f"{place} is not UTF-8: {error.reason}. Convert the file, with iconv for example."
                ) from error
            offset += len(raw)
            yield number, len(raw), text.rstrip("\r\n")


def _read_text(path: str) -> Iterator[Document]:
    lines, num_bytes = [], 0
    for _, size, line in _decoded_lines(path):
        num_bytes += size
        if line.strip():
            lines.append(line.strip())
        elif lines:
            yield Document(tuple(lines), num_bytes)
            lines, num_bytes = [], 0
    if lines:
        yield Document(tuple(lines), num_bytes)


def _read_json_lines(path: str, text_field: str) -> Iterator[Document]:
    for number, size, line in _decoded_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}.") from error
        if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
            found = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
            raise UserError(f"{path}, line {number} has no text in field '{text_field}' (found: {found}). Use --text_field.")
        try:
            record[text_field].encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{path}, line {number}: field '{text_field}' holds half a surrogate pair: {error}.") from error
        sequences = tuple(part.strip() for part in record[text_field].split("\n") if part.strip())
        if sequences:
            yield Document(sequences, size)


def _standard_library_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = (file for file in root.rglob("*.py") if not _NO_SAMPLE_IN & set(file.relative_to(root).parts))
    return sorted(files)


@cache
def _read_standard_library() -> list[Document]:
    documents = []
    for path in _standard_library_files():
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # a few files of the library are broken on purpose, or templates
            continue
        size = path.stat().st_size
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                paragraphs = _paragraphs(ast.get_docstring(node, clean=False) or "")
                if paragraphs:
                    documents.append(Document(paragraphs, size))
                    size = 0
    if not documents:
        where = sysconfig.get_path("stdlib")
        raise UserError(f"the standard library in {where} has no readable documentation strings: pass text with --input.")
    return documents


def _paragraphs(docstring: str) -> tuple[str, ...]:
    """Paragraphs with their line breaks and indentation folded to single spaces."""
    paragraphs, lines = [], []
    for line in [*inspect.cleandoc(docstring).splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            paragraphs.append(" ".join(" ".join(lines).split()))
            lines = []
    return tuple(paragraphs)
