"""Sample modes ``document`` and ``line``: rows are made of whole units, and the rest of a row is padding.

An *item* is a document, or with ``line`` one sequence of the shards' index. Its ids (a line that is not the last of its
document gets ``</s>`` as one more) are cut into pieces of ``seq_length - 1``, the last of which is shorter; ``<s>`` and a
piece make a *unit*. So an item that fits into a row is one unit, and a longer one fills rows until its end is left.

With ``packing`` units follow one another in a row as long as they fit; without it each has a row of its own.

    items    a a a a a </s>    b b </s>    c c c </s>                     at seq_length 12:
    packed   | <s> a a a a a </s> <s> b b </s> pad | <s> c c c </s> pad pad pad pad pad pad pad |
    else     | <s> a a a a a </s> pad pad pad pad pad | <s> b b </s> pad pad pad pad pad pad pad pad | …

Opening reads the index (.idx) once, 8 bytes a sequence, and no ids. It keeps 2 bytes a row: shards are divided into
blocks of 1024 items, no row spans two blocks, and for each row the number within its block of its first item is kept. The
row's other items are those before the next row's first one; all of its ids lie end to end in the .bin.
"""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from mpnet_ds.data.storage.token_file import TokenFile
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PAD_ID

ITEMS_PER_BLOCK = 1024  # at most 1 << 16
BLOCKS_AT_ONCE = 1024


