"""Builds the shard of one piece of the corpus: read → encode → ``</s>`` after each document → training or held-out file.

A finished shard is two files of each side that has documents, ``shard-00007.bin`` and ``.idx``, in ``OUT`` and in
``OUT/holdout``, and a record ``shard-00007.json``, which comes last: without it the shard is built again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mpnet_ds.data.builder.plan import BuildOptions, Piece
from mpnet_ds.data.builder.wordpiece_memo import TextEncoder
from mpnet_ds.data.storage.manifest import HOLDOUT, ShardRecord, shard_record
from mpnet_ds.data.storage.token_file import TokenFileWriter
from mpnet_ds.data.text.corpus import read
from mpnet_ds.data.text.source import Block, Faults, ReadOptions, Source
from mpnet_ds.files import sync_folder, write_atomically
from mpnet_ds.tokenizer import EOS_ID, PretrainingTokenizer

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
        """The folder of ``training`` or ``holdout`` shards."""
        return Path(self.folder) if name == TRAINING else Path(self.folder) / HOLDOUT


@dataclass(frozen=True)
class BuiltShard:
    """What became of a piece."""

    shards: dict[str, ShardRecord] = field(default_factory=dict)
    """By side, ``training`` and ``holdout``; a side without documents has none."""
    empty_documents: int = 0
    faulty_documents: int = 0
    first_fault: str = ""

    def save(self, path: Path) -> None:
        """In one step: the record is there, whole, or it is not."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "BuiltShard":
        """OSError if it is missing; ValueError, LookupError, TypeError or AttributeError if it is damaged."""
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = {side: shard_record(entry) for side, entry in content.pop("shards").items()}
        return cls(shards=shards, **content)


def shard_name(number: int) -> str:
    """Of a piece by its number, without ending: ``shard-00007``."""
    return f"shard-{number:05d}"


def record_path(folder: Path, number: int) -> Path:
    """Where the record of a finished shard lies."""
    return folder / f"{shard_name(number)}.json"


def holdout_fraction_of(document_text: str) -> float:
    """Where a document falls in [0, 1): it is held out if this is below ``holdout``. A pure function of the text."""
    digest = hashlib.sha256(document_text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class ShardBuilder:
    """Builds shards one after another; the encoder's memo stays."""

    def __init__(self, job: Job):
        self.job = job
        self.encoder = TextEncoder(PretrainingTokenizer.load(job.tokenizer))

    def build(self, number: int, piece: Piece, advance: Callable[[int], None]) -> None:
        """Writes shard ``number``; ``advance`` is told of each stretch of bytes that is done."""
        faults, empty = Faults(self.job.reading.on_error), 0
        with ExitStack() as stack:
            sides = [TRAINING, HOLDOUT] if self.job.options.holdout else [TRAINING]
            writers = {side: self._writer(side, number) for side in sides}
            for writer in writers.values():
                stack.callback(writer.discard)  # what is not closed by the end is removed
            for block in self.blocks(piece, faults):
                empty += self._write(block.documents, writers)
                advance(block.num_bytes)
            shards = {}
            for side, writer in writers.items():
                if writer.num_documents:
                    writer.close()
                    shards[side] = ShardRecord.of(writer)
            for side in shards:
                sync_folder(self.job.side(side))
        record = BuiltShard(shards, empty, faults.skipped, faults.first)
        record.save(record_path(Path(self.job.folder), number))

    def _writer(self, side: str, number: int) -> TokenFileWriter:
        return TokenFileWriter(self.job.side(side) / shard_name(number), self.encoder.dtype)

    def blocks(self, piece: Piece, faults: Faults) -> Iterator[Block]:
        """The documents of a piece; ``faults`` counts those that cannot be read."""
        for span in piece:
            yield from read(self.job.sources[span.source], span.start, span.end, self.job.reading, faults)

    def _write(self, documents: list[list[str]], writers: dict[str, TokenFileWriter]) -> int:
        """Writes a block; returns how many documents had no token."""
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
        """Ids of documents, each with ``</s>`` at its end.

        Returns:
            ids [tokens]; sizes [sequences] and lengths [documents] as ``TokenFileWriter.add_documents`` takes them;
            is_empty: bool, one for each of ``documents``: those have no token and are left out of the others.
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
        last = np.cumsum(lengths) - 1  # of each document, its last sequence
        ids = np.insert(encoded.ids, ends[last], EOS_ID)
        sizes[last] += 1
        return ids, sizes, lengths, is_empty


def _choose(ids: np.ndarray, sizes: np.ndarray, lengths: np.ndarray, chosen: np.ndarray) -> tuple:
    """The chosen documents alone; ``chosen`` is bool [documents]."""
    sequences = np.repeat(chosen, lengths)
    return ids[np.repeat(sequences, sizes)], sizes[sequences], lengths[chosen]
