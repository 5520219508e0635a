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
import shutil
import struct
from pathlib import Path

import numpy as np

from mpnet_ds.errors import UserError
from mpnet_ds.files import BLOCK, TEMPORARY

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else int32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


def index_bytes(files: int, sequences: int, documents: int) -> int:
    """Size of some .idx files that hold so much together."""
    return files * (HEADER.size + 8) + 12 * sequences + 8 * documents


class TokenFileWriter:
    """Writes one shard. Both files appear under their names in ``close`` only, the .idx last; until then, and after
    ``discard``, there are but temporary files. Memory does not grow with the shard."""

    def __init__(self, prefix: str | Path, dtype: np.dtype):
        self.prefix, self.dtype = Path(prefix), np.dtype(dtype)
        self.num_tokens = self.num_sequences = self.num_documents = 0
        self._ids, self._index, self._documents = (
            open(self._temporary(part), "w+b") for part in ("bin", "idx", "documents")
        )
        self._index.write(bytes(HEADER.size))  # then the sizes, as they come; close() adds the rest
        self._documents.write(np.zeros(1, "<i8").tobytes())

    def add_document(self, sequences: list[np.ndarray]) -> None:
        """Appends one document; empty sequences are kept out by the caller."""
        sizes = np.array([len(ids) for ids in sequences])
        self.add_documents(np.concatenate([np.asarray(ids) for ids in sequences]), sizes, np.array([len(sequences)]))

    def add_documents(self, ids: np.ndarray, sizes: np.ndarray, lengths: np.ndarray) -> None:
        """Appends several documents.

        Args:
            ids: int [tokens] of all of them, end to end.
            sizes: int [sequences], tokens in each.
            lengths: int [documents], sequences in each.
        """
        self._ids.write(np.ascontiguousarray(ids, self.dtype))
        self._index.write(np.ascontiguousarray(sizes, "<i4"))
        self._documents.write(np.ascontiguousarray(self.num_sequences + np.cumsum(lengths), "<i8"))
        self.num_tokens += len(ids)
        self.num_sequences += len(sizes)
        self.num_documents += len(lengths)

    def close(self) -> None:
        """Finishes both files; they are on disk when it returns."""
        self._append_offsets()
        self._documents.seek(0)
        shutil.copyfileobj(self._documents, self._index)
        code = next(code for code, dtype in TYPE_CODES.items() if dtype == self.dtype)
        self._index.seek(0)
        self._index.write(HEADER.pack(MAGIC, VERSION, code, self.num_sequences, self.num_documents + 1))
        self._documents.close()
        for file, part in ((self._ids, "bin"), (self._index, "idx")):
            _flush_to_disk(file)
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
        """Removes what was written."""
        for file, part in ((self._ids, "bin"), (self._index, "idx"), (self._documents, "documents")):
            file.close()
            self._temporary(part).unlink(missing_ok=True)

    def _temporary(self, part: str) -> Path:
        return _path(self.prefix, f"{part}.{os.getpid()}{TEMPORARY}")


class TokenFile:
    """A shard opened for reading.

    Attributes:
        tokens: all ids, memory-mapped, [tokens].
        sizes: int32 [S]; document_index: int64 [D]; both memory-mapped.
    """

    def __init__(self, prefix: str | Path):
        index_path, bin_path = Path(prefix).with_suffix(".idx"), Path(prefix).with_suffix(".bin")
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
        offsets = np.memmap(index_path, "<i8", "r", offset=offsets_at, shape=(num_sequences,)) if num_sequences else []
        self._check_size(bin_path, int(offsets[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if num_sequences else 0)
        at += 12 * num_sequences
        self.document_index = np.memmap(index_path, "<i8", "r", offset=at, shape=(num_entries,))
        self.tokens = np.memmap(bin_path, self.dtype, "r") if bin_path.stat().st_size else np.empty(0, self.dtype)

    @staticmethod
    def _check_size(path: Path, expected: int) -> None:
        if path.stat().st_size != expected:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, the index says {expected:,}: build the dataset again."
            )


def _path(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{suffix}")


def _flush_to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
