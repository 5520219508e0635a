"""Builds a dataset: corpus → ids → token shards, with the manifest last.

    documents ──► holdout? by a hash of the text ──► tokenise in batches ──► shard files, a new one after so many tokens

Everything is written into ``OUT.partial``; when all of it is on disk the folder takes its final name in one step.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import mpnet_ds
from mpnet_ds.data.corpus import Corpus, Document
from mpnet_ds.data.manifest import DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.data.token_file import TokenFileWriter, token_dtype
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import EOS_ID, PretrainingTokenizer, train_tokenizer

HOLDOUT = "holdout"
TOKENIZER = "tokenizer"
TOKENS_PER_SHARD = 1 << 28
BATCH_BYTES = 1 << 20


def build_dataset(
    inputs: list[str],
    tokenizer: str | Path,
    output: str | Path,
    workers: int | None = None,
    text_field: str = "text",
    holdout: float = 0.0,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    show_progress: bool = True,
) -> DatasetManifest:
    """Builds the dataset folder ``output`` and returns its manifest.

    Args:
        inputs: files, folders, or ``builtin-sample``; see ``corpus.py``.
        tokenizer: folder of the tokenizer; a copy of it goes into the dataset.
        workers: threads that tokenise; all cores by default.
        holdout: share of the documents that go to ``output/holdout``. A document's side follows from its text alone.
    Raises:
        UserError: bad input, or ``output`` exists.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"--holdout {holdout} must be at least 0 and below 1: 0.01 keeps one document in a hundred aside.")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} must be at least 1.")
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)  # read by the tokenizers library at its first batch
    text_tokenizer = PretrainingTokenizer.load(tokenizer)
    corpus = Corpus(inputs, text_field)
    options = {"holdout": holdout, "text_field": text_field}
    with new_folder(output) as folder:
        train = _DatasetWriter(folder, text_tokenizer, tokens_per_shard)
        evaluation = _DatasetWriter(folder / HOLDOUT, text_tokenizer, tokens_per_shard) if holdout else None
        with Progress("Building", corpus.num_bytes, unit="B", enabled=show_progress) as progress:
            for batch in _batches(corpus):
                _write_batch(batch, text_tokenizer, train, evaluation, holdout)
                progress.update(sum(document.num_bytes for document in batch))
        if evaluation is not None and evaluation.finish(corpus, options).documents == 0:
            raise UserError(f"--holdout {holdout} left no document for evaluation: take a larger share or more text.")
        manifest = train.finish(corpus, options)
        if manifest.documents == 0:
            raise UserError(f"no document for training in {', '.join(inputs)}: nothing to build.")
    return manifest


def train_tokenizer_on(
    inputs: list[str], vocab_size: int, output: str | Path, text_field: str = "text", lower_case: bool = True
) -> PretrainingTokenizer:
    """Learns a tokenizer from a corpus and saves it to the new folder ``output``."""
    corpus = Corpus(inputs, text_field)
    with new_folder(output) as folder:
        with Progress("Learning the vocabulary", 2 * corpus.num_bytes, unit="B") as progress:
            tokenizer = train_tokenizer(_Texts(corpus, progress), vocab_size, lower_case)
        tokenizer.save(folder)
    return tokenizer


class _Texts:
    """The documents' texts, as often as one likes."""

    def __init__(self, corpus: Corpus, progress: Progress):
        self.corpus, self.progress = corpus, progress

    def __iter__(self) -> Iterator[str]:
        for document in self.corpus:
            yield document.text
            self.progress.update(document.num_bytes)


def holdout_fraction_of(document_text: str) -> float:
    """Where a document falls in [0, 1): it is held out if this is below ``holdout``. A pure function of the text."""
    digest = hashlib.sha256(document_text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class _DatasetWriter:
    """One dataset folder while it is written: rolls over to the next shard when one is full."""

    def __init__(self, folder: Path, tokenizer: PretrainingTokenizer, tokens_per_shard: int):
        self.folder, self.tokenizer, self.tokens_per_shard = folder, tokenizer, tokens_per_shard
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.shards: list[ShardRecord] = []
        self._shard: TokenFileWriter | None = None
        folder.mkdir(exist_ok=True)

    def add_document(self, sequences) -> None:
        if self._shard is None:
            self._shard = TokenFileWriter(self.folder / f"shard-{len(self.shards):05d}", self.dtype)
        self._shard.add_document(sequences)
        if self._shard.num_tokens >= self.tokens_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        shard, self._shard = self._shard, None
        shard.close()
        files = {suffix: FileRecord.of(shard.prefix.with_suffix(f".{suffix}")) for suffix in ("bin", "idx")}
        counts = (shard.num_sequences, shard.num_documents, shard.num_tokens)
        self.shards.append(ShardRecord(shard.prefix.name, *counts, files))

    def finish(self, corpus: Corpus, options: dict) -> DatasetManifest:
        if self._shard is not None:
            self._close_shard()
        self.tokenizer.save(self.folder / TOKENIZER)
        ids = {"bos": 0, "pad": 1, "eos": 2, "mask": self.tokenizer.mask_id}
        manifest = DatasetManifest(
            dtype=self.dtype.name,
            vocab_size=self.tokenizer.vocab_size,
            special_ids=ids,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            documents=sum(shard.documents for shard in self.shards),
            sequences=sum(shard.sequences for shard in self.shards),
            tokens=sum(shard.tokens for shard in self.shards),
            shards=self.shards,
            sources=[asdict(source) for source in corpus.sources],
            command=" ".join(sys.argv),
            tool_version=mpnet_ds.__version__,
            options=options,
        )
        manifest.save(self.folder)
        return manifest


def _batches(corpus: Corpus) -> Iterator[list[Document]]:
    """Lists of documents of about ``BATCH_BYTES``, so that the tokenizer's threads have enough to share."""
    batch: list[Document] = []
    size = 0
    for document in corpus:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_batch(batch, tokenizer, train, evaluation, holdout) -> None:
    encoded = iter(tokenizer.encode([text for document in batch for text in document.sequences]))
    for document in batch:
        sequences = [ids for ids in (next(encoded) for _ in document.sequences) if len(ids)]
        if not sequences:
            continue  # only control characters: no token
        sequences[-1] = [*sequences[-1], EOS_ID]
        held_out = evaluation is not None and holdout_fraction_of(document.text) < holdout
        (evaluation if held_out else train).add_document(sequences)
