"""Text to ids, fast: the ids of Hugging Face's tokenizers, mostly without asking it.

WordPiece is local to a chunk between two blanks: nothing beyond it changes its ids (BertNormalizer and BertPreTokenizer
work character by character, and neither joins over white space). So a block of some megabytes goes

    text ──► chunks ──► the distinct ones, numbered ──► ids of each distinct one, from a memo ──► ids in order
             (Arrow)    (Arrow's hash table)            (a dictionary; the library when it is new)  (NumPy)

and Python's work is proportional to the distinct chunks of a block, a tenth of all. A chunk that is new is cut at ASCII
punctuation, which BertPreTokenizer isolates, and at Chinese characters, which BertNormalizer does, and each word of it
has a memo of its own. What remains is asked of the library: a word that is nothing but letters and digits after its
normalisation goes to its WordPiece model directly, all others take its whole way.

Both memos are bounded: when one is full it becomes the old generation, and what is still in use comes back from there.

Tokenizers of another kind (BPE, Unigram) are not local in this sense; their texts go to the library as they are.
"""

import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mpnet_ds.data.token_file import token_dtype
from mpnet_ds.tokenizer import PretrainingTokenizer

MEMO_ENTRIES = 1 << 19
LONGEST_REMEMBERED = 48  # characters; longer chunks hardly come twice
BLOCK_CHARACTERS = 1 << 22
_END = "\n"  # between texts; a text's own line ends become blanks first
_BLANK = re.compile("[ \n]")
_PUNCTUATION = r"!-/:-@\[-`{-~"
_CHINESE = (  # what BertNormalizer takes for Chinese characters
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)


@dataclass(frozen=True)
class Encoded:
    """Ids of several texts."""

    ids: np.ndarray
    """uint16 or int32 [tokens], end to end."""
    sizes: np.ndarray
    """int64 [texts]: tokens in each."""


class TextEncoder:
    """Encodes as ``PretrainingTokenizer.encode`` does, a block at a time.

    ``is_fast`` tells whether the memo serves this tokenizer.
    """

    def __init__(self, tokenizer: PretrainingTokenizer, memo_entries: int = MEMO_ENTRIES):
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._code = "H" if self.dtype.itemsize == 2 else "i"
        self.is_fast = tokenizer.is_local
        self._words = _Memo(self._encode_word, memo_entries)
        self._chunks = _Memo(self._encode_chunk, memo_entries)
        normalizer = tokenizer.backend.normalizer
        chinese = _CHINESE if self.is_fast and normalizer.handle_chinese_chars else ""
        self._lower_case = self.is_fast and normalizer.lowercase
        self._split = re.compile(f"[{_PUNCTUATION}{chinese}]|[^{_PUNCTUATION}{chinese}]+")
        self._model = tokenizer.backend.model
        self._normalize = normalizer.normalize_str if self.is_fast else None

    def encode(self, texts: list[str]) -> Encoded:
        """Ids of each text, without ``<s>`` and ``</s>``."""
        if not self.is_fast:
            return self._encode_by_library(texts)
        slices = [_cut(text) for text in texts] if any(len(text) > BLOCK_CHARACTERS for text in texts) else None
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
        block = f" {_END} ".join([*texts, ""])
        if block.count(_END) > len(texts):  # a line end within a text
            block = f" {_END} ".join([*(text.replace(_END, " ") for text in texts), ""])
        chunks = pc.split_pattern(pa.array([block], pa.large_string()), " ").flatten().dictionary_encode()
        codes = chunks.indices.to_numpy()
        distinct = chunks.dictionary.to_pylist()
        end_code = distinct.index(_END)
        distinct[end_code] = ""
        known = list(map(self._chunks.__getitem__, distinct))
        table = np.frombuffer(b"".join(known), self.dtype)
        table_sizes = np.fromiter(map(len, known), np.int64, len(known)) // self.dtype.itemsize
        table_starts = np.cumsum(table_sizes) - table_sizes
        sizes = table_sizes[codes]
        ends = np.cumsum(sizes)
        ids = table[np.repeat(table_starts[codes] - (ends - sizes), sizes) + np.arange(ends[-1])]
        return Encoded(ids, np.diff(ends[codes == end_code], prepend=0))

    def _encode_chunk(self, chunk: str) -> bytes:
        if chunk.isalnum() and chunk.isascii():
            return self._words[chunk]
        if len(chunk) <= BLOCK_CHARACTERS >> 6:
            return b"".join(map(self._words.__getitem__, self._split.findall(chunk)))
        words = (match.group() for match in self._split.finditer(chunk))  # one at a time: perhaps a whole book in Chinese
        return b"".join(map(self._words.__getitem__, words))

    def _encode_word(self, word: str) -> bytes:
        if word.isascii() and word.isalnum():
            normal = word.lower() if self._lower_case else word
        else:
            normal = self._normalize(word)
        if normal.isalnum():  # BertPreTokenizer would not cut it
            return array(self._code, [piece.id for piece in self._model.tokenize(normal)]).tobytes()
        return array(self._code, self.tokenizer.backend.encode(word, add_special_tokens=False).ids).tobytes()

    def _encode_by_library(self, texts: list[str]) -> Encoded:
        arrays = self.tokenizer.encode(texts)
        sizes = np.fromiter(map(len, arrays), np.int64, len(arrays))
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        return Encoded(ids.astype(self.dtype), sizes)


class _Memo(dict):
    """``memo[text]`` is ``compute(text)``, remembered for the texts that were in use lately."""

    def __init__(self, compute: Callable[[str], bytes], limit: int):
        self._compute, self._limit, self._old = compute, limit, {}

    def __missing__(self, text: str) -> bytes:
        value = self._old.get(text)
        if value is None:
            value = self._compute(text)
        if len(text) <= LONGEST_REMEMBERED:
            if len(self) >= self._limit:
                self._old = dict(self)
                self.clear()
            self[text] = value
        return value


def _cut(text: str) -> list[str]:
    """The text in slices of about ``BLOCK_CHARACTERS`` that end at blanks."""
    slices, start = [], 0
    while start < len(text):
        blank = _BLANK.search(text, start + BLOCK_CHARACTERS)
        end = blank.end() if blank else len(text)
        slices.append(text[start:end])
        start = end
    return slices or [text]


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    """Lists of texts of about ``BLOCK_CHARACTERS`` together."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + BLOCK_CHARACTERS, side="right")))
        yield texts[start:end]
        start = end
