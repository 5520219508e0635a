"""Building one shard: read → encode → ``</s>`` after each document → training or held-out file.

A finished shard has two files, ``shard-00007.bin`` and ``.idx``, in ``OUT`` and ``OUT/holdout`` (where it has documents
there), and a record ``shard-00007.json``, which is written last: without it the shard is built again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from mpnet_ds.data.builder.plan import BuildOptions, ShardPlan
from mpnet_ds.data.builder.wordpiece_memo import TextEncoder
from mpnet_ds.data.storage.manifest import HOLDOUT, ShardRecord, from_json
from mpnet_ds.data.storage.piece_counts import FAST, count_pieces, encode
from mpnet_ds.data.storage.token_file import TokenFile, TokenFileWriter
from mpnet_ds.data.text.corpus import read
from mpnet_ds.data.text.source import Block, Faults, ReadOptions, Source
from mpnet_ds.files import sync_folder, write_atomically
from mpnet_ds.tokenizer import PretrainingTokenizer

TRAINING = "training"


@dataclass(frozen=True)
class Job:
    """What all shards of a build have in common."""

    folder: str
    tokenizer: str
    """Folder of the tokenizer."""
    sources: list[Source]
    reading: ReadOptions
    options: BuildOptions

    def side(self, name: str) -> Path:
        """Folder of the ``training`` or ``holdout`` shards."""
        return Path(self.folder) if name == TRAINING else Path(self.folder) / HOLDOUT


@dataclass(frozen=True)
class BuiltShard:
    """Record of a finished shard."""

    shards: dict[str, ShardRecord] = field(default_factory=dict)
    """By side, ``training`` or ``holdout``; a side without documents has none."""
    empty_documents: int = 0
    faulty_documents: int = 0
    first_fault: str = ""
    piece_counts: dict[str, str] = field(default_factory=dict)
    """By side, as ``piece_counts.py`` encodes them."""

    def save(self, path: Path) -> None:
        """Write the record atomically."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "BuiltShard":
        """Read a record; OSError if it is missing, ValueError if it is damaged."""
        return from_json(cls, path.read_bytes())


def shard_name(number: int) -> str:
    """Name of a shard without suffix: ``shard-00007``."""
    return f"shard-{number:05d}"


def record_path(folder: Path, number: int) -> Path:
    """Path of the record of a finished shard."""
    return folder / f"{shard_name(number)}.json"


def holdout_fraction_of(document_text: str) -> float:
    """Hash a document's text to [0, 1); it is held out if this is below ``holdout``."""
    digest = hashlib.sha256(document_text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class ShardBuilder:
    """Builds shards one after another, with one encoder and its cache."""

    def __init__(self, job: Job):
        self.job = job
        tokenizer = PretrainingTokenizer.load(job.tokenizer)
        self.encoder = TextEncoder(tokenizer)
        self.reading = replace(job.reading, keep_white_space=not tokenizer.is_local)

    def build(self, number: int, plan: ShardPlan, advance: Callable[[int], None]) -> None:
        """Write shard ``number``; call ``advance`` with the bytes of each block that is done."""
        faults, empty = Faults(self.job.reading.on_error), 0
        with ExitStack() as stack:
            sides = [TRAINING, HOLDOUT] if self.job.options.holdout else [TRAINING]
            writers = {side: self._writer(side, number) for side in sides}
            for writer in writers.values():
                stack.callback(writer.discard)  # removes what is not closed by the end
            for block in self.blocks(plan, faults):
                empty += self._write(block.documents, writers)
                advance(block.num_bytes)
            shards, counts = {}, {}
            tokenizer = self.encoder.tokenizer
            for side, writer in writers.items():
                if writer.num_documents:
                    writer.close()
                    shard = TokenFile(writer.prefix)
                    shards[side] = ShardRecord.of(shard, tokenizer)
                    counts[side] = encode(count_pieces(shard, tokenizer.vocab_size), FAST)
            for side in shards:
                sync_folder(self.job.side(side))
        record = BuiltShard(shards, empty, faults.skipped, faults.first, counts)
        record.save(record_path(Path(self.job.folder), number))

    def _writer(self, side: str, number: int) -> TokenFileWriter:
        return TokenFileWriter(self.job.side(side) / shard_name(number), self.encoder.dtype)

    def blocks(self, plan: ShardPlan, faults: Faults) -> Iterator[Block]:
        """Read the documents of a shard; ``faults`` counts unreadable ones."""
        for part in plan:
            yield from read(self.job.sources[part.source], part.start, part.end, self.reading, faults)

    def _write(self, documents: list[list[str]], writers: dict[str, TokenFileWriter]) -> int:
        """Write a block; return how many documents had no token."""
        ids, sizes, lengths, is_empty = self.encode(documents)
        if HOLDOUT in writers:
            fractions = [holdout_fraction_of("\n".join(document)) for document in documents]
            held_out = (np.array(fractions) < self.job.options.holdout)[~is_empty]
            for side, chosen in ((TRAINING, ~held_out), (HOLDOUT, held_out)):
                writers[side].add_documents(*_choose(ids, sizes, lengths, chosen))
        else:
            writers[TRAINING].add_documents(ids, sizes, lengths)
        return int(is_empty.sum())

    def encode(self, documents: list[list[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Encode documents, with ``</s>`` at the end of each.

        Returns:
            ids [tokens]; sizes [sequences] and lengths [documents] as in ``TokenFileWriter.add_documents``;
            is_empty: bool [documents], those without a token, which the other arrays do not contain.
        """
        if self.job.options.sentences == "line":
            encoded = self.encoder.encode([sequence for document in documents for sequence in document])
            document_of = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        else:
            encoded = self.encoder.encode(["\n".join(document) for document in documents])
            document_of = np.arange(len(documents))
        has_tokens = encoded.sizes > 0
        lengths = np.bincount(document_of[has_tokens], minlength=len(documents))
        is_empty = lengths == 0
        sizes, lengths = encoded.sizes[has_tokens], lengths[~is_empty]
        ends = np.cumsum(sizes)
        last = np.cumsum(lengths) - 1  # last sequence of each document
        ids = np.insert(encoded.ids, ends[last], self.encoder.tokenizer.end_id)
        sizes[last] += 1
        return ids, sizes, lengths, is_empty


def _choose(ids: np.ndarray, sizes: np.ndarray, lengths: np.ndarray, chosen: np.ndarray) -> tuple:
    """Select documents by ``chosen``, bool [documents]."""
    sequences = np.repeat(chosen, lengths)
    return ids[np.repeat(sequences, sizes)], sizes[sequences], lengths[chosen]
