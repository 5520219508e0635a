"""What a build will come to, from a sample of the corpus: documents, tokens, disk space, time."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from mpnet_ds.data.builder.plan import BuildOptions, cut
from mpnet_ds.data.builder.shard_builder import Job, ShardBuilder
from mpnet_ds.data.storage.token_file import index_bytes
from mpnet_ds.data.text.corpus import Corpus
from mpnet_ds.data.text.source import STANDARD_INPUT, Faults, ReadOptions
from mpnet_ds.errors import UserError
from mpnet_ds.machine import nearest_existing_folder
from mpnet_ds.progress import Progress, show_duration

SAMPLED_CHUNKS = 64
SAMPLED_BYTES = 1 << 20
"""At the beginning of each, at most about."""


@dataclass(frozen=True)
class Estimate:
    """Numbers of a whole build, extrapolated by bytes."""

    sources: int
    shards: int
    num_bytes: int
    documents: int
    sequences: int
    tokens: int
    disk_bytes: int
    free_bytes: int
    seconds: float
    workers: int
    sampled_share: float
    """Of the bytes."""
    is_exact: bool
    """All of the text was looked at, and no more: the numbers are those of the build, but for the time."""
    is_fast: bool
    faulty_documents: int
    """Among those of the sample."""

    def __str__(self) -> str:
        about = "" if self.is_exact else "about "
        encoder = "" if self.is_fast else " (this tokenizer is not WordPiece: the library's encoder, several times slower)"
        room = "" if self.disk_bytes <= self.free_bytes else ": NOT ENOUGH"
        lines = [
            f"sources    {self.sources:,} with {self.num_bytes:,} bytes, for {self.shards:,} shards",
            f"documents  {about}{self.documents:,}, with {about}{self.sequences:,} sequences",
            f"tokens     {about}{self.tokens:,}",
            f"disk       {about}{self.disk_bytes / 1e6:,.0f} MB needed, {self.free_bytes / 1e6:,.0f} MB free{room}",
            f"time       about {show_duration(self.seconds)} with {self.workers} worker(s){encoder}",
        ]
        if self.faulty_documents:
            lines.append(f"faults     {self.faulty_documents:,} documents of the sample cannot be read")
        return "\n".join([*lines, f"(from {100 * self.sampled_share:.3g} % of the text)"])


def estimate(
    inputs: list[str],
    tokenizer: str | Path,
    output: str | Path,
    options: BuildOptions | None = None,
    reading: ReadOptions | None = None,
) -> Estimate:
    """Reads and encodes a sample; arguments as ``build_dataset`` takes them. Nothing is written."""
    options, reading = options or BuildOptions(), reading or ReadOptions()
    if STANDARD_INPUT in inputs:
        raise UserError("--dry_run cannot look at standard input and leave it: store it in a file.")
    corpus = Corpus(inputs, reading)
    if not all(source.num_bytes for source in corpus.sources if source.kind == "datasets"):
        raise UserError("--dry_run with --streaming: nobody knows the size of a streamed set before its end.")
    num_shards = len(cut(corpus.sources, options.shard_bytes))
    mine = len(options.pieces(num_shards))
    job = Job(str(output), str(tokenizer), corpus.sources, reading, options)
    sample = _Sample(ShardBuilder(job), Faults(reading.on_error))
    stretches = cut(corpus.sources, max(SAMPLED_BYTES // 4, corpus.num_bytes // (4 * SAMPLED_CHUNKS)))
    stretches = stretches[:: max(1, -(-len(stretches) // SAMPLED_CHUNKS))]
    with Progress("Sampling", len(stretches), unit="stretch") as progress:
        for stretch in stretches:
            sample.add(stretch)
            progress.update()
    num_bytes = corpus.num_bytes * mine // max(num_shards, 1)
    return sample.extrapolate(num_bytes, mine, nearest_existing_folder(Path(output).resolve()))


class _Sample:
    """Counts over the beginnings of some pieces."""

    def __init__(self, builder: ShardBuilder, faults: Faults):
        self.builder, self.faults = builder, faults
        self.num_bytes = self.documents = self.sequences = self.tokens = 0
        self.seconds = 0.0

    def add(self, piece) -> None:
        begin, taken = time.perf_counter(), 0
        for block in self.builder.blocks(piece, self.faults):
            ids, sizes, lengths, _ = self.builder.encode(block.documents)
            self.tokens, self.sequences = self.tokens + len(ids), self.sequences + len(sizes)
            self.documents += len(lengths)
            taken += block.num_bytes
            if taken >= SAMPLED_BYTES:
                break
        self.num_bytes += taken
        self.seconds += time.perf_counter() - begin

    def extrapolate(self, num_bytes: int, shards: int, folder: Path) -> Estimate:
        workers = self.builder.job.options.num_workers()
        factor = num_bytes / self.num_bytes if self.num_bytes else 1.0
        documents, sequences, tokens = (round(n * factor) for n in (self.documents, self.sequences, self.tokens))
        width = self.builder.encoder.dtype.itemsize
        return Estimate(
            sources=len(self.builder.job.sources),
            shards=shards,
            num_bytes=num_bytes,
            documents=documents,
            sequences=sequences,
            tokens=tokens,
            disk_bytes=tokens * width + index_bytes(shards, sequences, documents),
            free_bytes=shutil.disk_usage(folder).free,
            seconds=self.seconds * factor / min(workers, max(shards, 1)),
            workers=workers,
            sampled_share=min(1 / factor, 1.0),
            is_exact=abs(factor - 1) < 1e-3,
            is_fast=self.builder.encoder.is_fast,
            faulty_documents=self.faults.skipped,
        )
