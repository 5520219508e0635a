"""Token shards in Megatron's indexed format: ``shard-00000.bin`` and ``shard-00000.idx``.

The .bin holds the ids of all sequences, concatenated. The .idx, little-endian:

    offset  bytes    content
    0       9        magic "MMIDIDX\\0\\0"
    9       8        version, uint64 = 1
    17      1        type code of an id: 8 = uint16, 4 = int32
    18      8        S, number of sequences, uint64
    26      8        D, length of the document index = number of documents + 1, uint64
    34      4 * S    tokens in each sequence, int32
    ...     8 * S    byte offset of each sequence in the .bin, int64
    ...     8 * D    document index, int64: index of the first sequence of each document, then S

So the file has 34 + 12 S + 8 D bytes. Example: two documents, the first with sequences of 3 and 2 ids, the second with one
sequence of 4 ids, in uint16: S = 3, D = 3, sizes 3 2 4, offsets 0 6 10, document index 0 2 3; .idx 94 bytes, .bin 18 bytes.

Megatron-LM, gpt-neox and NeMo read these files. Source of the layout: Megatron-LM, ``indexed_dataset.py``. Opening reads
only the header and the entry of the last sequence; each array of the index is mapped at its first use.
"""

import os
import shutil
import struct
from functools import cached_property
from pathlib import Path

import numpy as np

from mpnet_ds.errors import UserError
from mpnet_ds.files import BLOCK, TEMPORARY

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}


def token_dtype(vocab_size: int) -> np.dtype:
    """Type of an id: uint16 if all ids fit, else int32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


def index_bytes(files: int, sequences: int, documents: int) -> int:
    """Total size of some .idx files in bytes."""
    return files * (HEADER.size + 8) + 12 * sequences + 8 * documents


class TokenFileWriter:
    """Writes one shard in constant memory.

    Both files get their names in ``close``, the .idx last; until then they are temporary files, which ``discard`` removes.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype):
        self.prefix, self.dtype = Path(prefix), np.dtype(dtype)
        self.num_tokens = self.num_sequences = self.num_documents = 0
        self._ids, self._index, self._documents = (
            open(self._temporary(part), "w+b") for part in ("bin", "idx", "documents")
        )
        self._index.write(bytes(HEADER.size))  # then the sizes, as they come; close() adds the rest
        self._documents.write(np.zeros(1, "<i8").tobytes())

    def add_documents(self, ids: np.ndarray, sizes: np.ndarray, lengths: np.ndarray) -> None:
        """Append several documents.

        Args:
            ids: int [tokens], all documents concatenated.
            sizes: int [sequences], tokens in each sequence.
            lengths: int [documents], sequences in each document.
        """
        self._ids.write(np.ascontiguousarray(ids, self.dtype))
        self._index.write(np.ascontiguousarray(sizes, "<i4"))
        self._documents.write(np.ascontiguousarray(self.num_sequences + np.cumsum(lengths), "<i8"))
        self.num_tokens += len(ids)
        self.num_sequences += len(sizes)
        self.num_documents += len(lengths)

    def close(self) -> None:
        """Finish both files and sync them to disk."""
        self._append_offsets()
        self._documents.seek(0)
        shutil.copyfileobj(self._documents, self._index)
        code = next(code for code, dtype in TYPE_CODES.items() if dtype == self.dtype)
        self._index.seek(0)
        self._index.write(HEADER.pack(MAGIC, VERSION, code, self.num_sequences, self.num_documents + 1))
        self._documents.close()
        for file, part in ((self._ids, "bin"), (self._index, "idx")):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._temporary(part), _path(self.prefix, part))
        self._temporary("documents").unlink()

    def _append_offsets(self) -> None:
        at, offset = HEADER.size, 0
        self._index.flush()
        end = self._index.tell()
        while at < end:
            self._index.seek(at)
            sizes = np.frombuffer(self._index.read(min(BLOCK, end - at)), "<i4").astype("<i8")
            at += 4 * len(sizes)
            ends = offset + np.cumsum(sizes) * self.dtype.itemsize
            self._index.seek(0, os.SEEK_END)
            self._index.write(ends - sizes * self.dtype.itemsize)
            offset = ends[-1]

    def discard(self) -> None:
        """Remove the temporary files."""
        for file, part in ((self._ids, "bin"), (self._index, "idx"), (self._documents, "documents")):
            file.close()
            self._temporary(part).unlink(missing_ok=True)

    def _temporary(self, part: str) -> Path:
        return _path(self.prefix, f"{part}.{os.getpid()}{TEMPORARY}")


