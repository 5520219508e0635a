"""Fast WordPiece encoding: the ids of Hugging Face's tokenizers, mostly from a cache.

WordPiece is local: the ids of a *chunk* depend on that chunk alone, where chunks are the strings between blanks, each ASCII
punctuation mark and each Chinese character (BertNormalizer and BertPreTokenizer work character by character; they split at
blanks, around punctuation and around Chinese characters, and join nothing across them). So a block of text goes

    bytes ──► chunks ──► their numbers, from a table of known chunks ──► ids, from the store of the table
              (all of this in NumPy, for all chunks of the block at once)

A new chunk is encoded by the library: only by its WordPiece model if the normalised chunk has letters and digits only, else
by the whole tokenizer. A full table is cleared and fills again.

Other tokenizers (BPE, Unigram) are not local in this sense; their texts go to the library unchanged.
"""

import re
import string
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mpnet_ds.data.builder.chunk_table import EMPTY, ChunkTable, keys_of
from mpnet_ds.data.storage.token_file import token_dtype
from mpnet_ds.tokenizer import PretrainingTokenizer

MEMO_ENTRIES = 1 << 18
"""Capacity of each table and of the dictionary: less than 100 MB in all."""
STORED_IDS = 1 << 23
TABLE_WIDTHS = (1, 2, 6)  # chunks of at most 8, 16 and 48 bytes; longer ones have a dictionary
LONGEST_CACHED = 256  # characters; longer chunks hardly ever recur
BLOCK_CHARACTERS = 1 << 19  # intermediate arrays stay in the CPU's cache
_PADDING = b" " * 8 * max(TABLE_WIDTHS)
_WHITE_SPACE = re.compile("[ \n]")
_END = 10  # byte: "\n" between texts
_BLANK, _MARK, _OTHER = range(3)  # kinds of bytes: blanks and ends of texts; ASCII punctuation; all others
_KINDS = np.full(256, _OTHER, np.uint8)
_KINDS[list(b" \t\r\n")] = _BLANK
_KINDS[list(string.punctuation.encode())] = _MARK


@dataclass(frozen=True)
class Encoded:
    """Ids of several texts."""

    ids: np.ndarray
    """uint16 or int32 [tokens], concatenated."""
    sizes: np.ndarray
    """Number of tokens of each text, int64 [texts]."""


