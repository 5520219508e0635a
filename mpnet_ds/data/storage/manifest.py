"""``dataset.json``: what a dataset folder holds. It is written last; a shard that it does not name does not exist.

A dataset folder:

    dataset.json          this manifest
    tokenizer/            a copy of the tokenizer, so that the folder is enough to train and to export
    shard-00000.bin .idx  tokens (see token_file.py)
    holdout/              with --holdout: a dataset of its own for evaluation, found by pre-training by itself

A shard's name is a path without ending, seen from this folder. In a dataset that was merged by reference it leads
elsewhere: ``../january/shard-00000``. Of each file the manifest holds its size and three checksums:

    xxh3_64               of the whole file: fast, finds damage
    sha256                of the whole file: its identity
    xxh3_64_of_each_mib   one after another, 16 hexadecimal digits for each started MiB: tells *where* the damage is
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import xxhash

import mpnet_ds
from mpnet_ds.data.storage.token_file import TokenFileWriter, token_dtype
from mpnet_ds.errors import UserError
from mpnet_ds.files import write_atomically
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PAD_ID, PretrainingTokenizer

FILE_NAME = "dataset.json"
TOKENIZER, HOLDOUT = "tokenizer", "holdout"
FORMAT_VERSION = 2
MIB = 1 << 20
HEX_DIGITS = 16  # of one xxh3_64
SOURCES_IN_SUMMARY = 20


@dataclass(frozen=True)
class FileRecord:
    """Size and checksums of one file, hexadecimal; what each is for stands at the top of this file."""

    bytes: int
    xxh3_64: str
    sha256: str
    xxh3_64_of_each_mib: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Reads the whole file once."""
        with open(path, "rb") as file:
            return cls.of_blocks(iter(lambda: file.read(MIB), b""))

    @classmethod
    def of_blocks(cls, blocks: Iterable[bytes]) -> "FileRecord":
        """The record of a file that comes as blocks of ``MIB`` bytes, of which only the last may be shorter."""
        size, fast, sure, of_each = 0, xxhash.xxh3_64(), hashlib.sha256(), []
        for block in blocks:
            assert size % MIB == 0, "a block that is not the last is shorter than a MiB"
            size += len(block)
            fast.update(block)
            sure.update(block)
            of_each.append(xxhash.xxh3_64_hexdigest(block))
        return cls(size, fast.hexdigest(), sure.hexdigest(), "".join(of_each))

    def mib_checksums(self) -> list[str]:
        """``xxh3_64_of_each_mib``, cut into one checksum for each MiB."""
        joined = self.xxh3_64_of_each_mib
        return [joined[at : at + HEX_DIGITS] for at in range(0, len(joined), HEX_DIGITS)]


@dataclass(frozen=True)
class ShardRecord:
    """One shard: where it is, what it holds, and what its files should be."""

    name: str
    """Path without ending, seen from the folder of the manifest; see ``file``."""
    sequences: int
    documents: int
    tokens: int
    files: dict[str, FileRecord]
    """By suffix: ``bin`` and ``idx``."""

    @classmethod
    def of(cls, shard: TokenFileWriter) -> "ShardRecord":
        """Of a shard that was just closed; reads its files once."""
        files = {suffix: FileRecord.of(shard.prefix.with_name(f"{shard.prefix.name}.{suffix}")) for suffix in ("bin", "idx")}
        return cls(shard.prefix.name, shard.num_sequences, shard.num_documents, shard.num_tokens, files)

    def file(self, folder: Path, suffix: str) -> Path:
        """Where a file of the shard lies; dots in the name mean nothing."""
        return Path(folder) / f"{self.name}.{suffix}"

    def has_its_files(self, folder: Path) -> bool:
        """Whether both files are there, of the right size."""
        files = ((self.file(folder, suffix), record) for suffix, record in self.files.items())
        return all(path.is_file() and path.stat().st_size == record.bytes for path, record in files)

    @property
    def cure(self) -> str:
        """What to do when a file of this shard is not as it should be."""
        elsewhere = Path(self.name).parent
        if elsewhere == Path("."):
            return "build the dataset again"
        return f"it belongs to the dataset in {elsewhere}, merged by reference: put that one back, or merge again"


