"""Checking a dataset byte by byte against its manifest and its format, with a list of all problems.

As many shards as there are cores are read at a time, each byte once; sha256 is the bottleneck. Memory: a few MiB and
8 bytes a document for each shard being read.

Besides sizes and checksums it checks the header of the index, sizes (not negative), offsets (they add up), the document
index (it rises from 0 to S); in the .bin, ids (below the size of the vocabulary) and ``</s>`` (at the end of each document
and nowhere else); in the manifest, the counts and the fingerprint of the tokenizer.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, MIB, TOKENIZER, DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.data.storage.token_file import HEADER, TokenFile
from mpnet_ds.errors import UserError
from mpnet_ds.machine import available_cores
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import PretrainingTokenizer

ENTRIES_AT_ONCE = 1 << 14  # of an index: intermediate arrays stay in the CPU's cache


@dataclass(frozen=True)
class Verification:
    """Result of ``verify``."""

    num_bytes: int
    """Number of bytes read."""
    problems: list[str]
    """One line each: file, position, what is wrong. Empty for a sound dataset."""


def verify(folder: str | Path, show_progress: bool = True) -> Verification:
    """Check the dataset in ``folder`` and its holdout, if there is one; damage is listed, not raised.

    Raises ``UserError`` if there is no finished dataset.
    """
    folder = Path(folder)
    manifests = {folder: DatasetManifest.load(folder)}
    problems = []
    if (folder / HOLDOUT).is_dir():
        try:
            manifests[folder / HOLDOUT] = DatasetManifest.load(folder / HOLDOUT)
        except UserError as error:
            problems.append(str(error))
    elif manifests[folder].options.get("holdout"):
        problems.append(f"{folder / HOLDOUT} is missing, though the dataset was built with a holdout")
    for where, manifest in manifests.items():
        problems += _manifest_problems(where, manifest)
    total = sum(record.bytes for where, manifest in manifests.items() for _, _, record in manifest.files(where))
    with (
        Progress("Verifying", total, unit="B", enabled=show_progress) as progress,
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        shards = [(where, manifest, shard) for where, manifest in manifests.items() for shard in manifest.shards]
        work = [(check, *shard) for shard in shards for check in (_index_file_problems, _shard_problems)]
        for found in pool.map(lambda task: task[0](*task[1:], progress), work):
            problems += found
    return Verification(progress.done, problems)


def _manifest_problems(folder: Path, manifest: DatasetManifest) -> list[str]:
    """Check the manifest without the shards: its sums, and the tokenizer."""
    problems = []
    for name in ("documents", "sequences", "tokens"):
        total, of_shards = getattr(manifest, name), sum(getattr(shard, name) for shard in manifest.shards)
        if total != of_shards:
            problems.append(f"{folder / FILE_NAME}: {total:,} {name}, but its shards have {of_shards:,}")
    counts = manifest.decoded_piece_counts()
    if counts is not None and counts.sum() != manifest.tokens:
        problems.append(f"{folder / FILE_NAME}: {manifest.tokens:,} tokens, but piece_counts add up to {counts.sum():,}")
    try:
        found = PretrainingTokenizer.load(folder / TOKENIZER).fingerprint
    except UserError as error:
        return [*problems, str(error)]
    if found != manifest.tokenizer_fingerprint:
        expected = manifest.tokenizer_fingerprint
        problems.append(f"{folder / TOKENIZER}: fingerprint {found[:12]}, {FILE_NAME} says {expected[:12]}")
    return problems


def _index_file_problems(folder: Path, manifest: DatasetManifest, shard: ShardRecord, progress: Progress) -> list[str]:
    return _file_problems(shard.file(folder, "idx"), shard.files["idx"], progress)


def _shard_problems(folder: Path, manifest: DatasetManifest, shard: ShardRecord, progress: Progress) -> list[str]:
    """Check the .bin as a file, and the structure of both files."""
    index_path, bin_path = shard.file(folder, "idx"), shard.file(folder, "bin")
    if not (index_path.is_file() and bin_path.is_file()):
        return _file_problems(bin_path, shard.files["bin"], progress)
    try:
        opened = TokenFile(folder / shard.name)
    except UserError as error:
        return [str(error), *_file_problems(bin_path, shard.files["bin"], progress)]
    of_index = _index_problems(opened, manifest, shard)
    checks = _TokenChecks(opened, manifest, knows_documents=not of_index)
    of_file = _file_problems(bin_path, shard.files["bin"], progress, checks)
    return [*of_index, *of_file, *checks.faults.lines]


def _file_problems(
    path: Path, record: FileRecord, progress: Progress, look: Callable[[int, memoryview], None] | None = None
) -> list[str]:
    """Read a file once and compare size and checksums. ``look`` is called with the index and the bytes of each MiB."""
    size = 0

    def blocks() -> Iterator[memoryview]:
        nonlocal size
        buffer = memoryview(bytearray(MIB))  # one for all blocks: new memory for each costs a tenth of the time
        with open(path, "rb") as file:
            while length := file.readinto(buffer):
                if look is not None:
                    look(size // MIB, buffer[:length])
                size += length
                progress.update(length)
                yield buffer[:length]

    try:
        return _differences(path, FileRecord.of_blocks(blocks()), record)
    except FileNotFoundError:
        return [f"{path} is missing"]
    except OSError as error:
        return [f"{path} cannot be read at byte {size:,}: {error.strerror}"]


def _differences(path: Path, found: FileRecord, expected: FileRecord) -> list[str]:
    """Compare a file with its record; of a truncated file, the MiBs that are still complete are compared."""
    problems, comparable = [], -(-expected.bytes // MIB)
    if found.bytes != expected.bytes:
        problems.append(f"{path} has {found.bytes:,} bytes, {FILE_NAME} says {expected.bytes:,}")
        comparable = min(found.bytes, expected.bytes) // MIB
    pairs = zip(found.mib_checksums()[:comparable], expected.mib_checksums(), strict=False)
    for first, last in _runs([number for number, (here, there) in enumerate(pairs) if here != there]):
        end = min(last * MIB, found.bytes)
        problems.append(f"{path}: bytes {first * MIB:,} to {end - 1:,} are damaged: the checksum differs from {FILE_NAME}")
    if not problems and found != expected:
        what = f"xxh3_64 or sha256 differs from {FILE_NAME}, though the checksum of each MiB agrees"
        problems.append(f"{path}: {what}: {FILE_NAME} was changed")
    return problems


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Group consecutive numbers as (first, last + 1): 3 4 5 9 gives (3, 6), (9, 10)."""
    array = np.array(numbers, dtype=np.int64)
    breaks = np.flatnonzero(np.diff(array) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(array, breaks) if len(run)]


