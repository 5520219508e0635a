import json
import shutil
import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, MPNetTokenizer

from mpnet_ds.data.builder.wordpiece_memo import TextEncoder
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.tokenizer_training import train_tokenizer

TEXT = "Über the naïve Bäcker: unbelievably, 12.5 % of NASA's e-mails 日本 are running…"


@pytest.fixture
def edited(tokenizer_folder, tmp_path):
    """A function (edit): path of a tokenizer.json to whose content ``edit`` was applied."""

    def edit_copy(edit):
        content = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
        edit(content)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return edit_copy


def test_special_tokens_have_the_ids_of_mpnet_base(tokenizer):
    assert tokenizer.pieces[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.pieces[-1] == "<mask>"
    assert tokenizer.mask_id == tokenizer.vocab_size - 1
    assert len(set(tokenizer.pieces)) == tokenizer.vocab_size == 999
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, tokenizer.pieces.index("[UNK]"), tokenizer.mask_id]


@given(st.lists(st.sampled_from(["<mask>", "</s>", "<s>", "<pad>", "<unk>", "[UNK]", "##", "the", "x", " "])).map("".join))
def test_text_that_spells_special_tokens_gets_ordinary_pieces(tokenizer, text):
    (ids,) = tokenizer.encode([text])
    assert not np.isin(ids, tokenizer.special_ids).any()


def test_only_what_the_vocabulary_cannot_spell_is_unknown(tokenizer):
    unknown = tokenizer.pieces.index("[UNK]")
    before, after, strange = tokenizer.encode(["list of", "values", "list of ☃ values"])
    assert strange.tolist() == [*before, unknown, *after]
    assert strange.tolist().count(unknown) == 1


def test_encoding_adds_no_special_token_and_keeps_the_order_of_texts(tokenizer):
    several = tokenizer.encode(["the list", "", "a value of the list"])
    assert [tokenizer.backend.decode(ids) for ids in several] == ["the list", "", "a value of the list"]
    assert all(ids.dtype == np.int32 for ids in several)
    assert several[1].size == 0


def test_a_long_text_is_not_cut(tokenizer):
    once, often = tokenizer.encode(["the list", "the list " * 2000])
    assert len(often) == 2000 * len(once)


def test_starts_word_is_false_for_continuations_only(tokenizer):
    words = ["list", "unbelievably", "of", "zzqqx", "interpreters"]
    (ids,) = tokenizer.encode([" ".join(words)])
    starts = tokenizer.words.starts[ids]
    assert starts.sum() == len(words) < len(ids)
    parts = np.split(ids, np.flatnonzero(starts)[1:])
    assert ["".join(tokenizer.pieces[i].removeprefix("##") for i in part) for part in parts] == words
    assert tokenizer.words.starts.shape == (tokenizer.vocab_size,)


def test_the_folder_holds_what_both_generations_of_transformers_look_for(tokenizer_folder, tokenizer):
    names = {path.name for path in tokenizer_folder.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"}
    assert (tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").split("\n") == [*tokenizer.pieces, ""]
    assert json.loads((tokenizer_folder / "special_tokens_map.json").read_text())["mask_token"] == "<mask>"


@pytest.mark.parametrize("loader", [AutoTokenizer, MPNetTokenizer])
def test_transformers_gives_the_same_ids(tokenizer_folder, tokenizer, corpus_files, loader):
    theirs = loader.from_pretrained(tokenizer_folder)
    assert isinstance(theirs, MPNetTokenizer)
    texts = [TEXT, *corpus_files.documents[:50]]
    for text, ours in zip(texts, tokenizer.encode(texts), strict=True):
        assert theirs(text, truncation=False)["input_ids"] == [0, *ours.tolist(), 2]
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.unk_token) == (tokenizer.mask_id, 1, "[UNK]")
    assert theirs("a <mask> b")["input_ids"].count(tokenizer.mask_id) == 1


def test_transformers_gives_the_same_ids_for_a_cased_tokenizer(corpus_files, tmp_path, tokenizer):
    cased = train_tokenizer(corpus_files.documents, 800, lower_case=False)
    cased.save(tmp_path)
    for kind, count in ((tokenizer, 1), (cased, 3)):  # without --cased, as in BERT's uncased models, and with it
        assert len({tuple(ids.tolist()) for ids in kind.encode(["True", "true", "trüé"])}) == count
    for loader in (AutoTokenizer, MPNetTokenizer):
        assert (
            loader.from_pretrained(tmp_path)(TEXT, add_special_tokens=False)["input_ids"] == cased.encode([TEXT])[0].tolist()
        )


@pytest.mark.parametrize(("setting", "text"), [("strip_accents", TEXT), ("clean_text", "the\x00 list\u200b")])
def test_transformers_gives_the_same_ids_for_a_tokenizer_that_changes_less_text(edited, tmp_path, setting, text):
    changes_less = PretrainingTokenizer.load(edited(lambda content: content["normalizer"].update({setting: False})))
    changes_less.save(tmp_path / "saved")
    ours = changes_less.encode([text])[0].tolist()
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text, add_special_tokens=False)["input_ids"] == ours


