"""Sample modes ``document`` and ``line``: sequences of whole documents or lines, with padding.

An *item* is a document, or in mode ``line`` one line. Its ids (a line that is not the last of its document gets a ``</s>``)
are cut into chunks of ``seq_length - 1``, of which the last may be shorter; ``<s>`` and a chunk make a *unit*. So an item
that fits is one unit, and a longer one fills whole sequences except for its last unit.

In layouts without a token that begins sequences, units have none, and chunks are of ``seq_length``.

With ``packing`` a sequence takes consecutive units as long as they fit; without it, each unit has its own sequence.

    items    a a a a a </s>    b b </s>    c c c </s>                     with seq_length 12:
    packed   | <s> a a a a a </s> <s> b b </s> pad | <s> c c c </s> pad pad pad pad pad pad pad |
    else     | <s> a a a a a </s> pad pad pad pad pad | <s> b b </s> pad pad pad pad pad pad pad pad | …

Opening reads the index (.idx) once, 8 bytes a line, and no ids. It keeps 2 bytes a sequence: shards are divided into blocks
of 1024 items, no sequence spans two blocks, and for each sequence the index of its first item in its block is kept. Its
other items are those before the first item of the next sequence; all its ids are contiguous in the .bin.
"""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from mpnet_ds.data.storage.token_file import TokenFile
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer_layouts import MPNETS_FRAME, Frame

ITEMS_PER_BLOCK = 1024  # at most 1 << 16
BLOCKS_AT_ONCE = 1024


