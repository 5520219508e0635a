"""What the readers of all kinds of text share: a source, how it is read, blocks of documents, and faults in them."""

from dataclasses import dataclass

from mpnet_ds.errors import UserError

STANDARD_INPUT = "-"
ON_ERROR = ("stop", "skip", "replace")
TXT_DOCUMENTS = ("blank_line", "line")
STDIN_FORMATS = ("txt", "jsonl", "csv", "tsv")
LONGEST_DOCUMENT = 1 << 26
"""Bytes. A longer one is a mistake nearly always (a file without line ends), and memory would have to hold it."""


@dataclass(frozen=True)
class Source:
    """One file or set of the corpus, as it is recorded in the manifest."""

    path: str
    kind: str
    """``txt``, ``jsonl``, ``csv``, ``tsv``, ``parquet``, ``datasets`` or ``builtin-sample``."""
    num_bytes: int
    modified: float = 0.0
    """Seconds since 1970; 0 where there is no file."""
    compression: str = ""
    """``gz``, ``zst`` or nothing."""
    units: int = 0
    """Row groups of a parquet file, rows or shards of a set: what it is divided by. 0: see ``is_divisible``."""
    version: str = ""
    """What tells two contents apart where there is no file: the set's fingerprint, the checksum of standard input."""

    @property
    def is_divisible(self) -> bool:
        """Whether it may be divided near any byte."""
        return self.kind in ("txt", "jsonl") and not self.compression


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read."""

    text_field: str = "text"
    """Key, column or field that holds the text."""
    txt_documents: str = "blank_line"
    """``line``: each line of a .txt is a document; ``blank_line``: blank lines separate them."""
    on_error: str = "stop"
    """What to do with a document that cannot be read: ``stop``, ``skip`` it, or ``replace`` bytes that are no UTF-8."""
    stdin_format: str = "txt"
    """What standard input holds: ``txt``, ``jsonl``, ``csv`` or ``tsv``."""
    dataset: str | None = None
    """A ``datasets`` set, by name or folder, read after the inputs or instead of them."""
    dataset_config: str | None = None
    split: str = "train"
    streaming: bool = False

    def __post_init__(self):
        checked = (("on_error", ON_ERROR), ("txt_documents", TXT_DOCUMENTS), ("stdin_format", STDIN_FORMATS))
        for name, choices in checked:
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} {getattr(self, name)}: it takes {', '.join(choices)}.")


@dataclass
class Block:
    """Some documents and how many bytes of their source they took, for progress."""

    documents: list[list[str]]
    num_bytes: int


@dataclass
class Faults:
    """What to do with documents that cannot be read, and how many there were."""

    on_error: str = "stop"
    skipped: int = 0
    """Documents left out, or with ``replace`` those that were repaired."""
    first: str = ""
    """What the first of them was."""

    def report(self, message: str, can_replace: bool = False) -> None:
        """Raises ``UserError``, or counts, as ``on_error`` says."""
        if self.on_error == "stop" or (self.on_error == "replace" and not can_replace):
            cure = "--on_error skip leaves it out" + (", replace puts U+FFFD there" if can_replace else "")
            raise UserError(f"{message} {cure}, and the manifest counts it.")
        self.first = self.first or message
        self.skipped += 1


def split_lines(text: str) -> list[str]:
    """A document's sequences."""
    return list(filter(None, map(str.strip, text.split("\n"))))