def test_the_fingerprint_survives_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a")
    AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert len(tokenizer.fingerprint) == 64
    for folder in ("a", "b"):
        assert PretrainingTokenizer.load(tmp_path / folder).fingerprint == tokenizer.fingerprint
        assert PretrainingTokenizer.load(tmp_path / folder / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_truncation_and_padding_change_neither_the_fingerprint_nor_the_ids(tokenizer, edited):
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    other = PretrainingTokenizer.load(edited(lambda content: content.update(truncation=truncation, padding=padding)))
    assert other.fingerprint == tokenizer.fingerprint
    for text in ("the", TEXT):
        np.testing.assert_array_equal(other.encode([text])[0], tokenizer.encode([text])[0])
    switched_on_later = PretrainingTokenizer.load(edited(lambda content: None))
    switched_on_later.backend.enable_truncation(5)
    switched_on_later.backend.enable_padding(length=9)
    assert switched_on_later.fingerprint == tokenizer.fingerprint


def test_the_fingerprint_changes_with_whatever_cuts_text_differently(tokenizer, edited):
    def swap_two_pieces(content):
        vocabulary = content["model"]["vocab"]
        a, b = tokenizer.pieces[500], tokenizer.pieces[501]
        vocabulary[a], vocabulary[b] = 501, 500

    def keep_case(content):
        content["normalizer"]["lowercase"] = False

    fingerprints = {PretrainingTokenizer.load(edited(edit)).fingerprint for edit in (swap_two_pieces, keep_case)}
    assert len(fingerprints | {tokenizer.fingerprint}) == 3


def remove(piece):
    def edit(content):
        del content["model"]["vocab"][piece]
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != piece]

    return edit


def leave_a_gap(content):
    vocabulary = content["model"]["vocab"]
    last = max((piece for piece in vocabulary if piece != "<mask>"), key=vocabulary.get)
    vocabulary[last] = 5000


def swap_padding_and_end(content):
    content["model"]["vocab"].update({"<pad>": 2, "</s>": 1})
    content["added_tokens"] = []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(remove("<mask>"), "no '<mask>'", id="no mask"),
        pytest.param(remove("[UNK]"), r"no '\[UNK\]'", id="no unknown token"),
        pytest.param(swap_padding_and_end, "'<pad>' has id 2, MPNet needs 1", id="other layout"),
        pytest.param(leave_a_gap, "without gaps", id="ids with a gap"),
        pytest.param(lambda content: content["model"].update(continuing_subword_prefix="@@"), "@@", id="other continuation"),
    ],
)
def test_a_tokenizer_that_mpnet_cannot_use_is_refused_on_loading(edited, edit, message):
    path = edited(edit)
    with pytest.raises(UserError, match=message) as caught:
        PretrainingTokenizer.load(path)
    assert str(path) in str(caught.value)


def test_a_tokenizer_that_does_not_mark_words_is_refused(tmp_path):
    model = {"type": "BPE", "vocab": {"<s>": 0, "<pad>": 1, "</s>": 2}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(UserError, match="a BPE model without ByteLevel or Metaspace"):
        PretrainingTokenizer.load(tmp_path)


def byte_level_backend(texts=("the cat sat on the mat",) * 9):
    """RoBERTa's kind: the words of a few texts, in bytes."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=60, special_tokens=special))
    backend.add_special_tokens(["<mask>"])
    return backend


def unigram_backend():
    """XLM-RoBERTa's kind."""
    words = ["the", "cat", "sat", "on", "mat"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in words), "s", "▁", "<mask>"]
    backend = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return backend


