"""Importing token files of other programs: Megatron-LM's, and fairseq's "mmap" files (see ``indexed_file.py``).

* ``</s>`` and the id ``end_of_document`` are removed from the end of each sequence (Megatron's end of document, fairseq's
  end of line), ``<s>`` from its start. Then one ``</s>`` is added to each document. Empty documents are left out.
* All other ids must be ids that the tokenizer gives for text: an id outside the vocabulary is an error, and so is ``<s>``,
  ``<pad>``, ``</s>`` or ``<mask>`` inside a sequence. ``<unk>`` is kept: fairseq writes it for unknown words.
"""

import glob
import os
import re
from pathlib import Path

import numpy as np

from mpnet_ds.data.storage.indexed_file import IndexedFile
from mpnet_ds.data.storage.manifest import TOKENIZER, DatasetManifest, ShardRecord
from mpnet_ds.data.storage.piece_counts import count_pieces, encode
from mpnet_ds.data.storage.provenance import Provenance
from mpnet_ds.data.storage.token_file import TokenFile, TokenFileWriter, token_dtype
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import PretrainingTokenizer

TOKENS_PER_SHARD = 1 << 28


def import_dataset(
    inputs: list[str],
    tokenizer: str | Path,
    output: str | Path,
    end_of_document: int | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    show_progress: bool = True,
    provenance: Provenance | None = None,
) -> DatasetManifest:
    """Import token files into the new dataset folder ``output`` and return its manifest.

    Memory: some tens of megabytes, the index of one shard, 8 bytes for each document of a fairseq file with blank lines,
    and the longest document.

    Args:
        inputs: paths with or without ``.idx`` or ``.bin``, or patterns; one dataset is made from all of them in this
            order, matches of a pattern in natural order (2 before 10).
        tokenizer: folder of the tokenizer that made the ids. The files do not say which one that was.
        end_of_document: id that ends a document in these files beside the tokenizer's own, that of ``</s>``.
    Raises:
        UserError: a file is missing, damaged or in another format, or holds an id that this tokenizer does not give.
    """
    text_tokenizer = PretrainingTokenizer.load(tokenizer)
    end_of_document = text_tokenizer.end_id if end_of_document is None else end_of_document
    if not 0 <= end_of_document < 1 << 31:
        raise UserError(f"--end_of_document is {end_of_document}; it must be an id, 0 or more.")
    ends = sorted({text_tokenizer.end_id, end_of_document})
    files = [IndexedFile(prefix, ends) for prefix in find_prefixes(inputs)]
    with new_folder(output) as folder:
        writer = _ShardWriter(folder, text_tokenizer, tokens_per_shard)
        total = sum(file.bin_path.stat().st_size for file in files)
        with Progress("Importing", total, unit="B", enabled=show_progress) as progress:
            for file in files:
                cleaner = _Cleaner(file, text_tokenizer, ends)
                for first, last in file.document_ranges():
                    writer.add_documents(*cleaner.documents(first, last))
                    progress.update(file.num_bytes(first, last))
        shards = writer.finish()
        if not shards:
            raise UserError(f"no document in {', '.join(inputs)}: there is nothing to import.")
        text_tokenizer.save(folder / TOKENIZER)
        options = {"end_of_document": end_of_document}
        sources, stated = [file.source for file in files], provenance or Provenance()
        counts = encode(writer.piece_counts)
        manifest = DatasetManifest.of(text_tokenizer, shards, sources, options, provenance=stated, piece_counts=counts)
        manifest.save(folder)
    return manifest


def find_prefixes(inputs: list[str]) -> list[str]:
    """Resolve ``inputs`` to paths without suffix; raise ``UserError`` where nothing is found or a file comes twice."""
    prefixes = []
    for name in inputs:
        prefix = re.sub(r"\.(idx|bin)$", "", name)
        found = [prefix] if Path(f"{prefix}.idx").is_file() else [path[:-4] for path in glob.glob(f"{prefix}.idx")]
        if not found:
            inside = sorted(path.stem for path in Path(name).glob("*.idx")) if Path(name).is_dir() else []
            hint = f"; the folder has {', '.join(inside[:5])}" if inside else ""
            raise UserError(f"{prefix}.idx: no such file. Give a pair of .idx and .bin without suffix, or a pattern{hint}.")
        prefixes += sorted(found, key=_natural_order)
    real = [os.path.realpath(prefix) for prefix in prefixes]
    for prefix, path in zip(prefixes, real, strict=True):
        if real.count(path) > 1:
            raise UserError(f"{prefix} is given twice: name each file once.")
    return prefixes


