"""Types that the readers of all formats share: a source, how it is read, blocks of documents, unreadable documents."""

import re
from dataclasses import dataclass

from mpnet_ds.errors import UserError, one_line

STANDARD_INPUT = "-"
ON_ERROR = ("stop", "skip", "replace")
TXT_DOCUMENTS = ("blank_line", "line")
STDIN_FORMATS = ("txt", "jsonl", "csv", "tsv")
AUTO = "auto"
NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t"}
CSV_QUOTES = (AUTO, "doubled", "backslash", "none")
CSV_HEADER = ("first_line", "none")
LARGE_EMPTY_SHARE = 0.05
LONGEST_DOCUMENT = 1 << 26
"""Bytes. A longer one is nearly always a mistake (a file without line breaks), and would have to fit in memory."""


@dataclass(frozen=True)
class Source:
    """One file or ``datasets`` dataset of a corpus, as the manifest records it."""

    path: str
    kind: str
    """``txt``, ``jsonl``, ``csv``, ``tsv``, ``parquet``, ``arrow``, ``datasets`` or ``builtin-sample``."""
    num_bytes: int
    modified: float = 0.0
    """Seconds since 1970; 0 where there is no file."""
    compression: str = ""
    """``gz``, ``bz2``, ``xz``, ``zst`` or nothing."""
    units: int = 0
    """Row groups of a parquet file, record batches of an Arrow file, rows or shards of a dataset: what it can be split into.
    0: see ``is_divisible``."""
    version: str = ""
    """Identity of the content where there is no file: fingerprint of a dataset, checksum of standard input."""

    @property
    def is_divisible(self) -> bool:
        """Whether it can be split near any byte."""
        return self.kind in ("txt", "jsonl") and not self.compression


@dataclass(frozen=True)
class ReadOptions:
    """How to read sources."""

    text_field: str = "text"
    """JSON key or table column that holds the text."""
    txt_documents: str = "blank_line"
    """``line``: each line of a .txt is a document; ``blank_line``: blank lines separate them."""
    on_error: str = "stop"
    """What to do with an unreadable document: ``stop``, ``skip`` it, or ``replace`` bytes that are not UTF-8."""
    stdin_format: str = "txt"
    """Format of standard input: ``txt``, ``jsonl``, ``csv`` or ``tsv``."""
    csv_delimiter: str = AUTO
    """What separates the columns of CSV and TSV files: a character, or ``tab``; ``auto``: found from each file."""
    csv_quotes: str = AUTO
    """What quotes mean there: ``doubled``, ``backslash``, ``none`` or ``auto``; see ``csv_rows.py``."""
    csv_header: str = "first_line"
    """Where the names of the columns are; ``none``: nowhere, and ``text_field`` is the number of a column, from 1."""
    dataset: str | None = None
    """Name or folder of a ``datasets`` dataset, read after the inputs or instead of them."""
    dataset_config: str | None = None
    split: str = "train"
    streaming: bool = False
    keep_white_space: bool = False
    """A document is its text as it is, not its stripped lines. Not a flag: it follows from the tokenizer."""

    def __post_init__(self):
        checked = {"on_error": ON_ERROR, "txt_documents": TXT_DOCUMENTS, "stdin_format": STDIN_FORMATS}
        checked |= {"csv_quotes": CSV_QUOTES, "csv_header": CSV_HEADER}
        findings = [
            f"--{name} is '{getattr(self, name)}'; it must be one of {', '.join(choices)}."
            for name, choices in checked.items()
            if getattr(self, name) not in choices
        ]
        if self.csv_delimiter not in (AUTO, *NAMED_DELIMITERS) and not re.fullmatch(
            r"[^\s\w\"\\]|[ \t]", self.csv_delimiter
        ):
            found = f"--csv_delimiter is {self.csv_delimiter!r}"
            findings.append(f"{found}; it must be one character such as ';' or '|', or tab.")
        if findings:
            raise UserError(*findings)


Fault = tuple[int, str]
"""Byte offset and description."""


@dataclass
class Chunk:
    """Whole lines of a file."""

    text: str
    """With LF at the end of each line."""
    raw: bytes
    """The same as it is in the file."""
    offset: int
    """Byte offset of its start."""
    fault: Fault | None = None
    """The first bytes that are not UTF-8, or the first NUL character, if there are any."""
    follows_gap: bool = False
    """Whether a line before it was skipped."""


@dataclass
class ParsedChunk:
    """Documents of a chunk, before faulty ones are repaired or skipped."""

    documents: list[list[str]]
    fault: Fault | None = None
    """None if every document is sound."""


@dataclass
class Block:
    """Some documents, and how many bytes of their source they took, for progress."""

    documents: list[list[str]]
    num_bytes: int


@dataclass
class Faults:
    """Unreadable documents: what to do with them, and how many there were."""

    on_error: str = "stop"
    skipped: int = 0
    """Documents skipped, or repaired with ``replace``."""
    first: str = ""
    """Description of the first of them."""

    def report(self, message: str, can_replace: bool = False, count: int = 1) -> None:
        """Raise ``UserError`` or count the documents, according to ``on_error``."""
        message = one_line(message)
        if self.on_error == "stop" or (self.on_error == "replace" and not can_replace):
            cure = "use --on_error skip to leave it out" + (", or replace to put U+FFFD there" if can_replace else "")
            raise UserError(f"{message} Repair it, or {cure}; the manifest counts it.")
        self.first = self.first or message
        self.skipped += count


def describe_faults(count: int, first: str, and_so: str = "left out") -> str:
    """Say how much could not be read. Nobody knows how many documents the lost end of a damaged file held."""
    return f"Unreadable documents, or ends of damaged files, {and_so}: {count:,}. First: {first}"


def warn_of_empty(empty: int, documents: int, text_field: str) -> str:
    """Say that a large share of all documents is empty; nothing otherwise."""
    if empty <= LARGE_EMPTY_SHARE * documents:
        return ""
    cure = f"is '{text_field}' the right --text_field?"
    return f"{empty:,} of {documents:,} documents ({100 * empty / documents:.3g} %) are empty: {cure}"


def sequences_of(text: str, options: ReadOptions) -> list[str]:
    """Return the sequences of a document: its stripped lines without empty ones, or all of its text.

    Lines end with LF, CR or both.
    """
    if options.keep_white_space:
        return [text] if text and not text.isspace() else []
    text = text.replace("\r", "\n") if "\r" in text else text
    return list(filter(None, map(str.strip, text.split("\n"))))