def _index_problems(shard: TokenFile, manifest: DatasetManifest, record: ShardRecord) -> list[str]:
    """Check the index of a shard, some entries at a time."""
    found = (shard.num_sequences, shard.num_documents, len(shard.tokens), shard.dtype.name)
    expected = (record.sequences, record.documents, record.tokens, manifest.dtype)
    names = ("sequences", "documents", "tokens", "type of an id")
    problems = [
        f"{shard.index_path}: {name}: {here}, {FILE_NAME} says {there}"
        for name, here, there in zip(names, found, expected, strict=True)
        if here != there
    ]
    first, last = int(shard.document_index[0]), int(shard.document_index[-1])
    if (first, last) != (0, shard.num_sequences):
        problems.append(
            f"{shard.index_path}: the document index goes from {first} to {last}, not 0 to {shard.num_sequences}"
        )
    faults = _FaultsOfFile(shard.index_path)
    for begin in range(0, shard.num_sequences, ENTRIES_AT_ONCE):
        _check_sequences(shard, begin, min(begin + ENTRIES_AT_ONCE, shard.num_sequences), faults)
    documents_at = HEADER.size + 12 * shard.num_sequences
    for begin in range(0, shard.num_documents, ENTRIES_AT_ONCE):
        entries = shard.document_index[begin : begin + ENTRIES_AT_ONCE + 1]
        empty = begin + np.flatnonzero(np.diff(entries) <= 0)
        faults.add("a document without sequences", empty, lambda i: (documents_at + 8 * i, f"document {i}"))
    return problems + faults.lines


