import numpy as np
import pytest

from mpnet_ds.word_boundaries import LONGEST_WORD, WordBoundaries


def words_of(pieces: str, words: WordBoundaries) -> list[str]:
    """Join pieces, written with ``|`` between them, to words."""
    pieces = pieces.split("|")
    begins = words.starts | np.append(True, words.ends[:-1])
    found: list[str] = []
    for piece, begin in zip(pieces, begins, strict=True):
        found += [piece] if begin else [found.pop() + piece]
    return found


def in_bytes(pieces: str) -> str:
    """Pieces as a byte-level tokenizer writes them."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "|".join(level.pre_tokenize_str(piece)[0][0] for piece in pieces.split("|"))


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param(" un|believ|ably| good", [" unbelievably", " good"], id="blanks"),
        pytest.param("re|d|\n|gre|en|\n\n|blue", ["red", "\n", "green", "\n\n", "blue"], id="one word a line"),
        pytest.param("on| the|\r\n|m|at|\t|x", ["on", " the", "\r\n", "mat", "\t", "x"], id="wrapped lines, tabulators"),
        pytest.param(
            "a|\u00a0|b|\u3000|c|\u2028|d", ["a", "\u00a0", "b", "\u3000", "c", "\u2028", "d"], id="other white space"
        ),
        pytest.param(" |long|ish|  | x", [" longish", "  ", " x"], id="a single blank belongs to the word after it"),
        pytest.param("(|f|oo|);|ba|r|_|x", ["(", "foo", ");", "bar", "_", "x"], id="minified code"),
        pytest.param("今天|的|风|,|a|b|河|水", ["今天", "的", "风", ",", "ab", "河", "水"], id="Chinese"),
        pytest.param("か|ぎ|を|パン|ダー", ["か", "ぎ", "を", "パン", "ダー"], id="Japanese"),
        pytest.param("วัน|นี้|អាកាស|ນີ້|မြန်မာ", ["วัน", "นี้", "អាកាស", "ນີ້", "မြန်မာ"], id="scripts that need a dictionary"),
        pytest.param(" кош|ка| na|ïve| 한국|말| मे|ं", [" кошка", " naïve", " 한국말", " में"], id="scripts with blanks"),
        pytest.param("می|\u200c|روم", ["می\u200cروم"], id="a joiner divides no word"),
    ],
)
@pytest.mark.parametrize("blank", ["Ġ", "▁"])
def test_words_end_at_white_space_punctuation_and_characters_of_scripts_without_blanks(pieces, expected, blank):
    written = in_bytes(pieces) if blank == "Ġ" else pieces.replace(" ", "▁")
    found = words_of(written, WordBoundaries.of_marked(written.split("|"), blank))
    assert found == [in_bytes(word) if blank == "Ġ" else word.replace(" ", "▁") for word in expected]


@pytest.mark.parametrize(("character", "is_boundary"), [("今", True), ("é", False), ("，", True), ("อ", True), ("क", False)])
def test_pieces_that_cut_a_character_begin_words_by_its_first_bytes(character, is_boundary):
    first, *rest = in_bytes(character)
    words = WordBoundaries.of_marked([in_bytes(character), first + rest[0], "".join(rest[1:]) or "x", first, *rest], "Ġ")
    assert words.starts[:2].tolist() == [is_boundary, is_boundary]
    assert not words.starts[4:].any()
    assert words.ends.tolist() == [is_boundary, is_boundary and not rest[1:]] + [False] * (len(words.ends) - 2)


def test_byte_fallback_pieces_are_bytes():
    words = WordBoundaries.of_marked(["<0xE4>", "<0xBB>", "<0x8A>", "<0x0A>", "<0x41>"], "▁")
    assert words.starts.tolist() == [True, False, False, True, False]
    assert words.ends.tolist() == [False, False, False, True, False]


def test_in_wordpiece_pieces_of_scripts_without_blanks_begin_words():
    words = WordBoundaries.of_wordpiece(["the", "##ing", "วัน", "##นี้", "か", "##ぎ", "##€", "##1"])
    assert words.starts.tolist() == [True, False, True, True, True, True, False, False]
    assert not words.ends.any()


def test_tokens_in_no_word_are_counted():
    words = WordBoundaries.of_wordpiece(["the", "##a", "วัน"])
    longest = [0] + [1] * (LONGEST_WORD - 1)
    assert words.count_indivisible(np.array([], dtype=np.uint16)) == 0
    assert words.count_indivisible(np.array([*longest, *longest])) == 0
    assert words.count_indivisible(np.array([1, *longest[1:], 1, *longest, 2, 0])) == LONGEST_WORD + 2
