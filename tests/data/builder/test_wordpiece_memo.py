"""The fast encoder gives the ids of Hugging Face's tokenizers, text by text."""

import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from mpnet_ds.data.builder import wordpiece_memo as encode_module
from mpnet_ds.data.builder.wordpiece_memo import TextEncoder
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.tokenizer_training import train_tokenizer

ODD = [
    "\x00", "\x01", "\x0b", "\x0c", "\x1c", "\x7f", "\x85", "\xa0", "\xad", "\u0301", "\u0345", "\u200b", "\u200d", "\u2028",
    "\u3000", "\ufeff", "\ufffd", "\ue000", "\U000e0001", "\t", "\r", "\n", "  ", "##ing", "<mask>", "</s>", "<s>", "[UNK]",
    "[MASK]", "don't", "e.g.", "x" * 99, "y" * 100, "z" * 101, "日本語", "漢字かな交じり文", "中文，标点。",
    "한국어", "ไทยไม่มีช่องว่าง", "naïve café", "İstanbul", "ΣΊΣΥΦΟΣ", "Straße", "ﬁne", "①", "½", "😀", "👩‍👩‍👧", "🇯🇵",
    "≠", "؟", "،", "।", "—", "“quoted”", "´", "ǅ", "A\u030a", "\u1100\u1161",
]  # fmt: skip


def assert_same_ids(encoder, texts):
    encoded = encoder.encode(texts)
    expected = encoder.tokenizer.encode(texts)
    assert encoded.ids.dtype == encoder.dtype
    assert encoded.sizes.tolist() == [len(ids) for ids in expected]
    np.testing.assert_array_equal(encoded.ids, np.concatenate([*expected, np.empty(0, np.int32)]))


@pytest.fixture(scope="module", params=["lower case", "cased"])
def encoder(request, corpus_files, tokenizer):
    if request.param == "lower case":
        return TextEncoder(tokenizer)
    return TextEncoder(train_tokenizer([*corpus_files.documents[:200], *ODD], 1500, lower_case=False))


def source_files():
    for folder, folders, names in os.walk(Path(np.__file__).parents[1]):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def real_text(num_bytes):
    """Lines of the source files of the installed packages: English, code, tables, and many other scripts."""
    total = 0
    for path in source_files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        total += len(text.encode())
        yield from text.split("\n")
        if total > num_bytes:
            return
    pytest.fail(f"only {total:,} bytes of text are installed")


def disturbed(lines):
    """The lines, with odd characters and words put somewhere into one of four."""
    chance = random.Random(0)
    for line in lines:
        if chance.random() < 0.25:
            for _ in range(chance.randint(1, 3)):
                at = chance.randint(0, len(line))
                line = line[:at] + chance.choice(ODD) + line[at:]
        yield line.replace("\n", " ")


@pytest.mark.parametrize("mebibytes", [1, pytest.param(50, marks=pytest.mark.long)])
def test_much_real_text_with_odd_characters_has_the_librarys_ids(tokenizer, mebibytes):
    encoder = TextEncoder(tokenizer, memo_entries=10_000)
    total, texts, size = 0, [], 0
    for line in disturbed(real_text(mebibytes << 20)):
        texts.append(line)
        size += len(line.encode())
        if size > 1 << 19:
            assert_same_ids(encoder, texts)
            total, texts, size = total + size, [], 0
    assert total > (mebibytes << 20) // 2


characters = st.one_of(st.characters(codec="utf-8"), st.sampled_from(" .,-'aeiouAEIOUäé1"), st.sampled_from(ODD))


@settings(max_examples=100)
@given(st.lists(st.lists(characters, max_size=15).map("".join), max_size=6))
def test_any_texts_have_the_librarys_ids(encoder, texts):
    assert_same_ids(encoder, texts)


def test_every_character_alone_and_between_letters_has_the_librarys_ids(encoder):
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    edges = [0x3400, 0x4DBF, 0x4E00, 0x5000, 0x9FFF, 0xF900, 0xFAFF, 0x20000, 0x2A6DF, 0x2A700, 0x2B81F, 0x2CEAF, 0x2F800]
    chosen = every[:0x3400] + every[0x3400::397] + [chr(edge + offset) for edge in edges for offset in (-1, 0, 1)]
    assert_same_ids(encoder, chosen)
    assert_same_ids(encoder, [f"ab{character}cd" for character in chosen])


def test_a_full_memo_forgets_without_a_difference(encoder, corpus_files):
    forgetful = TextEncoder(encoder.tokenizer, memo_entries=7)
    for _ in range(2):
        assert_same_ids(forgetful, corpus_files.documents[:40])


def test_long_texts_are_encoded_in_slices(encoder, corpus_files, monkeypatch):
    monkeypatch.setattr(encode_module, "BLOCK_CHARACTERS", 300)
    texts = [" ".join(corpus_files.documents[:30]), "", "short", "漢字" * 400, *corpus_files.documents[30:40], "w" * 1000]
    assert max(map(len, texts)) > 3000
    assert_same_ids(encoder, texts)


def test_no_texts_have_no_ids(encoder):
    for texts in ([], [""], ["", "\x01", " "]):
        encoded = encoder.encode(texts)
        assert (encoded.ids.size, encoded.sizes.tolist()) == (0, [0] * len(texts))


def test_a_corpus_that_spells_special_tokens_yields_none_of_their_ids(encoder):
    encoded = encoder.encode(["a <mask> b</s><s> <pad> <unk> [UNK]", "<mask>", "</s>"])
    special = set(encoder.tokenizer.special_ids.tolist()) - {encoder.tokenizer.backend.token_to_id("[UNK]")}
    assert not special & set(encoded.ids.tolist())


def byte_level():
    letters = pre_tokenizers.ByteLevel.alphabet()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(letters), "<mask>"]
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return backend


def unigram():
    pieces = [("<s>", 0), ("<pad>", 0), ("</s>", 0), ("<unk>", -9), ("▁", -2), ("▁the", -3), ("e", -4), ("n", -4)]
    backend = tokenizers.Tokenizer(models.Unigram([*pieces, ("<mask>", 0)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_tokenizers_of_another_kind_are_served_by_the_library(make, corpus_files):
    backend = make()
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<mask>"])
    encoder = TextEncoder(PretrainingTokenizer(backend, make.__name__))
    assert not encoder.is_fast
    assert_same_ids(encoder, corpus_files.documents[:20])


def test_added_tokens_that_text_may_match_are_left_to_the_library(tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_tokens([AddedToken("new york", normalized=True)])
    encoder = TextEncoder(PretrainingTokenizer(backend, "with an added token"))
    assert not encoder.is_fast
    assert_same_ids(encoder, ["in New York", "new york"])


def test_normalisation_that_the_tokenizer_has_switched_off_is_not_done(tokenizer):
    for options in ({"handle_chinese_chars": False}, {"clean_text": False}, {"strip_accents": False}, {"lowercase": False}):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.normalizer = normalizers.BertNormalizer(**options)
        encoder = TextEncoder(PretrainingTokenizer(backend, str(options)))
        assert encoder.is_fast
        assert_same_ids(encoder, [f"ab{odd}cd Été" for odd in ODD])


def test_memory_of_the_memo_is_bounded(tokenizer):
    encoder = TextEncoder(tokenizer, memo_entries=1000)
    encoder.encode(["begin"])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for start in range(0, 16_000, 2000):
        encoder.encode([" ".join(f"{'long' * (i % 9)}word{i}" for i in range(start, start + 2000))])
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1 << 19  # 2 entries for each of these words would take twice as much