class TextEncoder:
    """Encoder with the results of ``PretrainingTokenizer.encode``; ``is_fast`` tells whether the cache is used."""

    def __init__(self, tokenizer: PretrainingTokenizer, memo_entries: int = MEMO_ENTRIES):
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.is_fast = tokenizer.is_local
        self._memo_entries = memo_entries
        self._tables = [ChunkTable(width, memo_entries) for width in TABLE_WIDTHS] if self.is_fast else []
        self._store = _Store(self.dtype)
        self._long_chunks: dict[str, int] = {}
        normalizer = tokenizer.backend.normalizer
        self._cuts_chinese = self.is_fast and normalizer.handle_chinese_chars
        self._lower_case = self.is_fast and normalizer.lowercase
        self._model, self._longest_word = tokenizer.backend.model, tokenizer.longest_word
        self._normalize = normalizer.normalize_str if self.is_fast else None

    def encode(self, texts: list[str]) -> Encoded:
        """Encode texts, without ``<s>`` and ``</s>``."""
        if not self.is_fast:
            return self._encode_by_library(texts)
        slices = [_split(text) for text in texts] if max(map(len, texts), default=0) > BLOCK_CHARACTERS else None
        blocks = _blocks(texts if slices is None else [part for parts in slices for part in parts])
        encoded = [self._encode_block(block) for block in blocks]
        if not encoded:
            return Encoded(np.empty(0, self.dtype), np.empty(0, np.int64))
        ids = np.concatenate([block.ids for block in encoded]) if len(encoded) > 1 else encoded[0].ids
        sizes = np.concatenate([block.sizes for block in encoded])
        if slices is not None:
            sizes = np.add.reduceat(sizes, np.cumsum([0, *map(len, slices[:-1])]))
        return Encoded(ids, sizes)

    def _encode_block(self, texts: list[str]) -> Encoded:
        block = "\n".join([*texts, ""])
        if block.count("\n") > len(texts):  # a line break inside a text is a blank
            block = "\n".join([*(text.replace("\n", " ") for text in texts), ""])
        if "\0" in block:  # keys are padded with it
            return self._encode_by_library(texts)
        text = b" " + block.encode() + _PADDING
        codes = np.frombuffer(text, np.uint8)
        starts, ends = self._bounds(codes, is_ascii=block.isascii())
        numbers = self._numbers_of(text, starts, ends - starts)
        known, begins, sizes = self._store.arrays()
        sizes = sizes[numbers]
        up_to = np.cumsum(np.append(0, sizes))
        ids = known[np.repeat(begins[numbers] - up_to[:-1], sizes) + np.arange(up_to[-1])]
        chunks_before = np.searchsorted(starts, np.flatnonzero(codes == _END))
        return Encoded(ids, np.diff(up_to[chunks_before], prepend=0))

    def _bounds(self, codes: np.ndarray, is_ascii: bool) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of each chunk in bytes, int64 [chunks]. ``codes``: uint8, the first is a blank."""
        kinds = _KINDS[codes]
        begins = kinds == _MARK  # where a chunk starts unless there is a blank
        begins[1:] |= kinds[:-1] != _OTHER
        if self._cuts_chinese and not is_ascii:
            chinese = _chinese_characters(codes)
            begins[chinese] = True
            begins[chinese + 3] = True
        no_blank = kinds != _BLANK
        ends = np.flatnonzero(no_blank[:-1] & (begins[1:] | ~no_blank[1:])) + 1
        begins &= no_blank
        return np.flatnonzero(begins), ends

    def _numbers_of(self, text: bytes, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Number of each chunk in the store, int64 [chunks]."""
        if len(self._store) > 2 * self._memo_entries or self._store.num_ids > STORED_IDS:
            for forgetful in (self._store, self._long_chunks, *self._tables):
                forgetful.clear()
        numbers, shorter = np.empty(len(starts), np.int64), 0
        for table in self._tables:
            fitting = np.flatnonzero((sizes > shorter) & (sizes <= 8 * table.width))
            numbers[fitting] = self._look_up(table, text, starts[fitting], sizes[fitting])
            shorter = 8 * table.width
        for chunk in np.flatnonzero(sizes > shorter).tolist():
            numbers[chunk] = self._look_up_long(text[starts[chunk] : starts[chunk] + sizes[chunk]].decode())
        return numbers

    def _look_up(self, table: ChunkTable, text: bytes, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Look up chunks that fit into ``table``; add new ones to it."""
        keys = keys_of(text, starts, sizes, table.width)
        numbers = table.find(keys)
        missing = np.flatnonzero(numbers == EMPTY)
        if not len(missing):
            return numbers
        bounds = zip(starts[missing].tolist(), (starts + sizes)[missing].tolist(), strict=True)
        chunks = [text[start:end] for start, end in bounds]
        new = {chunk: self._store.add(self._encode_chunk(chunk.decode())) for chunk in dict.fromkeys(chunks)}
        numbers[missing] = [new[chunk] for chunk in chunks]
        _, first = np.unique(numbers[missing], return_index=True)
        first = missing[first][: table.capacity]
        if len(table) + len(first) > table.capacity:
            table.clear()
        table.add([key[first] for key in keys], numbers[first])
        return numbers

    def _look_up_long(self, chunk: str) -> int:
        number = self._long_chunks.get(chunk, EMPTY)
        if number == EMPTY:
            number = self._store.add(self._encode_chunk(chunk))
            if len(chunk) <= LONGEST_CACHED:
                self._long_chunks[chunk] = number
        return number

    def _encode_chunk(self, chunk: str) -> list[int]:
        if chunk.isascii() and chunk.isalnum():
            normal = chunk.lower() if self._lower_case else chunk
        else:
            normal = self._normalize(chunk)
        if normal.isalnum():  # BertPreTokenizer would not divide it
            cut = self._longest_word or len(normal)
            words = (normal[start : start + cut] for start in range(0, len(normal), cut))
            return [piece.id for word in words for piece in self._model.tokenize(word)]
        return self.tokenizer.backend.encode(chunk, add_special_tokens=False).ids

    def _encode_by_library(self, texts: list[str]) -> Encoded:
        arrays = self.tokenizer.encode(texts)
        sizes = np.fromiter(map(len, arrays), np.int64, len(arrays))
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        return Encoded(ids.astype(self.dtype), sizes)


class _Store:
    """Ids of chunks by number."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self.clear()

    def clear(self) -> None:
        self._ids = array("H" if self.dtype.itemsize == 2 else "i")
        self._starts, self._sizes = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_ids(self) -> int:
        return len(self._ids)

    def add(self, ids: list[int]) -> int:
        """Add the ids of a chunk and return its number."""
        self._starts.append(len(self._ids))
        self._sizes.append(len(ids))
        self._ids.fromlist(ids)
        return len(self._sizes) - 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All ids, and the start and count of each chunk's. Drop the arrays before the next ``add``, which may move them."""
        return np.frombuffer(self._ids, self.dtype), np.frombuffer(self._starts, "q"), np.frombuffer(self._sizes, "q")


def _chinese_characters(codes: np.ndarray) -> np.ndarray:
    """Byte offsets of the characters from U+4E00 to U+9FFF, three bytes each in UTF-8: int64.

    These are nearly all that BertNormalizer treats as Chinese; the library splits around the others.
    """
    leads = np.flatnonzero((codes >= 0xE4) & (codes <= 0xE9))
    return leads[(codes[leads] > 0xE4) | (codes[leads + 1] >= 0xB8)]


def _split(text: str) -> list[str]:
    """Split a text at blanks into slices of about ``BLOCK_CHARACTERS``."""
    slices, start = [], 0
    while start < len(text):
        blank = _WHITE_SPACE.search(text, start + BLOCK_CHARACTERS)
        end = blank.end() if blank else len(text)
        slices.append(text[start:end])
        start = end
    return slices or [text]


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    """Group texts into lists of about ``BLOCK_CHARACTERS`` in all."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + BLOCK_CHARACTERS, side="right")))
        yield texts[start:end]
        start = end
