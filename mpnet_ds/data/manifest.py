"""``dataset.json``: what a dataset folder holds. It is written last; a shard that it does not name does not exist.

A dataset folder:

    dataset.json          this manifest
    tokenizer/            a copy of the tokenizer, so that the folder is enough to train and to export
    shard-00000.bin .idx  tokens (see token_file.py)
    holdout/              with --holdout: a dataset of its own for evaluation, found by pre-training by itself
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import xxhash

from mpnet_ds.errors import UserError
from mpnet_ds.files import digest, write_atomically

FILE_NAME = "dataset.json"
TOKENIZER, HOLDOUT = "tokenizer", "holdout"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class FileRecord:
    """Size and checksums of one file: xxh3_64 for a fast check, sha256 for identity."""

    bytes: int
    xxh3_64: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Reads the whole file once."""
        fast, sure = digest(path, xxhash.xxh3_64(), hashlib.sha256())
        return cls(path.stat().st_size, fast, sure)


@dataclass(frozen=True)
class ShardRecord:
    name: str
    sequences: int
    documents: int
    tokens: int
    files: dict[str, FileRecord]
    """By suffix: ``bin`` and ``idx``."""


@dataclass(frozen=True)
class DatasetManifest:
    dtype: str
    vocab_size: int
    special_ids: dict[str, int]
    tokenizer_fingerprint: str
    documents: int
    sequences: int
    tokens: int
    shards: list[ShardRecord]
    sources: list[dict]
    command: str
    tool_version: str
    version: int = FORMAT_VERSION
    options: dict = field(default_factory=dict)
    left_out: dict = field(default_factory=dict)
    """How many documents had no token or could not be read, and what the first of the latter was."""

    def save(self, folder: Path) -> None:
        """Puts the manifest in place in one step: readers see all of it or none."""
        write_atomically(folder / FILE_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "DatasetManifest":
        path = Path(folder) / FILE_NAME
        if not Path(folder).is_dir():
            raise UserError(f"no dataset folder {folder}. Build one with tools/build_dataset.py.")
        if not path.is_file():
            raise UserError(
                f"{folder} is no finished dataset ({FILE_NAME} is missing). Build it with tools/build_dataset.py."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["version"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): build the dataset again.") from error
        if version != FORMAT_VERSION:
            raise UserError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}.")
        try:
            content["shards"] = [shard_record(entry) for entry in content["shards"]]
            return cls(**content)
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): build the dataset again.") from error

    def check_sizes(self, folder: Path) -> None:
        """Compares the size of each file with the manifest; raises ``UserError`` at the first difference."""
        for shard in self.shards:
            for suffix, record in shard.files.items():
                path = folder / f"{shard.name}.{suffix}"
                if not path.is_file():
                    raise UserError(f"{path} is missing, {FILE_NAME} names it: build the dataset again.")
                if path.stat().st_size != record.bytes:
                    found = f"{path} has {path.stat().st_size:,} bytes, {FILE_NAME} says {record.bytes:,}"
                    raise UserError(f"{found}: the file is damaged, build the dataset again.")

    @property
    def checksum(self) -> str:
        """Identity of the dataset's content: sha256 over the sha256 of all shard files, hexadecimal."""
        parts = [record.sha256 for shard in self.shards for _, record in sorted(shard.files.items())]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def shard_record(entry: dict) -> ShardRecord:
    known = {f.name for f in fields(ShardRecord)}
    files = {suffix: FileRecord(**record) for suffix, record in entry["files"].items()}
    return ShardRecord(**{name: value for name, value in entry.items() if name in known} | {"files": files})
