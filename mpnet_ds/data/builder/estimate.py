"""Estimate of a build from a sample of its corpus: documents, tokens, disk space, time."""

import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mpnet_ds.data.builder.plan import BuildOptions, ShardPlan, plan_shards
from mpnet_ds.data.builder.shard_builder import Job, ShardBuilder
from mpnet_ds.data.storage.manifest import TokenCounts
from mpnet_ds.data.storage.token_file import index_bytes
from mpnet_ds.data.text.corpus import Corpus
from mpnet_ds.data.text.source import STANDARD_INPUT, Faults, ReadOptions, describe_faults, warn_of_empty
from mpnet_ds.errors import UserError
from mpnet_ds.machine import nearest_existing_folder, percent
from mpnet_ds.progress import Progress, show_duration

SAMPLED_CHUNKS = 64
COUNTED = ("documents", "sequences", "tokens", *TokenCounts._fields)
SAMPLED_BYTES = 1 << 20
"""Approximate limit of what is read at the start of each chunk."""


@dataclass(frozen=True)
class Estimate:
    """Figures of a whole build, extrapolated by bytes."""

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
    """Share of the bytes that were read."""
    is_exact: bool
    """Whether all of the text was read, so that only the time is an estimate."""
    is_fast: bool
    """Whether the fast encoder serves the tokenizer."""
    remarks: tuple[str, ...]
    """On unreadable and empty documents in the sample, and files that are passed over."""
    counts: TokenCounts
    """Unknown and indivisible tokens."""
    max_unknown: float
    """Share of unknown tokens above which the build would be refused."""

    def __str__(self) -> str:
        about = "" if self.is_exact else "about "
        encoder = "" if self.is_fast else " (not a WordPiece tokenizer: encoded by the library, several times slower)"
        room = "" if self.disk_bytes <= self.free_bytes else ": NOT ENOUGH"
        refused = (
            "" if self.counts.unknown <= self.max_unknown * self.tokens else f": MORE THAN --max_unknown {self.max_unknown}"
        )
        lines = [
            f"sources    {self.sources:,} with {self.num_bytes:,} bytes, for {self.shards:,} shards",
            f"documents  {about}{self.documents:,}, with {about}{self.sequences:,} sequences",
            f"tokens     {about}{self.tokens:,}",
            f"unknown    {about}{percent(self.counts.unknown, self.tokens)} of the tokens{refused}",
            f"disk       {about}{self.disk_bytes / 1e6:,.0f} MB needed, {self.free_bytes / 1e6:,.0f} MB free{room}",
            f"time       about {show_duration(self.seconds)} with {self.workers} worker(s){encoder}",
        ]
        lines += [*self.remarks, *self.counts.remarks(self.tokens)]
        return "\n".join([*lines, f"(from {100 * self.sampled_share:.3g} % of the text)"])


def estimate(
    inputs: list[str],
    tokenizer: str | Path,
    output: str | Path,
    options: BuildOptions | None = None,
    reading: ReadOptions | None = None,
) -> Estimate:
    """Read and encode a sample without writing anything; the arguments are those of ``build_dataset``."""
    options, reading = options or BuildOptions(), reading or ReadOptions()
    if STANDARD_INPUT in inputs:
        raise UserError("--dry_run cannot read standard input, which would be consumed by it: use a file.")
    corpus = Corpus(inputs, reading)
    if not all(source.num_bytes for source in corpus.sources if source.kind == "datasets"):
        raise UserError("--dry_run does not work with --streaming: the size of a streamed dataset is unknown.")
    num_shards = len(plan_shards(corpus.sources, options.shard_bytes))
    mine = len(options.shard_numbers(num_shards))
    job = Job(str(output), str(tokenizer), corpus.sources, reading, options)
    builder, faults, counts = ShardBuilder(job), Faults(reading.on_error), Counter()
    chunks = plan_shards(corpus.sources, max(SAMPLED_BYTES // 4, corpus.num_bytes // (4 * SAMPLED_CHUNKS)))
    chunks = chunks[:: max(1, -(-len(chunks) // SAMPLED_CHUNKS))]
    begin = time.perf_counter()
    with Progress("Sampling", len(chunks), unit="chunk") as progress:
        for chunk in chunks:
            counts.update(_count(builder, chunk, faults))
            progress.update()
    seconds, workers = time.perf_counter() - begin, options.num_workers()
    num_bytes = corpus.num_bytes * mine // max(num_shards, 1)
    factor = num_bytes / counts["bytes"] if counts["bytes"] else 1.0
    documents, sequences, tokens, *lost = (round(counts[name] * factor) for name in COUNTED)
    remarks = (
        describe_faults(faults.skipped, faults.first) if faults.skipped else "",
        warn_of_empty(counts["empty"], counts["read"], reading.text_field),
        str(corpus.passed_over),
    )
    return Estimate(
        sources=len(corpus.sources),
        shards=mine,
        num_bytes=num_bytes,
        documents=documents,
        sequences=sequences,
        tokens=tokens,
        disk_bytes=tokens * builder.encoder.dtype.itemsize + index_bytes(mine, sequences, documents),
        free_bytes=shutil.disk_usage(nearest_existing_folder(Path(output).resolve())).free,
        seconds=seconds * factor / min(workers, max(mine, 1)),
        workers=workers,
        sampled_share=min(1 / factor, 1.0),
        is_exact=abs(factor - 1) < 1e-3,
        is_fast=builder.encoder.is_fast,
        remarks=tuple(filter(None, remarks)),
        counts=TokenCounts(*lost),
        max_unknown=options.max_unknown,
    )


def _count(builder: ShardBuilder, chunk: ShardPlan, faults: Faults) -> dict[str, int]:
    """Bytes at the start of a chunk, and what was encoded from them."""
    counts = Counter()
    for block in builder.blocks(chunk, faults):
        if counts["bytes"] >= SAMPLED_BYTES and block.num_bytes:  # without bytes, it is the rest of the last block
            break
        ids, sizes, lengths, is_empty = builder.encode(block.documents)
        counts.update(read=len(is_empty), empty=int(is_empty.sum()))
        counts.update(bytes=block.num_bytes, documents=len(lengths), sequences=len(sizes), tokens=len(ids))
        counts.update(TokenCounts.of(ids, builder.encoder.tokenizer)._asdict())
    return counts
