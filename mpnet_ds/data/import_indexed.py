"""Makes a dataset of token files that other programs wrote: Megatron-LM's, and fairseq's "mmap" files.

Both come as a pair PREFIX.idx and PREFIX.bin; the .bin holds ids end to end. The index, little-endian:

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

The total tells them apart, and always: S stands at the same place in both, and for one S the second is smaller than any
of the first. What has neither size is refused. (A Megatron file cut off at exactly 26 + 12 S bytes passes for fairseq's,
but then its offsets are no longer sums of its sizes.) Type codes: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16,
for fairseq also 9 uint32 and 10 uint64; 6 and 7 are floating-point numbers. Sources: Megatron-LM,
``core/datasets/indexed_dataset.py``; fairseq, ``data/indexed_dataset.py``.

What becomes of the ids:

* A document is what Megatron's document index says. fairseq has none: there a blank line, stored as ``</s>`` alone or
  as nothing, ends a document; a file without any blank line has a document in each line.
* ``</s>``, and the id given as ``end_of_document``, are dropped at the end of each sequence (Megatron's end of document,
  fairseq's end of line), ``<s>`` at its beginning. Then each document gets its one ``</s>``. Empty ones are left out.
* Everything else must be what the tokenizer can give for text: an id outside the vocabulary is an error, and so is ``<s>``,
  ``<pad>``, ``</s>`` or ``<mask>`` in the middle. ``<unk>`` stays: fairseq writes it for what its dictionary lacks.
"""

import glob
import itertools
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mpnet_ds
from mpnet_ds.data.build import TOKENIZER
from mpnet_ds.data.manifest import DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.data.token_file import MAGIC, VERSION, TokenFileWriter, token_dtype
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PAD_ID, PretrainingTokenizer

TOKENS_PER_SHARD = 1 << 28
TOKENS_AT_ONCE = 1 << 20
DOCUMENTS_AT_ONCE = 1 << 16

START = struct.Struct("<9sQBQ")
INTEGERS = {code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}
TYPE_CODES = {"megatron": INTEGERS, "fairseq": INTEGERS | {9: np.dtype("<u4"), 10: np.dtype("<u8")}}
OLD_FAIRSEQ_MAGIC = b"TNTIDX\x00\x00"


