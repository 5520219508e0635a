"""Estimate of a build from a sample of its corpus: documents, tokens, disk space, time.

Stretches from all over the corpus are encoded, and their counts extrapolated by bytes. A source that can only be read from
its beginning (CSV, compressed files) is read, and some of its blocks are encoded. Ranges are two standard errors wide on
both sides, found by leaving out each stretch in turn (the jackknife).
"""

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpnet_ds.data.builder.plan import BuildOptions, ShardPlan, SourceRange, plan_shards
from mpnet_ds.data.builder.shard_builder import Job, ShardBuilder
from mpnet_ds.data.storage.manifest import TokenCounts
from mpnet_ds.data.storage.token_file import index_bytes
from mpnet_ds.data.text.corpus import Corpus, num_units
from mpnet_ds.data.text.source import STANDARD_INPUT, Block, Faults, ReadOptions, Source, describe_faults, warn_of_empty
from mpnet_ds.errors import UserError
from mpnet_ds.machine import nearest_existing_folder, percent
from mpnet_ds.progress import Progress, show_duration

SAMPLED_STRETCHES = 64
COUNTED = ("documents", "sequences", "tokens", *TokenCounts._fields)
SAMPLED_BYTES = 1 << 20
"""Approximate length of a stretch."""
READ_BYTES = 1 << 29
"""Limit of what is read of sources that can only be read from their beginning."""


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
    """Share of the bytes that was encoded."""
    ranges: dict[str, tuple[int, int]]
    """Likely bounds of documents, sequences and tokens; none where they are exact or cannot be told."""
    unseen: str
    """What was read in part only, from its beginning, in words; empty if nothing."""
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
            f"documents  {about}{self._with_range('documents')}, with {about}{self._with_range('sequences')} sequences",
            f"tokens     {about}{self._with_range('tokens')}",
            f"unknown    {about}{percent(self.counts.unknown, self.tokens)} of the tokens{refused}",
            f"disk       {about}{self.disk_bytes / 1e6:,.0f} MB needed, {self.free_bytes / 1e6:,.0f} MB free{room}",
            f"time       about {show_duration(self.seconds)} with {self.workers} worker(s){encoder}",
        ]
        lines += [*self.remarks, *self.counts.remarks(self.tokens)]
        where = "" if self.is_exact else f". {self.unseen}" if self.unseen else ", in stretches from all over it"
        return "\n".join([*lines, f"(from {100 * self.sampled_share:.3g} % of the text{where})"])

    def _with_range(self, name: str) -> str:
        low, high = self.ranges.get(name, (0, 0))
        return f"{getattr(self, name):,}" + (f" ({low:,} to {high:,})" if high > low else "")


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
    sample = Sample(ShardBuilder(job))
    sample.take(corpus)
    faults, counts, workers = sample.faults, sample.counts, options.num_workers()
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
        disk_bytes=tokens * sample.builder.encoder.dtype.itemsize + index_bytes(mine, sequences, documents),
        free_bytes=shutil.disk_usage(nearest_existing_folder(Path(output).resolve())).free,
        seconds=sample.seconds * factor / min(workers, max(mine, 1)),
        workers=workers,
        sampled_share=min(1 / factor, 1.0),
        ranges={} if sample.unseen or abs(factor - 1) < 1e-3 else sample.ranges(num_bytes),
        unseen=sample.unseen,
        is_exact=abs(factor - 1) < 1e-3,
        is_fast=sample.builder.encoder.is_fast,
        remarks=tuple(filter(None, remarks)),
        counts=TokenCounts(*lost),
        max_unknown=options.max_unknown,
    )