class DocumentSequences:
    """Sequences of a dataset in sample mode ``document`` or ``line``; the same in every epoch.

    Raises ``UserError`` if the index of a shard is damaged.
    """

    def __init__(
        self, shards: list[TokenFile], seq_length: int, sample_mode: str, packing: bool, frame: Frame = MPNETS_FRAME
    ):
        self.seq_length, self.packing = seq_length, packing
        self.frame, self.body = frame, seq_length - frame.num_begin
        self.shards = [_Items(shard, sample_mode) for shard in shards]
        firsts, sequences_of_blocks, self._block_ends_of_shards, num_ids, num_units = [], [], [], 0, 0
        for items in self.shards:
            for begin in range(0, len(items), ITEMS_PER_BLOCK * BLOCKS_AT_ONCE):
                lengths = items.lengths(begin, min(begin + ITEMS_PER_BLOCK * BLOCKS_AT_ONCE, len(items)))
                opened = sequences_opened(_in_blocks(lengths), seq_length, packing, frame.num_begin)
                firsts.append(np.repeat(np.tile(np.arange(opened.shape[1], dtype=np.uint16), len(opened)), opened.ravel()))
                sequences_of_blocks.append(opened.sum(axis=1))
                num_ids += int(lengths.sum())
                num_units += int(frame.num_begin * -(-lengths // self.body).sum())
            self._block_ends_of_shards.append(sum(map(len, sequences_of_blocks)))
        self._first_items = np.concatenate(firsts) if firsts else np.empty(0, dtype=np.uint16)
        self._sequence_ends_of_blocks = np.cumsum(np.concatenate(sequences_of_blocks)).tolist() if firsts else []
        self.tokens_per_sequence = (num_ids + num_units) / max(len(self), 1)
        self.added_ids = {frame.end: num_ids - sum(len(shard.tokens) for shard in shards)}
        self.added_ids |= {frame.begin: num_units} if frame.num_begin else {}
        """How often an epoch has each id that is not in the shards."""

    def __len__(self) -> int:
        return len(self._first_items)

    def read(self, numbers: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read sequences by number: ids int64 [B, n], and which of them are not padding, bool [B, n]."""
        found = [self._contents(number) for number in np.asarray(numbers).tolist()]
        ids = np.concatenate([np.empty(0, dtype=np.int64), *(tokens for tokens, _, _ in found)])
        sizes = np.concatenate([np.empty(0, dtype=np.int64), *(sizes for _, sizes, _ in found)])
        may_add_end = np.concatenate([np.empty(0, dtype=bool), *(flags for _, _, flags in found)])
        sequence = np.repeat(np.arange(len(found)), np.array([len(sizes) for _, sizes, _ in found], dtype=np.int64))
        ends = np.cumsum(sizes)
        last_ids = ids[np.maximum(ends, 1) - 1] if ids.size else np.zeros(len(ends))
        adds_end = may_add_end & ((last_ids != self.frame.end) | (sizes == 0))
        lengths = self.frame.num_begin + sizes + adds_end
        before = np.cumsum(lengths) - lengths
        offset = before - before[np.searchsorted(sequence, sequence)]
        begin = sequence * self.seq_length + offset  # of each unit, in the flattened batch
        text = begin + self.frame.num_begin
        batch = np.full((len(found), self.seq_length), self.frame.pad, dtype=np.int64)
        flat = batch.reshape(-1)
        flat[np.repeat(text - (ends - sizes), sizes) + np.arange(ids.size)] = ids
        if self.frame.begin is not None:
            flat[begin] = self.frame.begin
        flat[(text + sizes)[adds_end]] = self.frame.end
        used = np.bincount(sequence, weights=lengths, minlength=len(found))
        return batch, np.arange(self.seq_length) < used[:, None]

    def token_ranges(self, number: int, epoch: int) -> Iterator[tuple[TokenFile, int, int]]:
        """Yield the (shard, start, stop) of a sequence's ids."""
        items, bounds, _ = self._locate(number)
        yield items.shard, int(bounds[0]), int(bounds[-1])

    def _contents(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read the ids of a sequence; for each of its units, the number of ids and whether it may need a ``</s>``."""
        items, bounds, adds_end = self._locate(number)
        sizes = bounds[1:] - bounds[:-1]
        if not sizes.all():
            keep = sizes > 0  # an item without ids has no unit …
            keep[0] = True  # … but the first one opened this sequence, with only an added ``</s>`` left of it
            sizes, adds_end = sizes[keep], adds_end[keep]
        return items.tokens[bounds[0] : bounds[-1]], sizes, adds_end

    def _locate(self, number: int) -> tuple["_Items", np.ndarray, np.ndarray]:
        """Find the shard of a sequence, the bounds of its units there, and which units end a line without ``</s>``."""
        block = bisect_right(self._sequence_ends_of_blocks, number)
        shard = bisect_right(self._block_ends_of_shards, block)
        items = self.shards[shard]
        first_sequence = self._sequence_ends_of_blocks[block - 1] if block else 0
        first_items = self._first_items[first_sequence : self._sequence_ends_of_blocks[block]]
        in_block = number - first_sequence
        first = first_items[in_block]
        chunk = in_block - int(first_items.searchsorted(first))  # of the first item
        begin = (block - (self._block_ends_of_shards[shard - 1] if shard else 0)) * ITEMS_PER_BLOCK
        last_of_block = min(begin + ITEMS_PER_BLOCK, len(items)) - begin
        stop = int(first_items[in_block + 1]) if in_block + 1 < len(first_items) else last_of_block
        stop = max(stop, int(first) + 1) if self.packing else int(first) + 1
        bounds = items.bounds(begin + int(first), begin + stop)
        adds_end = items.adds_end(begin + int(first), begin + stop)
        return items, *self._cut_first_item(bounds, adds_end, chunk)

    def _cut_first_item(self, bounds: np.ndarray, adds_end: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut the first item to one of its chunks; return the bounds and ``adds_end`` of the units."""
        begin, end = int(bounds[0]) + chunk * self.body, int(bounds[1])
        if end + adds_end[0] > begin + self.body:  # not the last chunk of the item: it fills the sequence
            end = min(end, begin + self.body)
            return np.array([begin, end]), np.zeros(1, dtype=bool)
        bounds[0] = begin
        return bounds, adds_end


class _Items:
    """Items of one shard, from its index."""

    def __init__(self, shard: TokenFile, sample_mode: str):
        self.shard, self.by_line = shard, sample_mode == "line"
        self.tokens = np.asarray(shard.tokens)
        self.offsets, self.document_index = np.asarray(shard.offsets), np.asarray(shard.document_index)
        if self.document_index[0] != 0 or self.document_index[-1] != len(self.offsets):
            raise UserError(f"{shard.index_path}: the document index does not cover all sequences: {BUILD_AGAIN}")

    def __len__(self) -> int:
        return len(self.offsets) if self.by_line else len(self.document_index) - 1

    def bounds(self, first: int, stop: int) -> np.ndarray:
        """Token index at which each item ``first`` … ``stop - 1`` starts, then the end of the last: int64."""
        sequences = slice(first, stop + 1)
        if not self.by_line:
            sequences = self.document_index[sequences]
            if sequences[-1] == len(self.offsets):
                sequences = sequences[sequences < len(self.offsets)]
        starts = self.offsets[sequences] // self.tokens.itemsize
        missing = stop + 1 - first - len(starts)  # what starts after the last line starts where the ids end
        return np.append(starts, [len(self.tokens)] * missing) if missing else starts

    def adds_end(self, first: int, stop: int) -> np.ndarray:
        """Which items are lines that are not the last of their document, and so have no ``</s>``: bool [stop - first]."""
        adds_end = np.full(stop - first, self.by_line)
        if self.by_line:
            # Not NumPy's searchsorted, which copies arrays that are not aligned to 8 bytes.
            after = bisect_right(self.document_index, first)
            until = bisect_right(self.document_index, stop, after)
            adds_end[self.document_index[after:until] - first - 1] = False
        return adds_end

    def lengths(self, first: int, stop: int) -> np.ndarray:
        """Number of ids of the items ``first`` … ``stop - 1``, with added ``</s>``; 0 for an item without ids: int64."""
        sizes = np.diff(self.bounds(first, stop))
        if (sizes < 0).any():
            found = f"item {first + int(np.argmax(sizes < 0))} starts after its end"
            raise UserError(f"{self.shard.index_path}: {found}: {BUILD_AGAIN}")
        return np.where(sizes > 0, sizes + self.adds_end(first, stop), 0)


BUILD_AGAIN = "damaged, build the dataset again."


def _in_blocks(lengths: np.ndarray) -> np.ndarray:
    """Reshape to [blocks, items of a block], with items of length 0 at the end of the last block."""
    width = min(ITEMS_PER_BLOCK, len(lengths))
    padded = np.zeros(-(-len(lengths) // width) * width, dtype=np.int64)
    padded[: len(lengths)] = lengths
    return padded.reshape(-1, width)


def sequences_opened(lengths: np.ndarray, seq_length: int, packing: bool, num_begin: int = 1) -> np.ndarray:
    """Count the new sequences that each item needs; blocks are independent of each other.

    ``lengths``: ids of each item, and what is returned: int [blocks, items]. ``num_begin``: ids that begin a unit, 1 or 0.
    """
    narrow = np.int32 if lengths.max(initial=0) < 1 << 31 else np.int64
    lengths = np.ascontiguousarray(lengths.T, dtype=narrow)  # (items, blocks): one step takes an item of every block
    body = seq_length - num_begin
    opened = lengths // body
    needed = (lengths - opened * body).astype(np.int32)
    if not packing:
        return (opened + (needed > 0)).T
    needed += num_begin * (needed > 0)
    fills_sequences = opened.any(axis=1).tolist()
    free = np.zeros(lengths.shape[1], dtype=np.int32)  # positions in the newest sequence of each block
    for item in range(len(lengths)):
        if fills_sequences[item]:
            free *= opened[item] == 0  # what follows a full sequence opens another
        opens = needed[item] > free
        np.copyto(free, seq_length, where=opens)
        free -= needed[item]
        opened[item] += opens
    return opened.T
