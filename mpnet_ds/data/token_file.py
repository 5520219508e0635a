"""Token shards in Megatron's indexed format: ``shard-00000.bin`` and ``shard-00000.idx``.

The .bin holds the ids of all sequences end to end and nothing else. The .idx, little-endian:

    offset  bytes    content
    0       9        magic "MMIDIDX\\0\\0"
    9       8        version, uint64 = 1
    17      1        type code of an id: 8 = uint16, 4 = int32
    18      8        S, number of sequences, uint64
    26      8        D, length of the document index = number of documents + 1, uint64
    34      4 * S    tokens in each sequence, int32
    ...     8 * S    byte offset of each sequence in the .bin, int64
    ...     8 * D    document index, int64: number of the first sequence of each document, then S

So the file has 34 + 12 S + 8 D bytes. Example: two documents, of sequences of 3 and 2 ids and of one sequence of
4 ids, in uint16: S = 3, D = 3, sizes 3 2 4, offsets 0 6 10, document index 0 2 3; .idx 94 bytes, .bin 18 bytes.

Megatron-LM, gpt-neox and NeMo read these files. Source of the layout: Megatron-LM, ``indexed_dataset.py``.
Opening maps the files and reads the header only.
"""

import os
import struct
from array import array
from pathlib import Path

import numpy as np

from mpnet_ds.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else int32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


class TokenFileWriter:
    """Writes one shard document by document. The .idx appears only in ``close``; memory grows by
    4 bytes a sequence and 8 a document."""

    def __init__(self, prefix: str | Path, dtype: np.dtype):
        self.prefix, self.dtype = Path(prefix), np.dtype(dtype)
        self._bin = open(self.prefix.with_suffix(".bin"), "wb")
        self._sizes = array("i")
        self._documents = array("q", [0])
        self.num_tokens = 0

    @property
    def num_sequences(self) -> int:
        return len(self._sizes)

    @property
    def num_documents(self) -> int:
        return len(self._documents) - 1

    def add_document(self, sequences: list[np.ndarray]) -> None:
        """Appends one document; empty sequences are kept out by the caller."""
        for ids in sequences:
            self._bin.write(np.asarray(ids).astype(self.dtype).tobytes())
            self._sizes.append(len(ids))
            self.num_tokens += len(ids)
        self._documents.append(len(self._sizes))

    def close(self) -> None:
        """Writes the index; both files are on disk when it returns."""
        _flush_to_disk(self._bin)
        sizes = np.array(self._sizes, dtype="<i4")
        offsets = np.zeros(len(sizes), dtype="<i8")
        np.cumsum(sizes[:-1], dtype=np.int64, out=offsets[1:])
        code = next(code for code, dtype in TYPE_CODES.items() if dtype == self.dtype)
        with open(self.prefix.with_suffix(".idx"), "wb") as index:
            index.write(HEADER.pack(MAGIC, VERSION, code, len(sizes), len(self._documents)))
            index.write(sizes.tobytes())
            index.write((offsets * self.dtype.itemsize).tobytes())
            index.write(np.array(self._documents, dtype="<i8").tobytes())
            _flush_to_disk(index)

    def abandon(self) -> None:
        """Closes the half-written .bin without an index."""
        self._bin.close()


class TokenFile:
    """A shard opened for reading.

    Attributes:
        tokens: all ids, memory-mapped, [tokens].
        sizes: int32 [S]; offsets: int64 [S], in bytes; document_index: int64 [D]; all memory-mapped.
        index_path, bin_path: the two files.
    """

    def __init__(self, prefix: str | Path):
        index_path, bin_path = Path(prefix).with_suffix(".idx"), Path(prefix).with_suffix(".bin")
        self.index_path, self.bin_path = index_path, bin_path
        for path in (index_path, bin_path):
            if not path.is_file():
                raise UserError(f"{path} is missing: build the dataset again.")
        with open(index_path, "rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise UserError(f"{index_path} is not an index of tokens (no MMIDIDX header).")
        _, version, code, num_sequences, num_entries = HEADER.unpack(header)
        if version != VERSION or code not in TYPE_CODES:
            raise UserError(
                f"{index_path}: version {version} with type code {code} is unknown; expected version 1, code 4 or 8."
            )
        self._check_size(index_path, HEADER.size + 12 * num_sequences + 8 * num_entries)
        self.dtype = TYPE_CODES[code]
        at = HEADER.size
        self.sizes = (
            np.memmap(index_path, "<i4", "r", offset=at, shape=(num_sequences,)) if num_sequences else np.empty(0, "<i4")
        )
        offsets_at = at + 4 * num_sequences
        self.offsets = (
            np.memmap(index_path, "<i8", "r", offset=offsets_at, shape=(num_sequences,))
            if num_sequences
            else np.empty(0, "<i8")
        )
        self._check_size(bin_path, int(self.offsets[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if num_sequences else 0)
        at += 12 * num_sequences
        self.document_index = np.memmap(index_path, "<i8", "r", offset=at, shape=(num_entries,))
        self.tokens = np.memmap(bin_path, self.dtype, "r") if bin_path.stat().st_size else np.empty(0, self.dtype)

    @staticmethod
    def _check_size(path: Path, expected: int) -> None:
        if path.stat().st_size != expected:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, the index says {expected:,}: build the dataset again."
            )


def _flush_to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
