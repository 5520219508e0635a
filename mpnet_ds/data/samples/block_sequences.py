"""Sample mode ``stream``: sequences are full blocks, cut from the concatenation of all documents.

The ids of all shards form a circular stream of T tokens (``</s>`` ends each document). A sequence is ``<s>`` and a slice of
``seq_length - 1`` ids of it; an epoch has N = T // (seq_length - 1) sequences that do not overlap. Each epoch starts at
another offset of the circle, so that no token is always at an edge, and none is always left over. In layouts without a
token that begins sequences, all ``seq_length`` ids are of the stream.

    stream   … t t t </s> t t t t t t t </s> t t t t …            sequence k of an epoch with start a:
    blocks      |--- k ---|-- k+1 --|-- k+2 --|                   ids a + k (n-1) … a + (k+1) (n-1) - 1, modulo T

Nothing is read when a dataset is opened: the position of a sequence follows from its number.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from mpnet_ds.counter_rng import below, draw, make_key
from mpnet_ds.data.storage.token_file import TokenFile
from mpnet_ds.tokenizer_layouts import MPNETS_FRAME, Frame


class TokenStream:
    """The ids of several shards as one circular array."""

    def __init__(self, shards: list[TokenFile]):
        self.shards = shards
        self.tokens = [np.asarray(shard.tokens) for shard in shards]  # slices of a plain array cost less than a memmap's
        self.ends = np.cumsum([len(tokens) for tokens in self.tokens], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def ranges(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield the (shard, start, stop) that make up a slice, which wraps around at the end."""
        while length:
            start %= len(self)
            number = bisect_right(self.ends, start)
            size = len(self.tokens[number])
            offset = start - (self.ends[number] - size)
            stop = min(offset + length, size)
            yield number, offset, stop
            start, length = start + stop - offset, length - (stop - offset)

    def slice(self, start: int, length: int) -> np.ndarray:
        """Read ``length`` ids from ``start`` on."""
        parts = [self.tokens[number][first:stop] for number, first, stop in self.ranges(start, length)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class BlockSequences:
    """Sequences of one dataset in sample mode ``stream``; ``seed`` decides where each epoch starts."""

    def __init__(self, shards: list[TokenFile], seq_length: int, seed: int, frame: Frame = MPNETS_FRAME):
        self.stream, self.seq_length, self.seed = TokenStream(shards), seq_length, seed
        self.frame, self.body = frame, seq_length - frame.num_begin
        self.tokens_per_sequence = float(seq_length)
        self.added_ids = {frame.begin: len(self.stream) / self.body} if frame.num_begin else {}
        """How often an epoch has each id that is not in the shards."""
        self._start_of = lru_cache(maxsize=16)(self._draw_start)

    def __len__(self) -> int:
        """Number of sequences in an epoch, N."""
        return len(self.stream) // self.body

    def read(self, numbers: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read sequences by number: ids int64 [B, n], and which of them are not padding, bool [B, n] (all)."""
        ids = np.empty((len(numbers), self.seq_length), dtype=np.int64)
        if self.frame.begin is not None:
            ids[:, 0] = self.frame.begin
        for sequence, start in zip(ids, self._starts(numbers, epochs), strict=True):
            sequence[self.frame.num_begin :] = self.stream.slice(start, self.body)
        return ids, np.ones(ids.shape, dtype=bool)

    def token_ranges(self, number: int, epoch: int) -> Iterator[tuple[TokenFile, int, int]]:
        """Yield the (shard, start, stop) of a sequence's ids."""
        for shard, first, stop in self.stream.ranges(*self._starts([number], [epoch]), self.body):
            yield self.stream.shards[shard], first, stop

    def _starts(self, numbers, epochs) -> list[int]:
        pairs = zip(np.asarray(numbers).tolist(), np.asarray(epochs).tolist(), strict=True)
        return [self._start_of(epoch) + number * self.body for number, epoch in pairs]

    def _draw_start(self, epoch: int) -> int:
        return int(below(draw(make_key(self.seed, epoch), 0), min(len(self.stream), 2**32 - 1)))