def _check_sequences(shard: TokenFile, begin: int, end: int, faults: "_FaultsOfFile") -> None:
    """Check the entries ``begin`` … ``end - 1`` of sizes and offsets."""
    width = shard.dtype.itemsize
    sizes, offsets = shard.sizes[begin:end].astype(np.int64), shard.offsets[begin:end]
    start = int(shard.offsets[begin - 1]) + int(shard.sizes[begin - 1]) * width if begin else 0
    expected = np.concatenate([[start], offsets[:-1] + sizes[:-1] * width])
    offsets_at = HEADER.size + 4 * shard.num_sequences
    negative, wrong = begin + np.flatnonzero(sizes < 0), begin + np.flatnonzero(offsets != expected)
    faults.add("a negative size", negative, lambda i: (HEADER.size + 4 * i, f"sequence {i}"))
    what = "an offset that is not the end of the previous sequence"
    faults.add(what, wrong, lambda i: (offsets_at + 8 * i, f"sequence {i}"))


class _TokenChecks:
    """Checks the ids of a shard, MiB by MiB, and their documents' ends if the index is sound (``knows_documents``)."""

    def __init__(self, shard: TokenFile, manifest: DatasetManifest, knows_documents: bool):
        self.shard, self.vocab_size, self.end_id = shard, manifest.vocab_size, manifest.special_ids["eos"]
        self.lasts = shard.document_starts(0, shard.num_documents)[1:] - 1 if knows_documents else None
        self.faults = _FaultsOfFile(shard.bin_path)
        self._unsigned = np.dtype(f"<u{shard.dtype.itemsize}")  # a negative id becomes a large one

    def __call__(self, number: int, block: memoryview) -> None:
        tokens = np.frombuffer(block, self._unsigned)
        first = number * MIB // self._unsigned.itemsize
        if tokens.max() >= self.vocab_size:
            self._add(f"an id that is not below {self.vocab_size}", first + np.flatnonzero(tokens >= self.vocab_size))
        if self.lasts is not None:
            self._check_ends(tokens, first)

    def _check_ends(self, tokens: np.ndarray, first: int) -> None:
        begin, end = np.searchsorted(self.lasts, [first, first + len(tokens)])
        expected = self.lasts[begin:end] - first
        is_end = tokens == self.end_id
        if np.count_nonzero(is_end) == len(expected) and is_end[expected].all():
            return
        self._add("a document that does not end in </s>", first + expected[~is_end[expected]])
        is_end[expected] = False
        self._add("</s> before the end of a document", first + np.flatnonzero(is_end))

    def _add(self, what: str, tokens: np.ndarray) -> None:
        self.faults.add(what, tokens, self._locate)

    def _locate(self, token: int) -> tuple[int, str]:
        byte = token * self._unsigned.itemsize
        sequence = int(np.searchsorted(self.shard.offsets, byte, side="right")) - 1
        document = int(np.searchsorted(self.shard.document_index, sequence, side="right")) - 1
        return byte, f"sequence {sequence}, document {document}"


class _FaultsOfFile:
    """Faults of one file by kind: the position of the first, and how many there are."""

    def __init__(self, path: Path):
        self.path = path
        self._first: dict[str, str] = {}
        self._count: dict[str, int] = {}

    def add(self, what: str, numbers: np.ndarray, locate: Callable[[int], tuple[int, str]]) -> None:
        """Add faulty entries by index; ``locate`` returns the byte offset of an entry, and what it belongs to."""
        if not len(numbers):
            return
        if what not in self._first:
            byte, owner = locate(int(numbers[0]))
            self._first[what] = f"byte {byte:,} ({owner})"
        self._count[what] = self._count.get(what, 0) + len(numbers)

    @property
    def lines(self) -> list[str]:
        """One line for each kind of fault."""
        in_all = {what: f"; {count:,} in all" if count > 1 else "" for what, count in self._count.items()}
        return [f"{self.path}: {position}: {what}{in_all[what]}" for what, position in self._first.items()]
