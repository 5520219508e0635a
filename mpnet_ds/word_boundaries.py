"""Where words begin and end, told from the pieces of a vocabulary: tables by id, so that a batch costs one look-up.

A token begins a word if its piece begins with white space, punctuation, a symbol, or a character of a script that is written
without blanks, or if the piece before it ends with one: ``▁the``, ``Ġthe``, ``\\n``, ``(``, ``今``. In WordPiece, ``##``
says that a piece continues a word, and BertPreTokenizer has separated all of these except the scripts without blanks.

Pieces of byte-level tokenizers may begin or end inside a character. Then their bytes must tell: ``E4 BB`` can only begin a
Chinese character; a piece that begins inside a character begins no word.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LONGEST_WORD = 16
"""Tokens. What has more between two boundaries is not a word that whole-word masking could use: DNA, a hex dump, Thai."""
CONTINUATION = "##"
_UNSEGMENTED = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI LUE ")  # only a dictionary finds their words
_WITHOUT_BLANKS = (*_UNSEGMENTED, "CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO ", "YI ")
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a piece of tokenizers with byte fallback


@dataclass(frozen=True)
class WordBoundaries:
    """What each piece of a vocabulary says about words, bool [V] each."""

    starts: np.ndarray
    """A word begins with this piece."""
    ends: np.ndarray
    """A word begins with whatever follows this piece."""
    unsegmented: np.ndarray
    """The piece is of a script whose words only a dictionary could find."""

    @classmethod
    def of_wordpiece(cls, pieces: Iterable[str]) -> "WordBoundaries":
        """Tables of a WordPiece vocabulary."""
        continues = np.array([piece.startswith(CONTINUATION) for piece in pieces])
        first = [piece.removeprefix(CONTINUATION)[:1] for piece in pieces]
        return cls(
            starts=~continues | np.array([_is_written_without_blanks(char) for char in first]),
            ends=np.zeros(len(continues), dtype=bool),
            unsegmented=np.array([_is_unsegmented(char) for char in first]),
        )

    @classmethod
    def of_marked(cls, pieces: Iterable[str], blank: str) -> "WordBoundaries":
        """Tables of a BPE or Unigram vocabulary in which ``blank`` is a blank: ``Ġ`` (bytes) or ``▁``."""
        surfaces = [_bytes_of(piece, blank) for piece in pieces]
        first = [_first_characters(surface) for surface in surfaces]
        return cls(
            starts=np.array([any(map(_is_boundary, chars)) for chars in first]),
            # A single blank may be the first piece of the word that follows it.
            ends=np.array([surface != b" " and _is_boundary(_last_character(surface)) for surface in surfaces]),
            unsegmented=np.array([any(map(_is_unsegmented, chars)) for chars in first]),
        )

    def count_indivisible(self, ids: np.ndarray) -> int:
        """Count the tokens of a text that are in no word: unsegmented, or in one of more than ``LONGEST_WORD`` tokens."""
        unsegmented = np.count_nonzero(self.unsegmented.take(ids)) if self.unsegmented.any() else 0
        starts = self.starts.take(ids)
        if self.ends.any():
            starts[1:] |= self.ends.take(ids[:-1])
        sizes = sizes_if_long(starts)
        return int(unsegmented + sizes[sizes > LONGEST_WORD].sum())


def sizes_if_long(starts: np.ndarray) -> np.ndarray:
    """Sizes of all words, int64, or none if no word is longer than ``LONGEST_WORD``, which costs less to find out.

    ``starts``: bool [tokens]; the first token is taken for a start.
    """
    eights = starts[: starts.size // 8 * 8].view(np.uint64)
    if eights.all():  # a start among each eight
        return np.empty(0, np.int64)
    return np.diff(np.flatnonzero(starts[1:]) + 1, prepend=0, append=starts.size)


def _bytes_of(piece: str, blank: str) -> bytes:
    """Bytes of text that a piece stands for."""
    if blank == "Ġ":
        table = _byte_of_character()
        return b"".join(bytes([table[char]]) if char in table else char.encode() for char in piece)
    if found := _BYTE.fullmatch(piece):
        return bytes.fromhex(found[1])
    return piece.replace(blank, " ").encode("utf-8", "surrogatepass")


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """Byte of each character in the pieces of byte-level tokenizers, which show no control characters or blanks."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _first_characters(surface: bytes) -> str:
    """First character; if it is not complete, the first and last of those that it could become."""
    size = _size_of_character(surface[:1])
    head = surface[:size]
    fills = (b"\x80", b"\xbf") if len(head) < size else (b"",)
    return "".join((head + fill * (size - len(head))).decode("utf-8", "ignore") for fill in fills)


def _last_character(surface: bytes) -> str:
    """Last character, or nothing if it is not complete or begins before the piece."""
    for at in range(len(surface) - 1, max(len(surface) - 5, -1), -1):
        size = _size_of_character(surface[at : at + 1])
        if size:
            return surface[at:].decode("utf-8", "ignore") if at + size == len(surface) else ""
    return ""


def _size_of_character(lead: bytes) -> int:
    """Bytes of a character by its first; 0 for a byte inside a character."""
    byte = lead[0] if lead else 0x80
    return 1 if byte < 0x80 else 0 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@lru_cache(maxsize=1 << 16)
def _is_boundary(char: str) -> bool:
    """Whether words end before and after a character."""
    if not char:
        return False
    category = unicodedata.category(char)
    return category[0] in "ZPS" or category == "Cc" or _is_written_without_blanks(char)


def _is_written_without_blanks(char: str) -> bool:
    return char != "" and unicodedata.name(char, "").startswith(_WITHOUT_BLANKS)


def _is_unsegmented(char: str) -> bool:
    return char != "" and unicodedata.name(char, "").startswith(_UNSEGMENTED)
