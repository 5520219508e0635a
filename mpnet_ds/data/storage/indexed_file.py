"""Reader for token files of other programs: Megatron-LM's, and fairseq's "mmap" files.

Both are pairs PREFIX.idx and PREFIX.bin; the .bin holds concatenated ids. The index, little-endian:

    bytes    Megatron-LM, gpt-neox, NeMo                      fairseq
    9        magic "MMIDIDX\\0\\0"                              the same
    8        version, uint64 = 1                              the same
    1        type code of an id (below)                       the same, with more codes
    8        S, number of sequences, uint64                   the same
    8        D, length of the document index, uint64          -
    4 * S    ids in each sequence, int32                      the same
    8 * S    byte offset of each sequence, int64              the same
    8 * D    first sequence of each document, int64; then S   -
    total    34 + 12 S + 8 D                                  26 + 12 S

The total size always distinguishes them: S is at the same offset in both, and for a given S fairseq's index is smaller than
any of Megatron's. Files of neither size are refused. (A Megatron index truncated to exactly 26 + 12 S bytes looks like
fairseq's, but then its offsets do not match its sizes.) Type codes: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16;
fairseq also has 9 uint32 and 10 uint64; 6 and 7 are floating-point types. Sources: Megatron-LM,
``core/datasets/indexed_dataset.py``; fairseq, ``data/indexed_dataset.py``.

Document boundaries come from Megatron's document index. fairseq has none: there a blank line, stored as ``</s>`` alone or as
nothing, ends a document; in a file without blank lines each line is a document.
"""

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from mpnet_ds.data.storage.token_file import MAGIC, VERSION
from mpnet_ds.errors import UserError

TOKENS_AT_ONCE = 1 << 20
ENTRIES_AT_ONCE = 1 << 16  # of an index

START = struct.Struct("<9sQBQ")
INTEGERS = {code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}
TYPE_CODES = {"megatron": INTEGERS, "fairseq": INTEGERS | {9: np.dtype("<u4"), 10: np.dtype("<u8")}}
OLD_FAIRSEQ_MAGIC = b"TNTIDX\x00\x00"


