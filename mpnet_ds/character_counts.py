"""The characters of a corpus as BERT's normalisation leaves them: counts, what is lost, words that are too long.

Normalisation works character by character, so all of this follows from how often each character occurs: one pass over the
corpus in NumPy, with memory for one number per code point.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import normalizers, pre_tokenizers

from mpnet_ds.machine import percent

LONGEST_WORDPIECE_WORD = 100
"""Characters. WordPiece makes one unknown token of a longer word."""
_CODE_POINTS = 0x110000
_AT_ONCE = 1 << 20  # characters
_UNSEEN = -1
_EXAMPLES = 5


class CharacterCounts:
    """Counts of ``texts``, each read once.

    ``normalizer``: settings of BERT's normalisation, as in tokenizer.json; None: characters are counted as they are.
    """

    def __init__(self, texts: Iterable[str], normalizer: dict | None):
        self._normalize = self._with_accents = str
        if normalizer is not None:
            self._normalize = normalizers.BertNormalizer(**normalizer).normalize_str
            self._with_accents = normalizers.BertNormalizer(**normalizer | {"strip_accents": False}).normalize_str
        self._divide = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
        self._counts = np.zeros(_CODE_POINTS, dtype=np.int64)
        self._sizes = np.full(_CODE_POINTS, _UNSEEN, dtype=np.int8)  # normalised, in a word
        self._divides, self._is_inside = np.zeros((2, _CODE_POINTS), dtype=bool)  # a word: divides words, follows in one
        self.in_long_words = 0
        """Characters in words of more than ``LONGEST_WORDPIECE_WORD``."""
        self._num_words = self._in_words = 0
        self.num_read = 0
        """Characters in all, white space included."""
        for text in _joined(texts):
            self._add(text)
        self.characters: Counter[str] = Counter()
        """Occurrences of each normalised character that is not white space."""
        self.inside_words: set[str] = set()
        """Characters that follow another one in a word."""
        for code in np.flatnonzero(self._counts).tolist():
            for normal in self._normalize(chr(code)).split():
                self.inside_words.update(normal if self._is_inside[code] else normal[1:])
                for char in normal:
                    self.characters[char] += int(self._counts[code])

    def _add(self, text: str) -> None:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        counts = np.bincount(codes, minlength=_CODE_POINTS)
        for code in np.flatnonzero((counts > 0) & (self._sizes == _UNSEEN)).tolist():
            self._divides[code] = len(self._divide(self._normalize(f"a{chr(code)}a"))) > 1
            self._sizes[code] = 0 if self._divides[code] else len(self._normalize(chr(code)))
        self._counts += counts
        self.num_read += len(text)
        sizes, divides = self._sizes[codes], self._divides[codes]
        ends = np.cumsum(sizes, dtype=np.int64)
        words = np.diff(ends[divides], prepend=0, append=ends[-1])
        self._num_words += np.count_nonzero(words)
        self._in_words += int(ends[-1])
        self.in_long_words += int(words[words > LONGEST_WORDPIECE_WORD].sum())
        word_starts = np.maximum.accumulate(np.where(divides, ends, 0))
        self._is_inside[codes[ends - sizes > word_starts]] = True

    @property
    def total(self) -> int:
        """Normalised characters that are not white space."""
        return self.characters.total()

    @property
    def mean_word(self) -> float:
        """Characters of a word on average, long ones cut; at least 1."""
        num_words = self._num_words + self.in_long_words // LONGEST_WORDPIECE_WORD
        return max(self._in_words / max(num_words, 1), 1.0)

    def covering(self, share: float) -> list[str]:
        """Return the most frequent characters that make ``share`` of the text, sorted by code point."""
        ordered = sorted(self.characters.items(), key=lambda item: (-item[1], item[0]))
        before = np.cumsum([0, *(count for _, count in ordered)])[:-1]
        return sorted(char for (char, _), seen in zip(ordered, before.tolist(), strict=True) if seen < share * self.total)

    def losses(self) -> Iterator[str]:
        """Describe what normalisation changes beyond case, and what it removes: share of the characters, and examples."""
        marks, removed = Counter(), Counter()
        for code in np.flatnonzero(self._counts).tolist():
            char, count = chr(code), int(self._counts[code])
            kept = self._with_accents(char)
            if not kept:
                removed[f"U+{code:04X} {unicodedata.name(char, '')}".strip()] = count
            elif (left := self._normalize(char)) != kept:
                marks[f"{char}→{'+'.join(left)}" if left else f"◌{char}"] = count
        size = self.total + marks.total() + removed.total()
        if marks:
            yield (
                f"Without accents, {percent(marks.total(), size)} of the characters lose marks or come apart "
                f"({_examples(marks)}): --keep_accents keeps them, --cased keeps capital letters too."
            )
        if removed:
            yield f"BERT's normalisation removes {percent(removed.total(), size)} of the characters ({_examples(removed)})."


def describe_characters(characters: Counter, size: int) -> str:
    """Share of some characters in a text of ``size``, with examples."""
    return f"{percent(characters.total(), size)} of the text ({_examples(characters)})"


def _examples(counts: Counter) -> str:
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_EXAMPLES]
    more = ", …" if len(counts) > len(shown) else ""
    return ", ".join(f"{name} {count:,}×" for name, count in shown) + more


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Join texts by line breaks to about ``_AT_ONCE`` characters."""
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size > _AT_ONCE:
            yield "\n".join([*some, ""])
            some, size = [], 0
    if some:
        yield "\n".join([*some, ""])