class DocumentSequences:
    """Rows of one dataset in sample mode ``document`` or ``line``; the same in every epoch.

    Raises:
        UserError: an index that contradicts itself, with the file's name.
    """

    def __init__(self, shards: list[TokenFile], seq_length: int, sample_mode: str, packing: bool):
        self.seq_length, self.packing = seq_length, packing
        self.shards = [_Items(shard, sample_mode) for shard in shards]
        firsts, rows_of_blocks, self._block_ends_of_shards, slots = [], [], [], 0
        for items in self.shards:
            for begin in range(0, len(items), ITEMS_PER_BLOCK * BLOCKS_AT_ONCE):
                lengths = items.lengths(begin, min(begin + ITEMS_PER_BLOCK * BLOCKS_AT_ONCE, len(items)))
                opened = sequences_opened(_in_blocks(lengths), seq_length, packing)
                firsts.append(np.repeat(np.tile(np.arange(opened.shape[1], dtype=np.uint16), len(opened)), opened.ravel()))
                rows_of_blocks.append(opened.sum(axis=1))
                slots += int(lengths.sum() + -(-lengths // (seq_length - 1)).sum())
            self._block_ends_of_shards.append(sum(map(len, rows_of_blocks)))
        self._first_items = np.concatenate(firsts) if firsts else np.empty(0, dtype=np.uint16)
        self._row_ends_of_blocks = np.cumsum(np.concatenate(rows_of_blocks)).tolist() if firsts else []
        self.tokens_per_sequence = slots / max(len(self), 1)

    def __len__(self) -> int:
        return len(self._first_items)

    def read(self, numbers: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows by number: ids int64 [B, n], and which of them are real, bool [B, n]."""
        found = [self._contents(number) for number in np.asarray(numbers).tolist()]
        ids = np.concatenate([np.empty(0, dtype=np.int64), *(tokens for tokens, _, _ in found)])
        sizes = np.concatenate([np.empty(0, dtype=np.int64), *(sizes for _, sizes, _ in found)])
        may_add_end = np.concatenate([np.empty(0, dtype=bool), *(flags for _, _, flags in found)])
        row = np.repeat(np.arange(len(found)), np.array([len(sizes) for _, sizes, _ in found], dtype=np.int64))
        ends = np.cumsum(sizes)
        last_ids = ids[np.maximum(ends, 1) - 1] if ids.size else np.zeros(len(ends))
        adds_end = may_add_end & ((last_ids != EOS_ID) | (sizes == 0))
        lengths = 1 + sizes + adds_end
        before = np.cumsum(lengths) - lengths
        column = before - before[np.searchsorted(row, row)]
        begin = row * self.seq_length + column  # of each unit, in the flattened rows
        rows = np.full((len(found), self.seq_length), PAD_ID, dtype=np.int64)
        flat = rows.reshape(-1)
        flat[np.repeat(begin + 1 - (ends - sizes), sizes) + np.arange(ids.size)] = ids
        flat[begin] = BOS_ID
        flat[(begin + 1 + sizes)[adds_end]] = EOS_ID
        used = np.bincount(row, weights=lengths, minlength=len(found))
        return rows, np.arange(self.seq_length) < used[:, None]

    def places(self, number: int, epoch: int) -> Iterator[tuple[TokenFile, int, int]]:
        """Where a row's ids lie: (shard, first id, one past the last)."""
        items, bounds, _ = self._locate(number)
        yield items.shard, int(bounds[0]), int(bounds[-1])

    def _contents(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A row's ids, and of each unit the number of its ids and whether ``</s>`` may have to be added."""
        items, bounds, adds_end = self._locate(number)
        sizes = bounds[1:] - bounds[:-1]
        if not sizes.all():
            keep = sizes > 0  # an item without ids is no unit …
            keep[0] = True  # … but the first opened this row, with nothing but an added ``</s>`` left of it
            sizes, adds_end = sizes[keep], adds_end[keep]
        return items.tokens[bounds[0] : bounds[-1]], sizes, adds_end

    def _locate(self, number: int) -> tuple["_Items", np.ndarray, np.ndarray]:
        """A row's items: their shard, the bounds of their units in it, and which units end a line without ``</s>``."""
        block = bisect_right(self._row_ends_of_blocks, number)
        shard = bisect_right(self._block_ends_of_shards, block)
        items = self.shards[shard]
        first_row = self._row_ends_of_blocks[block - 1] if block else 0
        first_items = self._first_items[first_row : self._row_ends_of_blocks[block]]
        first, row = first_items[number - first_row], number - first_row
        piece = row - int(first_items.searchsorted(first))
        begin = (block - (self._block_ends_of_shards[shard - 1] if shard else 0)) * ITEMS_PER_BLOCK
        last_of_block = min(begin + ITEMS_PER_BLOCK, len(items)) - begin
        stop = int(first_items[row + 1]) if row + 1 < len(first_items) else last_of_block
        stop = max(stop, int(first) + 1)
        if not self.packing:
            stop = int(first) + 1
        bounds = items.bounds(begin + int(first), begin + stop)
        adds_end = items.adds_end(begin + int(first), begin + stop)
        return items, *self._cut(bounds, adds_end, piece)

    def _cut(self, bounds: np.ndarray, adds_end: np.ndarray, piece: int) -> tuple[np.ndarray, np.ndarray]:
        """The bounds with the first item cut to its ``piece``."""
        body = self.seq_length - 1
        begin, end = int(bounds[0]) + piece * body, int(bounds[1])
        if end + adds_end[0] > begin + body:  # not the item's last piece: it fills the row
            end = min(end, begin + body)
            return np.array([begin, end]), np.zeros(1, dtype=bool)
        bounds[0] = begin
        return bounds, adds_end


class _Items:
    """The items of one shard, as the index has them."""

    def __init__(self, shard: TokenFile, sample_mode: str):
        self.shard, self.by_line = shard, sample_mode == "line"
        self.tokens = np.asarray(shard.tokens)
        self.offsets, self.document_index = np.asarray(shard.offsets), np.asarray(shard.document_index)
        if self.document_index[0] != 0 or self.document_index[-1] != len(self.offsets):
            raise UserError(f"{shard.index_path}: the document index does not cover all sequences: {BUILD_AGAIN}")

    def __len__(self) -> int:
        return len(self.offsets) if self.by_line else len(self.document_index) - 1

    def bounds(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first + 1]: where in the .bin, in ids, items ``first`` … ``stop - 1`` begin, and the last ends."""
        sequences = slice(first, stop + 1)
        if not self.by_line:
            sequences = self.document_index[sequences]
            if sequences[-1] == len(self.offsets):
                sequences = sequences[sequences < len(self.offsets)]
        starts = self.offsets[sequences] // self.tokens.itemsize
        missing = stop + 1 - first - len(starts)  # what begins after the last sequence begins where the ids end
        return np.append(starts, [len(self.tokens)] * missing) if missing else starts

    def adds_end(self, first: int, stop: int) -> np.ndarray:
        """bool [stop - first]: lines that are not their document's last, and so have no ``</s>`` of their own."""
        adds_end = np.full(stop - first, self.by_line)
        if self.by_line:
            # Not NumPy's searchsorted, which copies the whole of an array that does not lie at a multiple of 8 bytes.
            after = bisect_right(self.document_index, first)
            until = bisect_right(self.document_index, stop, after)
            adds_end[self.document_index[after:until] - first - 1] = False
        return adds_end

    def lengths(self, first: int, stop: int) -> np.ndarray:
        """int64: ids of items ``first`` … ``stop - 1``, the added ``</s>`` included; 0 for an item without ids."""
        sizes = np.diff(self.bounds(first, stop))
        if (sizes < 0).any():
            place = f"item {first + int(np.argmax(sizes < 0))} begins after its end"
            raise UserError(f"{self.shard.index_path}: {place}: {BUILD_AGAIN}")
        return np.where(sizes > 0, sizes + self.adds_end(first, stop), 0)


BUILD_AGAIN = "damaged, build the dataset again."


def _in_blocks(lengths: np.ndarray) -> np.ndarray:
    """[blocks, items of a block]: the last block is filled up with items of length 0, which open no row."""
    width = min(ITEMS_PER_BLOCK, len(lengths))
    padded = np.zeros(-(-len(lengths) // width) * width, dtype=np.int64)
    padded[: len(lengths)] = lengths
    return padded.reshape(-1, width)


def sequences_opened(lengths: np.ndarray, seq_length: int, packing: bool) -> np.ndarray:
    """How many new rows each item takes, int [blocks, items], the blocks being independent of each other.

    Args:
        lengths: int [blocks, items], ids of each item.
    """
    narrow = np.int32 if lengths.max(initial=0) < 1 << 31 else np.int64
    lengths = np.ascontiguousarray(lengths.T, dtype=narrow)  # (items, blocks): one step takes an item of every block
    opened = lengths // (seq_length - 1)
    needed = (lengths - opened * (seq_length - 1)).astype(np.int32)
    if not packing:
        return (opened + (needed > 0)).T
    needed += needed > 0  # ``<s>``
    fills_rows = opened.any(axis=1).tolist()
    free = np.zeros(lengths.shape[1], dtype=np.int32)  # slots of each block's newest row
    for item in range(len(lengths)):
        if fills_rows[item]:
            free *= opened[item] == 0  # what follows a full row opens another
        opens = needed[item] > free
        np.copyto(free, seq_length, where=opens)
        free -= needed[item]
        opened[item] += opens
    return opened.T