class TokenFile:
    """A shard opened for reading; opening only reads the header and checks the sizes of both files.

    Attributes:
        tokens: all ids, memory-mapped, [tokens].
        num_sequences, num_documents: S and D - 1.
    """

    def __init__(self, prefix: str | Path):
        self.index_path, self.bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (self.index_path, self.bin_path):
            if not path.is_file():
                raise UserError(f"{path} is missing: build the dataset again.")
        code, self.num_sequences, num_entries = self._read_header()
        self.num_documents = num_entries - 1
        self._check_size(self.index_path, HEADER.size + 12 * self.num_sequences + 8 * num_entries)
        self.dtype = TYPE_CODES[code]
        self._check_size(self.bin_path, self._expected_bin_bytes())
        self.tokens = np.memmap(self.bin_path, self.dtype, "r") if self.bin_path.stat().st_size else np.empty(0, self.dtype)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens in each sequence, int32 [S], memory-mapped."""
        return self._mapped("<i4", HEADER.size, self.num_sequences)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Byte offset of each sequence in the .bin, int64 [S], memory-mapped."""
        return self._mapped("<i8", HEADER.size + 4 * self.num_sequences, self.num_sequences)

    @cached_property
    def document_index(self) -> np.ndarray:
        """Index of the first sequence of each document, then S: int64 [documents + 1], memory-mapped."""
        return self._mapped("<i8", HEADER.size + 12 * self.num_sequences, self.num_documents + 1)

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """Index of the first token of the documents ``first`` … ``last - 1``, then the end of the last.

        Reads only that part of the index. Returns int64 [last - first + 1], non-decreasing; ``UserError`` if the index is
        damaged, so that they decrease.
        """
        sequences = self.document_index[first : last + 1]
        starts = np.full(len(sequences), len(self.tokens), dtype=np.int64)
        inside = sequences < self.num_sequences
        if sequences.min(initial=0) >= 0:
            starts[inside] = self.offsets[sequences[inside]] // self.dtype.itemsize
        if (np.diff(starts, prepend=0) < 0).any() or sequences.min(initial=0) < 0:
            raise UserError(f"{self.index_path} is damaged between documents {first} and {last}: build the dataset again.")
        return starts

    def _read_header(self) -> tuple[int, int, int]:
        """Read type code, S and D."""
        with open(self.index_path, "rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise UserError(f"{self.index_path} is not a token index (no MMIDIDX header): build the dataset again.")
        _, version, code, num_sequences, num_entries = HEADER.unpack(header)
        if version != VERSION or code not in TYPE_CODES or not num_entries:
            found = f"{self.index_path}: version {version}, type code {code}, document index of {num_entries}"
            expected = "expected version 1, code 4 or 8, at least 1"
            cure = "Build the dataset again; import files of other programs with import_dataset."
            raise UserError(f"{found}; {expected}. {cure}")
        return code, num_sequences, num_entries

    def _expected_bin_bytes(self) -> int:
        if not self.num_sequences:
            return 0
        return int(self.offsets[-1]) + int(self.sizes[-1]) * self.dtype.itemsize

    def _mapped(self, dtype: str, offset: int, count: int) -> np.ndarray:
        """Map a part of the index, unless it is empty."""
        return np.asarray(np.memmap(self.index_path, dtype, "r", offset, (count,))) if count else np.empty(0, dtype)

    @staticmethod
    def _check_size(path: Path, expected: int) -> None:
        if path.stat().st_size != expected:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, the index says {expected:,}: build the dataset again."
            )


def _path(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{suffix}")