@pytest.mark.parametrize("make", [byte_level_backend, unigram_backend])
def test_other_kinds_of_tokenizers_know_where_words_begin_and_come_back_from_a_folder(make, tmp_path):
    ours = PretrainingTokenizer(make(), make.__name__)
    (ids,) = ours.encode(["the cats <mask> </s> sat"])
    begins = [piece.startswith(("Ġ", "▁", *"</>")) for piece in np.array(ours.pieces)[ids]]
    assert ours.words.starts[ids].tolist() == begins
    assert 2 <= sum(begins) < len(begins)
    assert not {0, 1, 2, ours.mask_id} & set(ids.tolist())
    ours.save(tmp_path / "tokenizer")
    assert PretrainingTokenizer.load(tmp_path / "tokenizer").fingerprint == ours.fingerprint
    settings = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())  # as version 4 reads them
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert settings.get("add_prefix_space") is (True if make is byte_level_backend else None)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert (loaded.mask_token_id, loaded.pad_token_id) == (ours.mask_id, 1)
    assert loaded("the cat")["input_ids"][-2:] == ours.encode(["the cat"])[0].tolist()[-2:]


@pytest.mark.parametrize("make", [byte_level_backend, unigram_backend])
def test_other_kinds_of_tokenizers_know_what_is_unknown(make):
    ours = PretrainingTokenizer(make(), make.__name__)
    assert (ours.unknown, ours.unknown_id) == ("<unk>", 3)
    assert np.count_nonzero(ours.encode(["the \u732b"])[0] == 3)


@pytest.mark.parametrize(
    ("cut", "alphabet", "missing"),
    [
        (pre_tokenizers.ByteLevel, pre_tokenizers.ByteLevel.alphabet(), 0),
        (pre_tokenizers.ByteLevel, pre_tokenizers.ByteLevel.alphabet()[:-9], 9),
        (pre_tokenizers.Metaspace, pre_tokenizers.ByteLevel.alphabet(), 256),
    ],
)
def test_a_tokenizer_by_which_text_would_vanish_is_refused(cut, alphabet, missing):
    names = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>"]
    backend = tokenizers.Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    backend.pre_tokenizer = cut()
    if not missing:
        assert PretrainingTokenizer(backend, "x").encode(["\u732b"])[0].size == 4  # with a blank before it
        return
    with pytest.raises(UserError, match=f"x: text would vanish, since .* no pieces for {missing} of the 256 bytes"):
        PretrainingTokenizer(backend, "x")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe"])
def test_a_damaged_tokenizer_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        PretrainingTokenizer.load(tmp_path)


@pytest.mark.parametrize("change", [lambda text: text, lambda text: "\ufeff" + text.replace("\n", "\r\n") + "\r\n"])
def test_a_vocabulary_alone_is_a_tokenizer(tokenizer, tokenizer_folder, tmp_path, change):
    text = (tokenizer_folder / "vocab.txt").read_text(encoding="utf-8")
    (tmp_path / "vocab.txt").write_bytes(change(text).encode())
    for path in (tmp_path, tmp_path / "vocab.txt"):
        loaded = PretrainingTokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(loaded.encode([TEXT])[0], tokenizer.encode([TEXT])[0])


def test_a_vocabulary_alone_tells_by_its_pieces_whether_case_matters(tmp_path):
    texts = ["The True true the " * 9, "True"]
    cased = train_tokenizer(texts, 64, lower_case=False)
    cased.save(tmp_path / "saved")
    alone = shutil.copy(tmp_path / "saved" / "vocab.txt", tmp_path / "vocab.txt")
    assert PretrainingTokenizer.load(alone).fingerprint == cased.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\nb\n", "'<s>' has id 2, MPNet needs 0"), ("<s>\n<pad>\n<s>\n", "'<s>' is in it twice"), ("\0\udc80", "cannot be")],
)
def test_a_text_that_is_not_a_vocabulary_is_refused(tmp_path, text, message):
    (tmp_path / "vocab.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        PretrainingTokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"no tokenizer at {path}"):
            PretrainingTokenizer.load(path)


def test_training_refuses_too_small_a_vocabulary_and_an_empty_corpus():
    with pytest.raises(UserError, match="--vocab_size is 10; it must be"):
        train_tokenizer(["some text"], 10)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([" ", "\n"], 100)


def test_training_gives_no_more_pieces_than_asked_for(corpus_files):
    many_letters = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 300))
    texts = [*corpus_files.documents[:50], many_letters]
    for vocab_size in (100, 300):
        with pytest.raises(UserError, match=f"--vocab_size {vocab_size} is too small: the characters"):
            train_tokenizer(texts, vocab_size)
    assert train_tokenizer(texts, 600).vocab_size == 600