class Sample:
    """Stretches of a corpus and what they hold.

    Attributes:
        counts: of all stretches; ``bytes``, ``read`` and ``empty`` documents, and ``COUNTED``.
        seconds: to read and encode them.
        faults: unreadable documents in them.
        unseen: see ``Estimate``.
    """

    def __init__(self, builder: ShardBuilder):
        self.builder, self.faults, self.unseen = builder, Faults(builder.job.reading.on_error), ""
        self.counts, self.seconds, self.stretches = Counter(), 0.0, []
        self._every, self._blocks = 1, 0  # of blocks that are read, one in so many is encoded

    def take(self, corpus: Corpus) -> None:
        """Read and encode stretches, and show the progress."""
        chunks = plan_shards(corpus.sources, max(SAMPLED_BYTES // 4, corpus.num_bytes // (4 * SAMPLED_STRETCHES)))
        chunks = chunks[:: max(1, -(-len(chunks) // SAMPLED_STRETCHES))]
        sizes = [sum(_size_of(corpus.sources[part.source], part) for part in chunk) for chunk in chunks]
        through = [not all(corpus.sources[part.source].is_divisible for part in chunk) for chunk in chunks]
        read = sum(size for size, is_read in zip(sizes, through, strict=True) if is_read)
        share = min(1.0, READ_BYTES / max(read, 1))
        self._every = max(1, math.ceil(share * read / (SAMPLED_STRETCHES * SAMPLED_BYTES)))
        limits = [
            share * size if is_read else min(size, SAMPLED_BYTES) for size, is_read in zip(sizes, through, strict=True)
        ]
        with Progress("Sampling", round(sum(limits)), unit="B") as progress:
            for chunk, limit, is_read in zip(chunks, limits, through, strict=True):
                self._take_from(chunk, limit, is_read, progress.update)
        if share < 1:
            seen = f"the first {100 * share:.2g} %"
            self.unseen = f"Of what can only be read from its beginning, {seen} was seen; the rest may differ"

    def _take_from(self, chunk: ShardPlan, limit: float, is_read: bool, advance: Callable[[int], None]) -> None:
        """Take the beginning of a chunk as one stretch; or read it up to ``limit`` bytes, and take some of its blocks."""
        done, taken, encoding, begin = 0, 0, 0.0, time.perf_counter()
        for block in self.builder.blocks(chunk, self.faults):
            if done >= limit and block.num_bytes:  # without bytes, it is the rest of the last block
                break
            if is_read and block.num_bytes:
                self._blocks += 1
            if not is_read or self._blocks % self._every == 0:
                before = time.perf_counter()
                self._encode(block, is_new=(is_read and bool(block.num_bytes)) or not done)
                encoding += time.perf_counter() - before
                taken += block.num_bytes
            done += block.num_bytes
            advance(block.num_bytes)
        reading = time.perf_counter() - begin - encoding
        self.seconds += encoding + reading * taken / max(done, 1)

    def _encode(self, block: Block, is_new: bool) -> None:
        """Add a block to the last stretch, or to a new one."""
        ids, sizes, lengths, is_empty = self.builder.encode(block.documents)
        counts = {"bytes": block.num_bytes, "read": len(is_empty), "empty": int(is_empty.sum())}
        counts |= {"documents": len(lengths), "sequences": len(sizes), "tokens": len(ids)}
        counts |= TokenCounts.of(ids, self.builder.encoder.tokenizer)._asdict()
        self.counts.update(counts)
        if is_new or not self.stretches:
            self.stretches.append(Counter())
        self.stretches[-1].update(counts)

    def ranges(self, num_bytes: int) -> dict[str, tuple[int, int]]:
        """Bounds of what ``num_bytes`` hold; none from a single stretch."""
        sizes = np.array([stretch["bytes"] for stretch in self.stretches], dtype=float)
        count, unseen = len(sizes), max(0.0, 1 - sizes.sum() / max(num_bytes, 1))
        if count < 2:
            return {}
        bounds = {}
        for name in ("documents", "sequences", "tokens"):
            found = np.array([stretch[name] for stretch in self.stretches], dtype=float)
            without = num_bytes * (found.sum() - found) / np.maximum(sizes.sum() - sizes, 1)
            error = math.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum() * unseen)
            middle = num_bytes * found.sum() / max(sizes.sum(), 1)
            bounds[name] = (round(max(found.sum(), middle - 2 * error)), round(middle + 2 * error))
        return bounds


def _size_of(source: Source, part: SourceRange) -> int:
    """Bytes of a range of a source."""
    return source.num_bytes * (part.end - part.start) // max(num_units(source), 1)
