"""Types that the readers of all formats share: a source, how it is read, blocks of documents, unreadable documents."""

from dataclasses import dataclass

from mpnet_ds.errors import UserError

STANDARD_INPUT = "-"
ON_ERROR = ("stop", "skip", "replace")
TXT_DOCUMENTS = ("blank_line", "line")
STDIN_FORMATS = ("txt", "jsonl", "csv", "tsv")
LONGEST_DOCUMENT = 1 << 26
"""Bytes. A longer one is nearly always a mistake (a file without line breaks), and would have to fit in memory."""


@dataclass(frozen=True)
class Source:
    """One file or ``datasets`` dataset of a corpus, as the manifest records it."""

    path: str
    kind: str
    """``txt``, ``jsonl``, ``csv``, ``tsv``, ``parquet``, ``datasets`` or ``builtin-sample``."""
    num_bytes: int
    modified: float = 0.0
    """Seconds since 1970; 0 where there is no file."""
    compression: str = ""
    """``gz``, ``zst`` or nothing."""
    units: int = 0
    """Row groups of a parquet file, rows or shards of a dataset: what it can be split into. 0: see ``is_divisible``."""
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
    dataset: str | None = None
    """Name or folder of a ``datasets`` dataset, read after the inputs or instead of them."""
    dataset_config: str | None = None
    split: str = "train"
    streaming: bool = False
    keep_white_space: bool = False
    """A document is its text as it is, not its stripped lines. Not a flag: it follows from the tokenizer."""

    def __post_init__(self):
        checked = (("on_error", ON_ERROR), ("txt_documents", TXT_DOCUMENTS), ("stdin_format", STDIN_FORMATS))
        for name, choices in checked:
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} is '{getattr(self, name)}'; it must be one of {', '.join(choices)}.")


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

    def report(self, message: str, can_replace: bool = False) -> None:
        """Raise ``UserError`` or count the document, according to ``on_error``."""
        if self.on_error == "stop" or (self.on_error == "replace" and not can_replace):
            cure = "use --on_error skip to leave it out" + (", or replace to put U+FFFD there" if can_replace else "")
            raise UserError(f"{message} Repair it, or {cure}; the manifest counts it.")
        self.first = self.first or message
        self.skipped += 1


def sequences_of(text: str, options: ReadOptions) -> list[str]:
    """Return the sequences of a document: its stripped lines without empty ones, or all of its text."""
    if options.keep_white_space:
        return [text] if text and not text.isspace() else []
    return list(filter(None, map(str.strip, text.split("\n"))))
