"""A new vocabulary: rows of shared pieces are kept, the others follow the stated rule, and nothing else moves."""

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from mpnet_ds.errors import UserError
from mpnet_ds.hub.import_model import make_start
from mpnet_ds.hub.resize_vocabulary import plan_rows
from mpnet_ds.tokenizer import PretrainingTokenizer
from tests.checkpoint.models import loaded, random_model, saved

FIRST = ["<s>", "<pad>", "</s>", "<unk>"]
TABLE, BIAS = "mpnet.embeddings.word_embeddings.weight", "lm_head.bias"


def tokenizer_of(pieces: list[str], unknown: str = "[UNK]", lower_case: bool = True) -> PretrainingTokenizer:
    """A WordPiece tokenizer with MPNet's layout; the unknown piece stands where ``pieces`` has it, or behind them."""
    pieces = [*FIRST, *pieces, *([] if unknown in [*FIRST, *pieces] else [unknown]), "<mask>"]
    backend = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PretrainingTokenizer(backend, "the test's")


OLD = ["[UNK]", "un", "do", "##do", "##ing", "the", "##s", "中", "e", "##e"]
NEW = ["the", "undo", "##doing", "doing", "xyz", "##xyz", "The", "É", "##É", "中中", "##s", "[UNK]"]


def resized(tmp_path, old: PretrainingTokenizer, new: PretrainingTokenizer):
    """(old model's tensors, start's tensors with rows named by their pieces, what was noted)."""
    model = random_model(vocab_size=old.vocab_size)
    new.save(tmp_path / "tokenizer")
    made = make_start(tmp_path / "start", saved(model, tmp_path / "source", old), resize_to=tmp_path / "tokenizer")
    return model.state_dict(), loaded(tmp_path / "start"), made.notes


def test_each_rule_gives_the_row_that_it_states(tmp_path):
    old, new = tokenizer_of(OLD), tokenizer_of(NEW, lower_case=False)
    before, after, notes = resized(tmp_path, old, new)
    assert notes == ("15 → 17 pieces: 8 rows kept, 7 composed of the old pieces, 2 the mean of all.",)
    ordinary = [old.pieces.index(piece) for piece in OLD if piece != "[UNK]"]
    expected = {piece: [piece] for piece in [*FIRST, "<mask>", "[UNK]", "the", "##s"]}
    expected |= {"undo": ["un", "##do"], "##doing": ["##do", "##ing"], "doing": ["do", "##ing"]}
    expected |= {"The": ["the"], "É": ["e"], "##É": ["##e"], "中中": ["中", "中"]}
    for row, piece in enumerate(new.pieces):
        sources = [old.pieces.index(source) for source in expected[piece]] if piece in expected else ordinary
        for name in (TABLE, BIAS):
            mean = before[name][sources].mean(dim=0)
            torch.testing.assert_close(after[name][row], mean, atol=1e-6, rtol=0, msg=f"{piece} of {name}")
            assert len(sources) > 1 or torch.equal(after[name][row], mean), piece


def test_all_other_tensors_are_bit_identical_and_the_tokenizer_is_the_new_one(tmp_path):
    old, new = tokenizer_of(OLD), tokenizer_of(NEW)
    before, after, _ = resized(tmp_path, old, new)
    others = before.keys() - {TABLE, BIAS, "lm_head.decoder.weight", "lm_head.decoder.bias"}
    assert len(others) > 30
    assert all(torch.equal(after[name], before[name]) for name in others)
    assert PretrainingTokenizer.load(tmp_path / "start").fingerprint == new.fingerprint


def test_special_tokens_go_by_what_they_do(tmp_path):
    old, new = tokenizer_of(OLD), tokenizer_of(["the"], unknown="<unk>")
    rows = plan_rows(old, new)
    assert rows.sources == [[0], [1], [2], [old.pieces.index("[UNK]")], [old.pieces.index("the")], [old.mask_id]]
    assert (rows.kept, rows.composed, rows.mean) == (6, 0, 0)


def test_its_own_vocabulary_changes_nothing(tokenizer):
    rows = plan_rows(tokenizer, tokenizer)
    assert rows.sources == [[i] for i in range(tokenizer.vocab_size)]
    assert rows.kept == tokenizer.vocab_size


words = st.text("abcé", min_size=1, max_size=5)


@given(st.sets(words, max_size=12), st.sets(words, max_size=12), st.sets(words, max_size=20), st.booleans())
def test_pieces_are_cut_as_the_old_tokenizer_cuts_words(starts, continuations, new_words, lower_case):
    # "q" begins a word and no other piece does so with q: what follows it in a word is cut as a continuation.
    old = tokenizer_of(["q", *sorted(starts), *(f"##{piece}" for piece in sorted(continuations))], lower_case=lower_case)
    new = tokenizer_of([*sorted(new_words), *(f"##{word}" for word in sorted(new_words))])
    unknown, rows = old.backend.token_to_id("[UNK]"), plan_rows(old, new)
    for piece, sources in zip(new.pieces, rows.sources, strict=True):
        if piece in old.pieces:
            assert sources == [old.pieces.index(piece)]
        elif piece.startswith("##"):
            cut = old.encode([f"q{piece.removeprefix('##')}"])[0].tolist()
            assert sources == ([] if unknown in cut else cut[1:])
        else:
            cut = old.encode([piece])[0].tolist()
            assert sources == ([] if unknown in cut else cut)
    assert rows.kept + rows.composed + rows.mean == new.vocab_size


def test_a_source_without_a_tokenizer_and_other_kinds_are_refused(tmp_path, tokenizer_folder, tokenizer):
    source = saved(random_model(), tmp_path / "source")
    with pytest.raises(UserError, match=r"has no tokenizer, so .* unknown.* --tokenizer DIR"):
        make_start(tmp_path / "start", source, resize_to=tokenizer_folder)
    make_start(tmp_path / "start", source, tokenizer=tokenizer_folder, resize_to=tokenizer_folder)
    with pytest.raises(UserError, match="has a tokenizer: leave --tokenizer out"):
        make_start(tmp_path / "again", tmp_path / "start", tokenizer=tokenizer_folder)
    pieces = {piece: i for i, piece in enumerate([*FIRST, "a", "<mask>"])}
    backend = tokenizers.Tokenizer(models.BPE(pieces, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(UserError, match="is BPE; --resize_vocabulary goes from WordPiece to WordPiece"):
        plan_rows(tokenizer, PretrainingTokenizer(backend, "another"))


def test_the_program_says_what_became_of_the_rows(tmp_path, tokenizer, program):
    source = saved(random_model(), tmp_path / "source", tokenizer)
    tokenizer_of(["return", "the"]).save(tmp_path / "tokenizer")
    what = ["--resize_vocabulary", tmp_path / "tokenizer", tmp_path / "start"]
    said = program("convert_from_hf", source, *what)
    assert "999 → 8 pieces: 8 rows kept, 0 composed of the old pieces, 0 the mean of all." in said.out
    assert f"--recipe RECIPE --init_from {tmp_path / 'start'}" in said.out
    assert said.err == ""
