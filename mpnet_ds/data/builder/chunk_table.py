"""A vectorised hash table: looks up a million short byte strings at once with NumPy.

Keys are strings of at most ``8 * width`` bytes, padded with NUL bytes and passed as ``width`` arrays of uint64, so that
comparisons are exact; values are numbers. Open addressing, linear probing, at most half full. A lookup costs a few NumPy
operations over all keys, and as many again over the few whose slot holds another key.

    key  "tokenise" ──► [0x6573696e656b6f74]            width 1
         "untokenised" ► [0x6e656b6f746e75…, 0x…646573]  width 2
"""

import numpy as np

EMPTY = -1
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_MASKS = np.array([(1 << (8 * count)) - 1 for count in range(9)], dtype=np.uint64)


def keys_of(text: bytes, starts: np.ndarray, sizes: np.ndarray, width: int) -> list[np.ndarray]:
    """Return the keys of some chunks of ``text``: ``width`` arrays uint64 [chunks].

    Args:
        text: with at least ``8 * width`` bytes after the last chunk.
        starts, sizes: int64 [chunks], in bytes; sizes are at most ``8 * width``.
    """
    words = np.ndarray((len(text) - 7,), "<u8", text, strides=(1,))  # the 8 bytes from each byte on
    return [words[starts + 8 * i] & _MASKS[np.clip(sizes - 8 * i, 0, 8)] for i in range(width)]


class ChunkTable:
    """A table from keys to numbers that holds up to ``capacity`` keys."""

    def __init__(self, width: int, capacity: int):
        self.width, self.capacity = width, capacity
        self._num_slots = 1 << (2 * capacity - 1).bit_length()
        self._shift = np.uint64(65 - self._num_slots.bit_length())
        self.clear()

    def clear(self) -> None:
        """Remove all keys."""
        self._keys = [np.zeros(self._num_slots, np.uint64) for _ in range(self.width)]
        self._values = np.full(self._num_slots, EMPTY, np.int32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, keys: list[np.ndarray]) -> np.ndarray:
        """Look up keys: int32 [keys], ``EMPTY`` for keys that are not in the table."""
        slots = self._slots_of(keys)
        values = self._values[slots]
        others = np.flatnonzero(self._holds_another(slots, keys, values))
        slots = slots[others]
        while len(others):
            slots = (slots + 1) & (self._num_slots - 1)
            found = self._values[slots]
            another = self._holds_another(slots, [key[others] for key in keys], found)
            values[others] = np.where(another, EMPTY, found)
            others, slots = others[another], slots[another]
        return values

    def add(self, keys: list[np.ndarray], values: np.ndarray) -> None:
        """Insert keys that are not in the table yet, each once; values must be non-negative and distinct."""
        self._count += len(values)
        assert self._count <= self.capacity
        slots, left = self._slots_of(keys), np.arange(len(values))
        while len(left):
            is_free = self._values[slots] == EMPTY
            self._values[slots[is_free]] = values[left[is_free]]  # if several keys want one slot, the last gets it
            is_placed = self._values[slots] == values[left]
            for table, key in zip(self._keys, keys, strict=True):
                table[slots[is_placed]] = key[left[is_placed]]
            slots, left = (slots[~is_placed] + 1) & (self._num_slots - 1), left[~is_placed]

    def _holds_another(self, slots: np.ndarray, keys: list[np.ndarray], values: np.ndarray) -> np.ndarray:
        differs = self._keys[0][slots] != keys[0]
        for table, key in zip(self._keys[1:], keys[1:], strict=True):
            differs |= table[slots] != key
        differs &= values != EMPTY
        return differs

    def _slots_of(self, keys: list[np.ndarray]) -> np.ndarray:
        mixed = keys[0] * _MULTIPLIER
        for key in keys[1:]:
            mixed ^= mixed >> _HALF
            mixed += key
            mixed *= _MULTIPLIER
        mixed ^= mixed >> _HALF
        mixed *= _MULTIPLIER
        return (mixed >> self._shift).view(np.int64)