def _natural_order(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


class _Cleaner:
    """Converts the ids of a file to documents in our form: no special id except one ``</s>`` at the end."""

    def __init__(self, file: IndexedFile, tokenizer: PretrainingTokenizer, ends: list[int]):
        self.file, self.tokenizer, self.ends = file, tokenizer, ends

    def documents(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Convert the documents ``first`` … ``last - 1``, without empty sequences and empty documents.

        Returns:
            ids, sizes and lengths as in ``TokenFileWriter.add_documents``.
        """
        starts = self.file.document_starts(first, last)
        begin, end = (int(number) for number in self.file.token_starts(starts[[0, -1]]))
        ids = np.asarray(self.file.tokens[begin:end])
        sizes = self.file.sizes[starts[0] : starts[-1]].astype(np.int64)
        kept = self._kept(ids, sizes)
        self._check(ids, kept, begin)
        sizes = np.add.reduceat(np.append(kept, False), np.cumsum(sizes) - sizes, dtype=np.int64) * (sizes > 0)
        document_of = np.repeat(np.arange(last - first), np.diff(starts))[sizes > 0]
        return _add_ends(ids[kept].astype(np.int32), sizes[sizes > 0], document_of, self.tokenizer.end_id)

    def _kept(self, ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Which ids to keep, bool [ids]: not end ids at the end of a sequence, and not ``<s>`` at its start."""
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
        if self.tokenizer.begin_id is not None:
            kept[firsts[ids[firsts] == self.tokenizer.begin_id]] = False
        return kept

    def _check(self, ids: np.ndarray, kept: np.ndarray, begin: int) -> None:
        """Raise ``UserError`` for the first kept id that the tokenizer does not give for text."""
        outside = (ids < 0) | (ids >= self.tokenizer.vocab_size)
        of_layout = [*self.tokenizer.frame, self.tokenizer.mask_id]
        special = np.isin(ids, [*(number for number in of_layout if number is not None), *self.ends])
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
            end = "If it ends documents, pass it as --end_of_document."
            raise UserError(f"{where} is outside the vocabulary of {size} ids: {advice} {end}")
        name = self.tokenizer.pieces[found]
        raise UserError(f"{where} is '{name}', which is never the id of text, inside a sequence: {advice}")


def _add_ends(
    ids: np.ndarray, sizes: np.ndarray, document_of: np.ndarray, end_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add ``</s>`` to each document.

    Args:
        ids: int [tokens], all sequences concatenated.
        sizes: int [sequences], none 0.
        document_of: int [sequences], non-decreasing: index of the document.
    Returns:
        ids, sizes and lengths as in ``TokenFileWriter.add_documents``.
    """
    is_last = np.append(document_of[1:] != document_of[:-1], True)[: len(sizes)]
    ids = np.insert(ids, np.cumsum(sizes)[is_last], end_id)
    return ids, sizes + is_last, np.diff(np.flatnonzero(is_last), prepend=-1)


class _ShardWriter:
    """Writes documents into shards of about ``tokens_per_shard``."""

    def __init__(self, folder: Path, tokenizer: PretrainingTokenizer, tokens_per_shard: int):
        self.folder, self.tokenizer, self.tokens_per_shard = folder, tokenizer, tokens_per_shard
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.piece_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)  # of closed shards
        self._shards: list[ShardRecord] = []
        self._writer: TokenFileWriter | None = None

    def add_documents(self, ids: np.ndarray, sizes: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents; arguments as for ``TokenFileWriter.add_documents``."""
        if not len(lengths):
            return
        if self._writer is None:
            self._writer = TokenFileWriter(self.folder / f"shard-{len(self._shards):05d}", self.dtype)
        self._writer.add_documents(ids, sizes, lengths)
        if self._writer.num_tokens >= self.tokens_per_shard:
            self._close_shard()

    def finish(self) -> list[ShardRecord]:
        """Close the last shard and return the records of all."""
        if self._writer is not None:
            self._close_shard()
        return self._shards

    def _close_shard(self) -> None:
        self._writer.close()
        shard = TokenFile(self._writer.prefix)
        self._shards.append(ShardRecord.of(shard, self.tokenizer))
        self.piece_counts += count_pieces(shard, self.tokenizer.vocab_size)
        self._writer = None