class IndexedFile:
    """A pair of files of Megatron or fairseq, opened for reading; see the top of this file.

    ``ends``: ids of which one alone makes a blank line.

    Attributes:
        kind: ``megatron`` or ``fairseq``.
        tokens: all ids, memory-mapped, in the type of the file.
        sizes: int32 [S]; offsets: int64 [S]; both memory-mapped.
        num_documents: including empty ones.
    """

    def __init__(self, prefix: str, ends: Collection[int] = ()):
        self.index_path, self.bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (self.index_path, self.bin_path):
            if not path.is_file():
                raise UserError(f"{path} is missing: an .idx and a .bin belong together.")
        self.kind, self.dtype, self.num_sequences, num_entries = self._read_header()
        self._index = np.memmap(self.index_path, np.uint8, "r")
        at = START.size if self.kind == "fairseq" else START.size + 8
        self.sizes = self._array("<i4", at, self.num_sequences)
        self.offsets = self._array("<i8", at + 4 * self.num_sequences, self.num_sequences)
        self.tokens = np.memmap(self.bin_path, np.uint8, "r") if self.bin_path.stat().st_size else np.empty(0, np.uint8)
        self._check_offsets()
        self.tokens = self.tokens.view(self.dtype)
        if self.kind == "megatron":
            self._starts = self._array("<i8", at + 12 * self.num_sequences, num_entries)
            self._check_document_index()
        else:
            self._starts = self._starts_after_blank_lines(ends)
        self.num_documents = len(self._starts) - 1 if self._starts is not None else self.num_sequences

    @property
    def source(self) -> dict:
        """Entry for ``sources`` in a manifest."""
        documents = "document index" if self.kind == "megatron" else "blank lines"
        return {
            "path": str(self.bin_path),
            "kind": self.kind,
            "documents_by": documents if self._starts is not None else "lines",
            "num_bytes": self.bin_path.stat().st_size + self.index_path.stat().st_size,
            "modified": self.bin_path.stat().st_mtime,
        }

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """Index of the first sequence of the documents ``first`` … ``last - 1``, then the end of the last."""
        return np.arange(first, last + 1) if self._starts is None else np.asarray(self._starts[first : last + 1])

    def token_starts(self, sequences: np.ndarray) -> np.ndarray:
        """Index of the first token of each of these sequences; S stands for the end of the file."""
        starts = np.full(len(sequences), len(self.tokens), dtype=np.int64)
        inside = sequences < self.num_sequences
        starts[inside] = self.offsets[sequences[inside]] // self.dtype.itemsize
        return starts

    def document_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield consecutive ranges of documents of at most ``TOKENS_AT_ONCE``, unless a single document has more."""
        first = 0
        while first < self.num_documents:
            last = min(first + ENTRIES_AT_ONCE, self.num_documents)
            starts = self.token_starts(self.document_starts(first, last))
            last = first + max(1, int(np.searchsorted(starts, starts[0] + TOKENS_AT_ONCE, side="right")) - 1)
            yield first, last
            first = last

    def num_bytes(self, first: int, last: int) -> int:
        """Size of the ids of documents ``first`` … ``last - 1`` in bytes."""
        begin, end = self.token_starts(self.document_starts(first, last)[[0, -1]])
        return int(end - begin) * self.dtype.itemsize

    def _read_header(self) -> tuple[str, np.dtype, int, int]:
        """Read the kind, the type of an id, S and D."""
        size = self.index_path.stat().st_size
        with open(self.index_path, "rb") as file:
            header = file.read(START.size + 8)
        if header.startswith(OLD_FAIRSEQ_MAGIC):
            cure = "binarise the text again with fairseq-preprocess --dataset-impl mmap"
            raise UserError(f"{self.index_path} is in fairseq's old format (TNTIDX): {cure}.")
        if len(header) < START.size or not header.startswith(MAGIC):
            raise UserError(f"{self.index_path} is not an index of Megatron or fairseq (no MMIDIDX header).")
        _, version, code, num_sequences = START.unpack_from(header)
        if version != VERSION:
            raise UserError(f"{self.index_path}: unknown version {version}; expected 1.")
        num_entries = int.from_bytes(header[START.size :], "little")
        sizes = {
            "fairseq": START.size + 12 * num_sequences,
            "megatron": START.size + 8 + 12 * num_sequences + 8 * num_entries,
        }
        kind = next((kind for kind, expected in sizes.items() if size == expected), None)
        if kind is None:
            found = f"{self.index_path} has {size:,} bytes for {num_sequences:,} sequences"
            expected = f"{sizes['megatron']:,} if Megatron's, {sizes['fairseq']:,} if fairseq's"
            raise UserError(f"{found}, expected {expected}: it is damaged, or in another format (Megatron's multimodal).")
        if code not in TYPE_CODES[kind]:
            known = ", ".join(f"{number} ({dtype.name})" for number, dtype in TYPE_CODES[kind].items())
            raise UserError(f"{self.index_path}: type code {code} is not an integer type; expected {known}.")
        return kind, TYPE_CODES[kind][code], num_sequences, num_entries

    def _array(self, dtype: str, offset: int, count: int) -> np.ndarray:
        return np.asarray(self._index)[offset : offset + np.dtype(dtype).itemsize * count].view(dtype)

    def _check_offsets(self) -> None:
        """Check that sequences follow each other without gaps and fill the .bin exactly."""
        end = 0
        for begin in range(0, self.num_sequences, ENTRIES_AT_ONCE):
            sizes = self.sizes[begin : begin + ENTRIES_AT_ONCE].astype(np.int64)
            ends = end + np.cumsum(sizes * self.dtype.itemsize)
            starts = np.concatenate([[end], ends[:-1]])
            wrong = np.flatnonzero((sizes < 0) | (self.offsets[begin : begin + ENTRIES_AT_ONCE] != starts))
            if len(wrong):
                where = f"{self.index_path}: sequence {begin + wrong[0]}"
                raise UserError(f"{where} does not start where the previous one ends: damaged, or not written in order.")
            end = int(ends[-1])
        if len(self.tokens) != end:
            raise UserError(f"{self.bin_path} has {len(self.tokens):,} bytes, its index says {end:,}: it is damaged.")

    def _check_document_index(self) -> None:
        starts = self._starts
        if not len(starts) or (starts[0], starts[-1]) != (0, self.num_sequences) or (np.diff(starts) < 0).any():
            found = f"{self.index_path}: the document index does not rise from 0 to {self.num_sequences:,}"
            raise UserError(f"{found}: it is damaged, or was merged by a tool that loses documents.")

    def _starts_after_blank_lines(self, ends: Collection[int]) -> np.ndarray | None:
        """Index of the first sequence of each document, then S; None if no line is blank, so that each is a document."""
        blank = [np.empty(0, dtype=np.int64)]
        for begin in range(0, self.num_sequences, ENTRIES_AT_ONCE):
            sizes = self.sizes[begin : begin + ENTRIES_AT_ONCE]
            single = begin + np.flatnonzero(sizes == 1)
            ids = self.tokens[self.offsets[single] // self.dtype.itemsize]
            blank += [begin + np.flatnonzero(sizes == 0), single[np.isin(ids, list(ends))]]
        blank = np.concatenate(blank)
        if not len(blank):
            return None
        return np.unique(np.concatenate([[0], blank, [self.num_sequences]]))