def test_a_corpus_may_end_with_a_large_document():
    assert "word" in train_tokenizer(["a", "word " * 250_000], 100).pieces


def test_a_small_corpus_yields_the_pieces_it_has():
    trained = train_tokenizer(["abc abd"], 5000)
    assert trained.vocab_size == len(trained.pieces) < 30
    assert trained.pieces[-1] == "<mask>"


@pytest.mark.parametrize("lower_case", [True, False])
def test_the_same_texts_give_the_same_tokenizer(corpus_files, lower_case):
    texts = [*corpus_files.documents[:100], "<s> <mask> [UNK] ## é 日本"]
    fingerprints = {train_tokenizer(texts, 500, lower_case).fingerprint for _ in range(3)}
    assert len(fingerprints) == 1


def test_texts_that_can_be_read_only_once_are_refused():
    with pytest.raises(TypeError, match="iterator"):
        train_tokenizer(iter(["some text"]), 100)


@pytest.mark.parametrize("pre_tokenizer", [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer()])
def test_text_never_gives_a_special_id_whatever_cuts_it(tokenizer, pre_tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.pre_tokenizer = pre_tokenizer
    (ids,) = PretrainingTokenizer(backend, "edited").encode(["a <mask> b </s> <s> <pad>"])
    assert not {0, 1, 2, tokenizer.mask_id} & set(ids.tolist())
    assert len(ids) > 2


def test_ordinary_added_tokens_are_kept_in_any_kind():
    backend = unigram_backend()
    backend.add_tokens(["new"])
    ours = PretrainingTokenizer(backend, "unigram")
    assert ours.encode(["the new mat"])[0].tolist() == backend.encode("the new mat", add_special_tokens=False).ids


def trained(texts, vocab_size=500, **settings):
    """A tokenizer, and all that was told while it was trained."""
    told = []
    return train_tokenizer(texts, vocab_size, **settings, tell=told.append), "\n".join(told)


@pytest.mark.parametrize(
    ("text", "settings", "shown"),
    [
        pytest.param("कुल की कल के", {}, ["22.2 % of the characters", "◌ु 1×", "--keep_accents", "--cased"], id="vowel signs"),
        pytest.param("パンダ ハンダ", {}, ["ダ→タ 2×, パ→ハ 1×"], id="voicing marks"),
        pytest.param("한국", {}, ["국→ᄀ+ᅮ+ᆨ"], id="Hangul"),
        pytest.param("Café tiếng Việt", {}, ["é→e 1×, ế→e 1×, ệ→e 1×"], id="accents"),
        pytest.param("שָׁלוֹם مَرْحَبًا", {}, ["◌َ 2×"], id="points and harakat"),
        pytest.param(
            "می\u200cروم",
            {"lower_case": False},
            ["removes 16.7 % of the characters (U+200C ZERO WIDTH NON-JOINER 1×)"],
            id="joiner",
        ),
        pytest.param(
            "ab\ue000c\xad", {"lower_case": False}, ["removes 40 %", "U+00AD SOFT HYPHEN", "U+E000"], id="soft hyphen"
        ),
    ],
)
def test_training_tells_which_characters_normalisation_takes(text, settings, shown):
    _, told = trained([text], **settings)
    for part in shown:
        assert part in told


@pytest.mark.parametrize(("text", "settings"), [("Plain text, nothing lost.", {}), ("मैं é Ab", {"lower_case": False})])
def test_training_tells_nothing_where_nothing_is_lost(text, settings):
    assert trained([text], **settings)[1] == ""


def test_lower_case_may_keep_accents(tmp_path):
    keeps, told = trained(["Ärger में Ab", "ärger"], keep_accents=True)
    assert told == ""
    assert "ärger" in keeps.pieces
    assert keeps.encode(["ÄRGER"])[0].tolist() == keeps.encode(["ärger"])[0].tolist() != keeps.encode(["arger"])[0].tolist()
    keeps.save(tmp_path)
    for loader in (AutoTokenizer, MPNetTokenizer):
        assert loader.from_pretrained(tmp_path)("ÄRGER", add_special_tokens=False)["input_ids"] == [
            keeps.pieces.index("ärger")
        ]


NOISE = "".join(chr(0x4E00 + i) for i in range(300))


def test_rare_characters_get_no_pieces():
    texts = ["the cat sat on the mat"] * 1000 + [NOISE]
    everything, told = trained(texts, character_coverage=1)
    assert set(NOISE) < set(everything.pieces)
    assert "Warning: 314 pieces of the 500 are single characters" in told
    frequent, told = trained(texts, vocab_size=64, character_coverage=0.98)
    assert not set(NOISE) & set(frequent.pieces)
    assert "300 of 309 characters get no piece and become [UNK]: the rarest, 1.73 % of the text (一 1×, " in told
    with pytest.raises(
        UserError, match=r"vocab_size 64 .* alone need 3\d\d \(--character_coverage 0\.9995\).*or --character_coverage 0\.98"
    ):
        trained(texts, vocab_size=64)


def test_few_characters_all_get_pieces_however_rare():
    tokenizer, told = trained(["the cat sat on the mat"] * 1000 + ["why?"])
    assert "?" in tokenizer.pieces
    assert told == ""


def test_pieces_are_learned_from_a_sample_that_the_seed_decides():
    texts = [f"word{number}" for number in range(2000)]
    (first, told), (again, _), (other, _) = (trained(texts, 300, sample=2000, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert "Pieces were learned from 11" in told
    assert {*"wordn0123456789"} - {"n"} <= set(first.pieces)


def test_a_sample_of_one_long_document_is_a_part_of_it():
    text = " ".join(f"word{number % 100}" for number in range(100_000))
    assert "word" in trained([text], 300, sample=len(text) // 2)[0].pieces


def test_a_sample_without_any_text_is_said():
    assert "--sample takes 0.2 % of the text, and drew none: " in trained(["word " * 100], 100, sample=1)[1]


@pytest.mark.parametrize(("letters", "lower_case"), [("acgt", True), ("0123456789abcdef", False), ("กขคงจฉ็ี", False)])
def test_long_words_are_cut_by_the_tokenizer_and_by_its_export(tmp_path, letters, lower_case):
    text = "".join(letters[i * i % 7919 % len(letters)] for i in range(1500))
    cutting, told = trained([f"some words, {text}."], 120, lower_case=lower_case)
    assert "of the characters are in words of more than 100 without a blank: the tokenizer cuts these" in told
    assert max(map(len, cutting.pieces)) <= 100
    mixed = f"some {text[:101]} words, {text} some {text[:100]}"
    (ids,) = cutting.encode([mixed])
    assert cutting.unknown_id not in ids
    cutting.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)(mixed)
    assert loaded["input_ids"] == [0, *ids.tolist(), 2]
    assert set(loaded) == {"input_ids", "attention_mask"}
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert PretrainingTokenizer.load(tmp_path / "again").fingerprint == cutting.fingerprint
    encoded = TextEncoder(cutting)
    assert encoded.is_fast
    np.testing.assert_array_equal(encoded.encode([mixed]).ids, ids)


def test_a_few_long_words_make_no_other_tokenizer():
    usual, told = trained(["y" * 99] * 11_000 + ["x" * 101])
    assert usual.is_mpnets
    assert "100 without a blank, each of which becomes one [UNK]." in told


def test_the_time_of_training_does_not_follow_the_longest_word():
    letters = "".join("acgt"[number] for number in np.random.default_rng(0).integers(4, size=100_000))
    begin = time.process_time()
    train_tokenizer([letters], 300)
    long_word = time.process_time() - begin
    begin = time.process_time()
    train_tokenizer([" ".join(letters[i : i + 100] for i in range(0, len(letters), 100))], 300)
    assert long_word < 5 * (time.process_time() - begin)