def import_dataset(
    inputs: list[str],
    tokenizer: str | Path,
    output: str | Path,
    end_of_document: int = EOS_ID,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    show_progress: bool = True,
) -> DatasetManifest:
    """Imports token files into the new dataset folder ``output`` and returns its manifest.

    Memory: some tens of megabytes, the index of one shard, 8 bytes for each document of a fairseq file with blank lines,
    and the longest document.

    Args:
        inputs: prefixes, with or without ``.idx`` or ``.bin``, or patterns of them; one dataset is made of all, in this
            order, and of what a pattern finds in the order of names (2 before 10).
        tokenizer: folder of the tokenizer that made the ids. The files do not say which that was.
        end_of_document: the id that ends a document in them, where it is not that of ``</s>``.
    Raises:
        UserError: a file is missing, damaged or of another kind, or holds an id that this tokenizer does not give.
    """
    text_tokenizer = PretrainingTokenizer.load(tokenizer)
    files = [IndexedFile(prefix, end_of_document) for prefix in find_prefixes(inputs)]
    with new_folder(output) as folder:
        writer = _ShardWriter(folder, text_tokenizer.vocab_size, tokens_per_shard)
        total = sum(file.bin_path.stat().st_size for file in files)
        with Progress("Importing", total, unit="B", enabled=show_progress) as progress:
            for file in files:
                cleaner = _Cleaner(file, text_tokenizer, end_of_document)
                for first, last in file.parts():
                    for document in cleaner.documents(first, last):
                        writer.add_document(document)
                    progress.update(file.num_bytes(first, last))
        shards = writer.finish()
        if not shards:
            raise UserError(f"no document in {', '.join(inputs)}: nothing to import.")
        text_tokenizer.save(folder / TOKENIZER)
        manifest = DatasetManifest(
            dtype=token_dtype(text_tokenizer.vocab_size).name,
            vocab_size=text_tokenizer.vocab_size,
            special_ids={"bos": BOS_ID, "pad": PAD_ID, "eos": EOS_ID, "mask": text_tokenizer.mask_id},
            tokenizer_fingerprint=text_tokenizer.fingerprint,
            documents=sum(shard.documents for shard in shards),
            sequences=sum(shard.sequences for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            shards=shards,
            sources=[file.source for file in files],
            command=" ".join(sys.argv),
            tool_version=mpnet_ds.__version__,
            options={"end_of_document": end_of_document},
        )
        manifest.save(folder)
    return manifest


def find_prefixes(inputs: list[str]) -> list[str]:
    """The prefixes that ``inputs`` name, each once; raises ``UserError`` where nothing is found."""
    prefixes = []
    for name in inputs:
        prefix = re.sub(r"\.(idx|bin)$", "", name)
        found = [prefix] if Path(f"{prefix}.idx").is_file() else [path[:-4] for path in glob.glob(f"{prefix}.idx")]
        if not found:
            inside = sorted(path.stem for path in Path(name).glob("*.idx")) if Path(name).is_dir() else []
            hint = f"; the folder has {', '.join(inside[:5])}" if inside else ""
            raise UserError(f"{prefix}.idx: no such file. Name a pair of .idx and .bin without ending, or a pattern{hint}.")
        prefixes += sorted(found, key=_natural_order)
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise UserError(f"{prefix} is named twice: name each file once.")
    return prefixes


def _natural_order(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


class IndexedFile:
    """A Megatron or fairseq pair of files, opened for reading; see the top of this file.

    Attributes:
        kind: ``megatron`` or ``fairseq``.
        tokens: all ids, memory-mapped, in the file's own type.
        sizes: int32 [S]; offsets: int64 [S]; both memory-mapped.
        num_documents: empty ones included.
    """

    def __init__(self, prefix: str, end_of_document: int = EOS_ID):
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
            self._starts = self._starts_after_blank_lines(end_of_document)
        self.num_documents = len(self._starts) - 1 if self._starts is not None else self.num_sequences

    @property
    def source(self) -> dict:
        """An entry of ``sources`` in a manifest."""
        documents = "document index" if self.kind == "megatron" else "blank lines"
        return {
            "path": str(self.bin_path),
            "kind": self.kind,
            "documents_by": documents if self._starts is not None else "lines",
            "num_bytes": self.bin_path.stat().st_size + self.index_path.stat().st_size,
            "modified": self.bin_path.stat().st_mtime,
        }

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """First sequence of the documents ``first`` … ``last - 1``, and where the last of them ends."""
        return np.arange(first, last + 1) if self._starts is None else np.asarray(self._starts[first : last + 1])

    def token_starts(self, sequences: np.ndarray) -> np.ndarray:
        """Number of the first token of each of these sequences; S is where the file ends."""
        starts = np.full(len(sequences), len(self.tokens), dtype=np.int64)
        inside = sequences < self.num_sequences
        starts[inside] = self.offsets[sequences[inside]] // self.dtype.itemsize
        return starts

    def parts(self) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of documents, of ``TOKENS_AT_ONCE`` at most where not one document alone has more."""
        first = 0
        while first < self.num_documents:
            last = min(first + DOCUMENTS_AT_ONCE, self.num_documents)
            starts = self.token_starts(self.document_starts(first, last))
            last = first + max(1, int(np.searchsorted(starts, starts[0] + TOKENS_AT_ONCE, side="right")) - 1)
            yield first, last
            first = last

    def num_bytes(self, first: int, last: int) -> int:
        begin, end = self.token_starts(self.document_starts(first, last)[[0, -1]])
        return int(end - begin) * self.dtype.itemsize

    def _read_header(self) -> tuple[str, np.dtype, int, int]:
        """Kind, type of an id, S, D."""
        size = self.index_path.stat().st_size
        with open(self.index_path, "rb") as file:
            header = file.read(START.size + 8)
        if header.startswith(OLD_FAIRSEQ_MAGIC):
            cure = "binarise the text again with fairseq-preprocess --dataset-impl mmap"
            raise UserError(f"{self.index_path} is of fairseq's older kind (TNTIDX): {cure}.")
        if len(header) < START.size or not header.startswith(MAGIC):
            raise UserError(f"{self.index_path} is no index of Megatron or fairseq (no MMIDIDX header).")
        _, version, code, num_sequences = START.unpack_from(header)
        if version != VERSION:
            raise UserError(f"{self.index_path}: version {version} is unknown; expected 1.")
        num_entries = int.from_bytes(header[START.size :], "little")
        sizes = {
            "fairseq": START.size + 12 * num_sequences,
            "megatron": START.size + 8 + 12 * num_sequences + 8 * num_entries,
        }
        kind = next((kind for kind, expected in sizes.items() if size == expected), None)
        if kind is None:
            found = f"{self.index_path} has {size:,} bytes for {num_sequences:,} sequences"
            expected = f"{sizes['megatron']:,} if Megatron's, {sizes['fairseq']:,} if fairseq's"
            raise UserError(f"{found}, expected {expected}: it is damaged, or of another kind (Megatron's multimodal).")
        if code not in TYPE_CODES[kind]:
            known = ", ".join(f"{number} ({dtype.name})" for number, dtype in TYPE_CODES[kind].items())
            raise UserError(f"{self.index_path}: type code {code} is none of whole numbers; expected {known}.")
        return kind, TYPE_CODES[kind][code], num_sequences, num_entries

    def _array(self, dtype: str, offset: int, count: int) -> np.ndarray:
        return np.asarray(self._index)[offset : offset + np.dtype(dtype).itemsize * count].view(dtype)

    def _check_offsets(self) -> None:
        """Each sequence begins where the one before ends, the first at 0, and the .bin ends with the last."""
        end = 0
        for begin in range(0, self.num_sequences, DOCUMENTS_AT_ONCE):
            sizes = self.sizes[begin : begin + DOCUMENTS_AT_ONCE].astype(np.int64)
            ends = end + np.cumsum(sizes * self.dtype.itemsize)
            starts = np.concatenate([[end], ends[:-1]])
            wrong = np.flatnonzero((sizes < 0) | (self.offsets[begin : begin + DOCUMENTS_AT_ONCE] != starts))
            if len(wrong):
                where = f"{self.index_path}: sequence {begin + wrong[0]}"
                raise UserError(f"{where} does not begin where the one before it ends: damaged, or not written in order.")
            end = int(ends[-1])
        if len(self.tokens) != end:
            raise UserError(f"{self.bin_path} has {len(self.tokens):,} bytes, its index says {end:,}: it is damaged.")

    def _check_document_index(self) -> None:
        starts = self._starts
        if not len(starts) or (starts[0], starts[-1]) != (0, self.num_sequences) or (np.diff(starts) < 0).any():
            found = f"{self.index_path}: the document index does not rise from 0 to {self.num_sequences:,}"
            raise UserError(f"{found}: it is damaged, or was merged by a tool that forgets documents.")

    def _starts_after_blank_lines(self, end_of_document: int) -> np.ndarray | None:
        """First sequence of each document, and S; None where no line is blank, so that each is a document."""
        blank = [np.empty(0, dtype=np.int64)]
        for begin in range(0, self.num_sequences, DOCUMENTS_AT_ONCE):
            sizes = self.sizes[begin : begin + DOCUMENTS_AT_ONCE]
            single = begin + np.flatnonzero(sizes == 1)
            ids = self.tokens[self.offsets[single] // self.dtype.itemsize]
            blank += [begin + np.flatnonzero(sizes == 0), single[(ids == EOS_ID) | (ids == end_of_document)]]
        blank = np.concatenate(blank)
        if not len(blank):
            return None
        return np.unique(np.concatenate([[0], blank, [self.num_sequences]]))


class _Cleaner:
    """Turns a file's ids into documents as they are stored here: no special id but one ``</s>`` at the end."""

    def __init__(self, file: IndexedFile, tokenizer: PretrainingTokenizer, end_of_document: int):
        self.file, self.tokenizer = file, tokenizer
        self.ends = sorted({EOS_ID, end_of_document})

    def documents(self, first: int, last: int) -> Iterator[list[np.ndarray]]:
        """The sequences of each document of a range, without empty ones; a document without ids is left out."""
        starts = self.file.document_starts(first, last)
        begin, end = (int(number) for number in self.file.token_starts(starts[[0, -1]]))
        ids = np.asarray(self.file.tokens[begin:end])
        sizes = self.file.sizes[starts[0] : starts[-1]].astype(np.int64)
        kept = self._kept(ids, sizes)
        self._check(ids, kept, begin)
        sizes = np.add.reduceat(np.append(kept, False), np.cumsum(sizes) - sizes, dtype=np.int64) * (sizes > 0)
        document_of = np.repeat(np.arange(last - first), np.diff(starts))[sizes > 0]
        return _with_ends(ids[kept].astype(np.int32), sizes[sizes > 0], document_of)

    def _kept(self, ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """bool [ids]: False for end ids at the end of a sequence and for ``<s>`` at its beginning."""
        kept = np.ones(len(ids), dtype=bool)
        stops = np.cumsum(sizes)
        begins = stops - sizes
        ending = np.arange(len(sizes))
        while len(ending):
            ending = ending[stops[ending] > begins[ending]]
            ending = ending[np.isin(ids[stops[ending] - 1], self.ends)]
            stops[ending] -= 1
            kept[stops[ending]] = False
        firsts = begins[stops > begins]
        kept[firsts[ids[firsts] == BOS_ID]] = False
        return kept

    def _check(self, ids: np.ndarray, kept: np.ndarray, begin: int) -> None:
        """Raises ``UserError`` at the first kept id that text does not give."""
        outside = (ids < 0) | (ids >= self.tokenizer.vocab_size)
        special = np.isin(ids, [BOS_ID, PAD_ID, self.tokenizer.mask_id, *self.ends])
        wrong = np.flatnonzero((outside | special) & kept)
        if not len(wrong):
            return
        found = int(ids[wrong[0]])
        byte = (begin + int(wrong[0])) * self.file.dtype.itemsize
        sequence = int(np.searchsorted(self.file.offsets, byte, side="right")) - 1
        where = f"{self.file.bin_path}: byte {byte:,}, sequence {sequence}: id {found}"
        advice = f"were the ids made with {self.tokenizer.origin}?"
        if outside[wrong[0]]:
            size = f"{self.tokenizer.vocab_size:,}"
            end = "An id that ends documents is named with --end_of_document."
            raise UserError(f"{where} is outside the vocabulary of {size} ids: {advice} {end}")
        name = self.tokenizer.pieces[found]
        raise UserError(f"{where} is '{name}', which no text gives, in the middle of a sequence: {advice}")


def _with_ends(ids: np.ndarray, sizes: np.ndarray, document_of: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Adds ``</s>`` to each document and cuts the ids into documents of sequences.

    Args:
        ids: of all sequences, end to end.
        sizes: ids in each sequence, none 0; document_of: number of its document, rising.
    """
    if not len(sizes):
        return
    is_last = np.append(document_of[1:] != document_of[:-1], True)
    ids = np.insert(ids, np.cumsum(sizes)[is_last], EOS_ID)
    stops = np.cumsum(sizes + is_last).tolist()
    sequences = [ids[begin:stop] for begin, stop in itertools.pairwise([0, *stops])]
    for begin, end in itertools.pairwise([0, *(np.flatnonzero(is_last) + 1).tolist()]):
        yield sequences[begin:end]


class _ShardWriter:
    """Writes documents into shards, a new one after so many tokens."""

    def __init__(self, folder: Path, vocab_size: int, tokens_per_shard: int):
        self.folder, self.dtype, self.tokens_per_shard = folder, token_dtype(vocab_size), tokens_per_shard
        self._shards: list[ShardRecord] = []
        self._writer: TokenFileWriter | None = None
        self._sequences = self._documents = self._tokens = 0

    def add_document(self, sequences: list[np.ndarray]) -> None:
        if self._writer is None:
            self._writer = TokenFileWriter(self.folder / self._name, self.dtype)
        self._writer.add_document(sequences)
        self._documents += 1
        self._sequences += len(sequences)
        self._tokens += sum(len(ids) for ids in sequences)
        if self._tokens >= self.tokens_per_shard:
            self._close_shard()

    def finish(self) -> list[ShardRecord]:
        if self._writer is not None:
            self._close_shard()
        return self._shards

    @property
    def _name(self) -> str:
        return f"shard-{len(self._shards):05d}"

    def _close_shard(self) -> None:
        self._writer.close()
        files = {suffix: FileRecord.of(self.folder / f"{self._name}.{suffix}") for suffix in ("bin", "idx")}
        self._shards.append(ShardRecord(self._name, self._sequences, self._documents, self._tokens, files))
        self._writer, self._sequences, self._documents, self._tokens = None, 0, 0, 0