@dataclass(frozen=True)
class DatasetManifest:
    """The content of ``dataset.json``; ``tokenizer_fingerprint`` and ``checksum`` are hexadecimal sha256."""

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

    @classmethod
    def of(
        cls, tokenizer: PretrainingTokenizer, shards: list[ShardRecord], sources: list[dict], options: dict, **other
    ) -> "DatasetManifest":
        """The manifest of shards that this program has written."""
        return cls(
            dtype=token_dtype(tokenizer.vocab_size).name,
            vocab_size=tokenizer.vocab_size,
            special_ids={"bos": BOS_ID, "pad": PAD_ID, "eos": EOS_ID, "mask": tokenizer.mask_id},
            tokenizer_fingerprint=tokenizer.fingerprint,
            documents=sum(shard.documents for shard in shards),
            sequences=sum(shard.sequences for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            shards=shards,
            sources=sources,
            command=shlex.join(sys.argv),
            tool_version=mpnet_ds.__version__,
            options=options,
            **other,
        )

    def save(self, folder: Path) -> None:
        """Puts the manifest in place in one step: readers see all of it or none."""
        write_atomically(folder / FILE_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "DatasetManifest":
        """Of a dataset folder; ``UserError`` if it is missing, unfinished, damaged or of another version."""
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
            raise UserError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: build it again.")
        try:
            content["shards"] = [shard_record(entry) for entry in content["shards"]]
            manifest = cls(**content)
            manifest._check_types()
            return manifest
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): build the dataset again.") from error

    def files(self, folder: Path) -> Iterator[tuple[ShardRecord, Path, FileRecord]]:
        """Every file of every shard: its shard, its path, its record."""
        for shard in self.shards:
            for suffix, record in shard.files.items():
                yield shard, shard.file(folder, suffix), record

    def _check_types(self) -> None:
        kinds = {"documents": int, "sequences": int, "tokens": int, "vocab_size": int, "tokenizer_fingerprint": str}
        kinds |= {"sources": list, "options": dict, "left_out": dict, "special_ids": dict, "dtype": str, "command": str}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"'{name}' is no {kind.__name__}")
        for shard in self.shards:
            if not all(isinstance(number, int) for number in (shard.sequences, shard.documents, shard.tokens)):
                raise TypeError(f"the counts of {shard.name} are no numbers")

    def check_sizes(self, folder: Path) -> None:
        """Compares the size of each file with the manifest; raises ``UserError`` at the first difference."""
        for shard, path, record in self.files(folder):
            if not path.is_file():
                raise UserError(f"{path} is missing, {FILE_NAME} names it: {shard.cure}.")
            if path.stat().st_size != record.bytes:
                found = f"{path} has {path.stat().st_size:,} bytes, {FILE_NAME} says {record.bytes:,}"
                raise UserError(f"{found}: the file is damaged; {shard.cure}.")

    def summary(self) -> dict:
        """How much text it is, and the first of its sources by name."""
        names = [str(source.get("path", "")) for source in self.sources]
        counts = {"documents": self.documents, "sequences": self.sequences, "tokens": self.tokens}
        return counts | {"sources": names[:SOURCES_IN_SUMMARY], "num_sources": len(names)}

    @property
    def checksum(self) -> str:
        """Identity of the dataset's content: sha256 over the sha256 of all shard files, hexadecimal."""
        parts = [record.sha256 for shard in self.shards for _, record in sorted(shard.files.items())]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def shard_record(entry: dict) -> ShardRecord:
    """From an entry of the JSON; LookupError, TypeError or AttributeError if it is not one."""
    known = {f.name for f in fields(ShardRecord)}
    files = {suffix: FileRecord(**record) for suffix, record in entry["files"].items()}
    return ShardRecord(**{name: value for name, value in entry.items() if name in known} | {"files": files})
