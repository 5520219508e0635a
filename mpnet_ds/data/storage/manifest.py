"""``dataset.json``, the manifest of a dataset. It is written last; shards that it does not list do not belong to it.

A dataset folder:

    dataset.json          this manifest
    tokenizer/            a copy of the tokenizer, so that the folder is enough for training and export
    shard-00000.bin .idx  tokens (see token_file.py)
    holdout/              with --holdout: a dataset of its own, which pre-training uses for evaluation

The name of a shard is a path without suffix, relative to this folder. In a dataset that was merged by reference it points
elsewhere: ``../january/shard-00000``. For each file the manifest holds its size and three checksums:

    xxh3_64               of the whole file: fast, detects damage
    sha256                of the whole file: its identity
    xxh3_64_of_each_mib   16 hexadecimal digits for each MiB or part of one, concatenated: locates the damage
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import xxhash

import mpnet_ds
from mpnet_ds.command_line import invocation
from mpnet_ds.data.storage.piece_counts import decode
from mpnet_ds.data.storage.provenance import Provenance
from mpnet_ds.data.storage.token_file import TokenFile, token_dtype
from mpnet_ds.errors import UserError, printable
from mpnet_ds.files import write_atomically
from mpnet_ds.machine import percent
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.tokenizer_layouts import MPNET

FILE_NAME = "dataset.json"
TOKENIZER, HOLDOUT = "tokenizer", "holdout"
FORMAT_VERSION = 2
MIB = 1 << 20
HEX_DIGITS = 16  # of one xxh3_64
SOURCES_IN_SUMMARY = 20
MOST_FAULTS = 4  # that are named
TOKENS_AT_ONCE = 1 << 16
WORTH_A_REMARK = 0.01  # of the tokens
Record = TypeVar("Record")


class TokenCounts(NamedTuple):
    """Tokens that say something about the tokenizer."""

    unknown: int
    indivisible: int
    """In no word: see ``WordBoundaries.count_indivisible``."""

    @classmethod
    def of(cls, ids: np.ndarray, tokenizer: PretrainingTokenizer) -> "TokenCounts":
        """Count the tokens of a text."""
        unknown = 0 if tokenizer.unknown_id is None else int(np.count_nonzero(ids == tokenizer.unknown_id))
        return cls(unknown, tokenizer.words.count_indivisible(ids))

    def remarks(self, tokens: int) -> list[str]:
        """Say which shares of all tokens these are, where they are more than ``WORTH_A_REMARK``."""
        said = {
            "are unknown: a tokenizer that was trained on this text would know them": self.unknown,
            "are not in words (a script without blanks, very long words): masking chooses them one by one": self.indivisible,
        }
        return [
            f"{percent(count, tokens)} of the tokens {what}."
            for what, count in said.items()
            if count > WORTH_A_REMARK * tokens
        ]


@dataclass(frozen=True)
class FileRecord:
    """Size and checksums (hexadecimal) of one file; see the top of this file."""

    bytes: int
    xxh3_64: str
    sha256: str
    xxh3_64_of_each_mib: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Compute the record of a file, reading it once."""
        with open(path, "rb") as file:
            return cls.of_blocks(iter(lambda: file.read(MIB), b""))

    @classmethod
    def of_blocks(cls, blocks: Iterable[bytes]) -> "FileRecord":
        """Compute the record of a file from blocks of ``MIB`` bytes, of which only the last may be shorter."""
        size, fast, sure, of_each = 0, xxhash.xxh3_64(), hashlib.sha256(), []
        for block in blocks:
            assert size % MIB == 0, "a block other than the last is shorter than a MiB"
            size += len(block)
            fast.update(block)
            sure.update(block)
            of_each.append(xxhash.xxh3_64_hexdigest(block))
        return cls(size, fast.hexdigest(), sure.hexdigest(), "".join(of_each))

    def mib_checksums(self) -> list[str]:
        """Split ``xxh3_64_of_each_mib`` into one checksum for each MiB."""
        joined = self.xxh3_64_of_each_mib
        return [joined[at : at + HEX_DIGITS] for at in range(0, len(joined), HEX_DIGITS)]


@dataclass(frozen=True)
class ShardRecord:
    """One shard: where it is, what it holds, and what its files should be."""

    name: str
    """Path without suffix, relative to the folder of the manifest; see ``file``."""
    sequences: int
    documents: int
    tokens: int
    files: dict[str, FileRecord]
    """By suffix: ``bin`` and ``idx``."""
    unknown_tokens: int = 0
    indivisible_tokens: int = 0

    @classmethod
    def of(cls, shard: TokenFile, tokenizer: PretrainingTokenizer) -> "ShardRecord":
        """Compute the record of a shard, reading its files."""
        files = {"bin": FileRecord.of(shard.bin_path), "idx": FileRecord.of(shard.index_path)}
        tokens = shard.tokens
        starts = range(0, len(tokens), TOKENS_AT_ONCE)
        counts = [TokenCounts.of(tokens[start : start + TOKENS_AT_ONCE], tokenizer) for start in starts]
        lost = map(sum, zip(*counts, strict=True))
        return cls(shard.bin_path.stem, shard.num_sequences, shard.num_documents, len(tokens), files, *lost)

    def file(self, folder: Path, suffix: str) -> Path:
        """Path of a file of the shard; dots in the name are part of it."""
        return Path(folder) / f"{self.name}.{suffix}"

    def has_its_files(self, folder: Path) -> bool:
        """Whether both files exist with the right size."""
        files = ((self.file(folder, suffix), record) for suffix, record in self.files.items())
        return all(path.is_file() and path.stat().st_size == record.bytes for path, record in files)

    @property
    def cure(self) -> str:
        """What to do if a file of this shard is missing or damaged."""
        elsewhere = Path(self.name).parent
        if elsewhere == Path("."):
            return "build the dataset again"
        return f"it belongs to the dataset in {elsewhere}, merged by reference: restore that one, or merge again"


@dataclass(frozen=True)
class DatasetManifest:
    """Content of ``dataset.json``; ``tokenizer_fingerprint`` and ``checksum`` are sha256 (hex)."""

    dtype: str
    vocab_size: int
    special_ids: dict[str, int]
    """Ids of ``bos``, ``eos``, ``pad`` and ``mask``, those of them that the layout has."""
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
    """How many documents had no token or could not be read, the first fault, and the files of folders that were not read."""
    unknown_tokens: int = 0
    indivisible_tokens: int = 0
    """Tokens in no word, as ``TokenCounts`` counts them; 0 in datasets of older versions."""
    provenance: Provenance = field(default_factory=Provenance)
    piece_counts: str = ""
    """How often each id occurs in all shards, as ``piece_counts.py`` encodes it; empty in datasets of older versions."""
    layout: str = MPNET.name
    """Name of the tokenizer's layout of special tokens, see ``tokenizer_layouts.py``; older versions had one only."""

    @classmethod
    def of(
        cls, tokenizer: PretrainingTokenizer, shards: list[ShardRecord], sources: list[dict], options: dict, **other
    ) -> "DatasetManifest":
        """Make the manifest of shards that this program has written."""
        begin, end, pad = tokenizer.frame
        special_ids = {"bos": begin, "pad": pad, "eos": end, "mask": tokenizer.mask_id}
        return cls(
            dtype=token_dtype(tokenizer.vocab_size).name,
            vocab_size=tokenizer.vocab_size,
            special_ids={role: number for role, number in special_ids.items() if number is not None},
            layout=tokenizer.layout.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            documents=sum(shard.documents for shard in shards),
            sequences=sum(shard.sequences for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            unknown_tokens=sum(shard.unknown_tokens for shard in shards),
            indivisible_tokens=sum(shard.indivisible_tokens for shard in shards),
            shards=shards,
            sources=sources,
            command=printable(shlex.join(sys.argv)),
            tool_version=mpnet_ds.__version__,
            options=options,
            **other,
        )

    def save(self, folder: Path) -> None:
        """Write the manifest atomically."""
        write_atomically(folder / FILE_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "DatasetManifest":
        """Read the manifest of a folder; raise ``UserError`` if it is missing, damaged or of another version."""
        path = Path(folder) / FILE_NAME
        if not Path(folder).is_dir():
            raise UserError(f"no dataset folder {folder}. Build one with {invocation('build_dataset')}.")
        if not path.is_file():
            raise UserError(
                f"{folder} is not a finished dataset ({FILE_NAME} is missing). Build it with {invocation('build_dataset')}."
            )
        try:
            content = path.read_bytes()
            version = json.loads(content)["version"]
            if version == FORMAT_VERSION:
                manifest = from_json(cls, content)
                manifest.decoded_piece_counts()
                return manifest
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): build the dataset again.") from error
        raise UserError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: build it again.")

    def files(self, folder: Path) -> Iterator[tuple[ShardRecord, Path, FileRecord]]:
        """Yield every file of every shard: shard, path, record."""
        for shard in self.shards:
            for suffix, record in shard.files.items():
                yield shard, shard.file(folder, suffix), record

    def check_sizes(self, folder: Path) -> None:
        """Compare the size of each file with the manifest; raise ``UserError`` with the first differences."""
        findings = []
        for shard, path, record in self.files(folder):
            if not path.is_file():
                findings.append(f"{path} is missing, {FILE_NAME} lists it: {shard.cure}.")
            elif path.stat().st_size != record.bytes:
                found = f"{path} has {path.stat().st_size:,} bytes, {FILE_NAME} says {record.bytes:,}"
                findings.append(f"{found}: the file is damaged; {shard.cure}.")
        if len(findings) > MOST_FAULTS:
            findings[MOST_FAULTS:] = [f"{folder}: and {len(findings) - MOST_FAULTS} more files are missing or damaged."]
        if findings:
            raise UserError(*findings)

    @property
    def counted(self) -> str:
        """Documents, sequences and tokens, for people."""
        return f"{self.documents:,} documents, {self.sequences:,} sequences, {self.tokens:,} tokens"

    def decoded_piece_counts(self) -> np.ndarray | None:
        """How often each id occurs in all shards, int64 [V]; None in datasets of older versions, ValueError if damaged."""
        if not self.piece_counts:
            return None
        counts = decode(self.piece_counts)
        if len(counts) != self.vocab_size or (counts < 0).any():
            raise ValueError(f"piece_counts: not {self.vocab_size:,} counts of at least 0")
        return counts

    @property
    def unknown_share(self) -> str:
        """Share of unknown tokens, for people."""
        return f"{percent(self.unknown_tokens, self.tokens)} unknown"

    @property
    def remarks(self) -> list[str]:
        """What to know about the tokens before training on them."""
        return TokenCounts(self.unknown_tokens, self.indivisible_tokens).remarks(self.tokens)

    def summary(self) -> dict:
        """Return the counts, the paths of the first sources, and what was stated of them."""
        names = [str(source.get("path", "")) for source in self.sources]
        counts = {"documents": self.documents, "sequences": self.sequences, "tokens": self.tokens}
        sources = {"sources": names[:SOURCES_IN_SUMMARY], "num_sources": len(names)}
        return counts | sources | {"provenance": asdict(self.provenance)}

    @property
    def checksum(self) -> str:
        """Identity of the dataset's content: sha256 (hex) over the sha256 of all shard files."""
        digests = [record.sha256 for shard in self.shards for _, record in sorted(shard.files.items())]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def from_json(cls: type[Record], content: bytes) -> Record:
    """Read a (nested) dataclass from JSON; raise ValueError in one line if a key is missing or a value has another type."""
    from pydantic import TypeAdapter, ValidationError  # here: worker processes, which only write, need not import it

    try:
        return TypeAdapter(cls).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
