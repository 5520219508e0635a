"""Tokenizers of every layout: the ids that the family's class of transformers has, training, recognition, datasets."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from mpnet_ds.data import BuildOptions, PretrainingDataset, build_dataset
from mpnet_ds.data.builder.import_indexed import import_dataset
from mpnet_ds.data.builder.wordpiece_memo import TextEncoder
from mpnet_ds.data.samples.show import show
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.data.storage.verify import verify
from mpnet_ds.errors import UserError
from mpnet_ds.objectives.base import Vocabulary
from mpnet_ds.objectives.masking import MaskingConfig
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.tokenizer_layouts import LAYOUTS
from mpnet_ds.tokenizer_training import USUAL_SIZES, train_tokenizer

EXPECTED = {
    ("mpnet", "wordpiece"): ("MPNetTokenizer", {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 4, "mask": -1}),
    ("bert", "wordpiece"): ("BertTokenizer", {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}),
    ("roberta", "bpe"): ("RobertaTokenizer", {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": -1}),
    ("xlm-roberta", "unigram"): (
        "XLMRobertaTokenizer",
        {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": -1},
    ),
    ("deberta", "unigram"): ("DebertaV2Tokenizer", {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": -1}),
    ("deberta", "bpe"): ("DebertaTokenizer", {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": -1}),
    ("gpt2", "bpe"): ("GPT2Tokenizer", {"bos": -1, "eos": -1, "unk": -1, "pad": None, "mask": None}),
    ("t5", "unigram"): ("T5Tokenizer", {"pad": 0, "eos": 1, "unk": 2, "mask": None}),
}
"""Layout and algorithm → class of transformers and ids by role; negative: from the end of the vocabulary."""
CASES = [pytest.param(*case, id="-".join(case)) for case in EXPECTED]
NASTY = [
    "",
    " leads",
    "trails ",
    "two  blanks,   three",
    "tab\tand\r\nCR LF\n\nlines\rends",
    "nul\0 inside",
    "🤗👨‍👩‍👧 ☃️ emoji",
    "e\u0301 = é, A\u030a, marks \u0301 alone",
    "zero\u200bwidth\u200c\u200d\ufeff joined",
    "مَرْحَبًا بالعالم",
    "ภาษาไทยไม่มีช่องว่าง",
    "日本語テキスト。한국어",
    "ÄÖÜ ß ﬁ ﬀ Ⅷ ½",
    "\u00a0no-break\u3000ideographic",
    "x" * 300,
    "don't we'll I'M 3.14 1,000 e-mails",
    "\ue000 private \U0010fffd \u202e",
]
SPELLED = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<|endoftext|>"]
SPELLED += ["<extra_id_0>", "<extra_id_99>"]


@pytest.fixture(scope="module")
def folder_of(made_once, corpus_files):
    """A function (layout, algorithm): a folder with a tokenizer of 700 pieces."""

    def get(layout, algorithm):
        def make(folder):
            train_tokenizer(corpus_files.documents[:200], 700, layout=layout, algorithm=algorithm).save(folder)

        return made_once(f"tokenizer-{layout}-{algorithm}", make)

    return get


@pytest.fixture(scope="module")
def loaded(folder_of):
    """A function (layout, algorithm): the tokenizer, and that of transformers."""
    cache = {}

    def load(*case):
        if case not in cache:
            cache[case] = PretrainingTokenizer.load(folder_of(*case)), AutoTokenizer.from_pretrained(folder_of(*case))
        return cache[case]

    return load


@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_special_tokens_have_the_ids_that_the_familys_class_has(loaded, layout, algorithm):
    ours, theirs = loaded(layout, algorithm)
    name, roles = EXPECTED[layout, algorithm]
    assert type(theirs) is getattr(transformers, name)
    assert (ours.layout.name, ours.kind.lower(), ours.vocab_size, len(theirs)) == (layout, algorithm, 700, 700)
    expected = {role: number % 700 if number is not None else None for role, number in roles.items()}
    assert {role: getattr(theirs, f"{role}_token_id") for role in roles} == expected
    begin, end = expected.get("cls"), expected.get("sep", expected.get("eos"))
    pad = end if expected["pad"] is None else expected["pad"]
    assert (ours.begin_id, ours.end_id, ours.pad_id, ours.mask_id) == (begin, end, pad, expected["mask"])
    assert theirs.convert_ids_to_tokens(list(range(700))) == ours.pieces
    assert set(theirs.all_special_ids) <= set(ours.special_ids.tolist())
    assert ours.sentinel_ids == (tuple(range(699, 599, -1)) if layout == "t5" else ())


@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_transformers_gives_the_same_ids_for_nasty_text(loaded, layout, algorithm):
    ours, theirs = loaded(layout, algorithm)
    for text, ids in zip(NASTY, ours.encode(NASTY), strict=True):
        assert theirs(text, truncation=False)["input_ids"] == ours.framed(ids.tolist()), text
    encoded = TextEncoder(ours)
    assert encoded.is_fast == (algorithm == "wordpiece")
    assert encoded.encode(NASTY).ids.tolist() == np.concatenate(ours.encode(NASTY)).tolist()


@settings(max_examples=25)
@given(st.lists(st.sampled_from([*NASTY, *" \n\tab"]) | st.text(max_size=5), max_size=5).map("".join))
@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_transformers_gives_the_same_ids_for_any_text(loaded, layout, algorithm, text):
    ours, theirs = loaded(layout, algorithm)
    text = text.encode("utf-8", "replace").decode().replace("\ufdd0", "")
    assume(not any(token in text for token in SPELLED))  # hypothesis tries texts that the package contains
    (ids,) = ours.encode([text])
    assert theirs(text, truncation=False)["input_ids"] == ours.framed(ids.tolist())
    if algorithm == "bpe":
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


@settings(max_examples=25)
@given(st.lists(st.sampled_from([*SPELLED, "the", "x", " ", "▁", "Ġ"])).map("".join))
@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_text_that_spells_special_tokens_gets_ordinary_pieces(loaded, layout, algorithm, text):
    ours, _ = loaded(layout, algorithm)
    special = set(ours.special_ids.tolist()) - {ours.unknown_id}
    assert not special & set(ours.encode([text])[0].tolist())


@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_a_mask_token_in_a_text_takes_the_place_of_a_word(loaded, layout, algorithm):
    ours, theirs = loaded(layout, algorithm)
    if ours.mask_id is not None:
        before, after = theirs("a list", add_special_tokens=False)["input_ids"], [ours.mask_id]
        masked = theirs(f"a list {ours.layout.mask}", add_special_tokens=False)["input_ids"]
        assert masked == before + after


@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_layout_and_fingerprint_survive_saving_by_us_and_by_transformers(loaded, folder_of, tmp_path, layout, algorithm):
    ours, theirs = loaded(layout, algorithm)
    ours.save(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for path in (tmp_path / "ours", tmp_path / "theirs", folder_of(layout, algorithm) / "tokenizer.json"):
        again = PretrainingTokenizer.load(path)
        assert (again.layout, again.fingerprint) == (ours.layout, ours.fingerprint)
        assert again.special_ids.tolist() == ours.special_ids.tolist()
    for path in (tmp_path / "ours").iterdir():
        assert path.read_bytes() == (folder_of(layout, algorithm) / path.name).read_bytes()


@pytest.mark.parametrize(("layout", "algorithm"), [("bert", "wordpiece"), ("gpt2", "bpe"), ("deberta", "unigram")])
def test_the_same_texts_give_the_same_tokenizer(corpus_files, layout, algorithm):
    # Equal frequencies everywhere, and characters that no piece needs: what a hash map's order could decide.
    texts = ["abc abd acd bcd " * 9, "xyz xzy yxz", "日本語東京都大阪府", *corpus_files.documents[:40]]
    kinds = {train_tokenizer(texts, 460, layout=layout, algorithm=algorithm).fingerprint for _ in range(4)}
    assert len(kinds) == 1


def test_words_begin_with_their_blank(loaded):
    for case, begins in {("gpt2", "bpe"): "Ġ", ("t5", "unigram"): "▁", ("bert", "wordpiece"): "##"}.items():
        ours, _ = loaded(*case)
        (ids,) = ours.encode([" returns the interpreters"])
        pieces = np.array(ours.pieces)[ids]
        marked = np.array([piece.startswith(begins) for piece in pieces])
        assert (ours.words.starts[ids] == (~marked if begins == "##" else marked)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_has_a_usual_algorithm_and_size(layout):
    assert next(iter(LAYOUTS[layout].classes)) == next(algorithm for name, algorithm in EXPECTED if name == layout)
    assert USUAL_SIZES[layout] > 30_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "robert"}, "unknown --layout 'robert'. Did you mean 'roberta'"),
        ({"algorithm": "unigrams"}, "unknown --algorithm 'unigrams'. Did you mean 'unigram'"),
        (
            {"layout": "bert", "algorithm": "bpe"},
            "--layout bert is for wordpiece, not for --algorithm bpe, which roberta, deberta, gpt2 have",
        ),
        ({"layout": "deberta", "algorithm": "wordpiece"}, "--layout deberta is for unigram or bpe, not for"),
        (
            {"layout": "gpt2", "vocab_size": 300},
            "--vocab_size is 300; it must be between 320 and 10,000,000, 50257 is usual",
        ),
        ({"layout": "t5", "vocab_size": 120}, "--vocab_size is 120; it must be between 163 and"),
        ({"layout": "gpt2", "character_coverage": 0.9}, "--character_coverage is not for BPE"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(UserError) as caught:
        train_tokenizer(["text"], **{"vocab_size": 700} | settings)
    assert message in str(caught.value)


def test_rare_characters_get_no_unigram_pieces():
    told, rare = [], "".join(chr(0x4E00 + i) for i in range(50))
    texts = [rare] + ["the cat sat on the mat"] * 1000
    frequent = train_tokenizer(texts, 190, character_coverage=0.995, layout="t5", tell=told.append)
    assert not set(rare) & set("".join(frequent.pieces))
    assert "50 of 59 characters get no piece and become <unk>" in told[0]
    assert set(rare) < set(train_tokenizer(texts, 190, character_coverage=1, layout="t5").pieces)
    with pytest.raises(UserError, match=r"--vocab_size 163 is too small: the characters of this corpus alone need 165"):
        train_tokenizer([*texts, "éü"], 163, character_coverage=1, layout="t5")


def wordpiece_backend(pieces, unknown="[UNK]"):
    backend = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return backend


def foreign(tmp_path, backend, **config):
    backend.save(str(tmp_path / "tokenizer.json"))
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return PretrainingTokenizer.load(tmp_path)


def test_berts_vocabulary_may_hold_the_tokens_of_another(tmp_path):
    ours = foreign(tmp_path, wordpiece_backend([*RELEASED_BERT, "<s>", "</s>"]))
    assert (ours.layout.name, ours.frame) == ("bert", (101, 102, 0))


RELEASED_BERT = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "a"]


def test_released_berts_vocabulary_is_of_its_layout(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(RELEASED_BERT))
    alone = PretrainingTokenizer.load(tmp_path / "vocab.txt")
    with_json = foreign(tmp_path, wordpiece_backend(RELEASED_BERT))
    for ours in (alone, with_json):
        assert ours.layout == LAYOUTS["bert"]
        assert (ours.frame, ours.mask_id, ours.unknown_id) == ((101, 102, 0), 103, 100)
        assert ours.special_ids.tolist() == [0, 100, 101, 102, 103]
        ours.save(tmp_path / "saved")
        assert type(AutoTokenizer.from_pretrained(tmp_path / "saved")).__name__ == "BertTokenizer"


def test_released_mpnets_vocabulary_holds_berts_and_is_of_its_own(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["<s>", "<pad>", "</s>", "<unk>", *RELEASED_BERT, "<mask>"]))
    ours = PretrainingTokenizer.load(tmp_path)
    assert ours.layout == LAYOUTS["mpnet"]
    assert (ours.frame, ours.unknown_id) == ((0, 2, 1), 104)
    assert ours.misfit_of_mpnet is None


def test_roles_of_a_foreign_tokenizer_count_and_are_kept(tmp_path):
    backend = wordpiece_backend(["<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "the"], "<unk>")
    roles = {"cls_token": "<cls>", "sep_token": "<sep>", "pad_token": {"content": "<pad>"}, "mask_token": "<mask>"}
    ours = foreign(tmp_path, backend, tokenizer_class="FunnelTokenizerFast", **roles)
    assert (ours.layout.name, ours.frame, ours.mask_id, ours.unknown_id) == ("bert", (2, 3, 0), 4, 1)
    assert ours.special_ids.tolist() == [0, 1, 2, 3, 4]
    ours.save(tmp_path / "saved")
    again = PretrainingTokenizer.load(tmp_path / "saved")
    assert again.frame == ours.frame
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (2, 3, 4)


def test_padding_that_was_added_to_gpt2_is_its_padding(loaded, tmp_path):
    ours, _ = loaded("gpt2", "bpe")
    padded = tokenizers.Tokenizer.from_str(ours.backend.to_str())
    padded.add_special_tokens(["<|pad|>"])
    with_pad = foreign(tmp_path, padded, tokenizer_class="GPT2Tokenizer", pad_token="<|pad|>")
    assert (with_pad.layout.name, with_pad.frame) == ("gpt2", (None, 699, 700))
    with_pad.save(tmp_path / "saved")
    assert PretrainingTokenizer.load(tmp_path / "saved").frame == with_pad.frame


def test_a_tokenizer_that_cuts_otherwise_than_the_familys_class_is_saved_as_it_is(loaded, tmp_path):
    ours, _ = loaded("xlm-roberta", "unigram")
    content = json.loads(ours.backend.to_str()) | {"normalizer": {"type": "NFKC"}}
    other = foreign(tmp_path, tokenizers.Tokenizer.from_str(json.dumps(content)))
    other.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("ﬁle", add_special_tokens=False)["input_ids"] == other.encode(["ﬁle"])[0].tolist()
    assert theirs("ﬁle")["input_ids"] == other.framed(other.encode(["file"])[0].tolist())


@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_an_export_frames_texts_as_in_training_whatever_its_file_says(loaded, tmp_path, layout, algorithm):
    from mpnet_ds.hub.export import _frame_texts

    ours, theirs = loaded(layout, algorithm)
    ours.save(tmp_path)
    (ids,) = ours.encode(["a list"])
    for processor in (None, "bytes and a template"):
        backend = tokenizers.Tokenizer.from_str(ours.backend.to_str())
        backend.post_processor = processors.TemplateProcessing("$A x", "$A x $B", [("x", ids[0])]) if processor else None
        backend.save(str(tmp_path / "tokenizer.json"))
        _frame_texts(tmp_path / "tokenizer.json", ours)
        exported = AutoTokenizer.from_pretrained(tmp_path)
        assert exported("a list")["input_ids"] == ours.framed(ids.tolist())
        assert exported("a list", "a list")["input_ids"] == theirs("a list", "a list")["input_ids"]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_files_beside_a_tokenizer_are_named(folder_of, tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes((folder_of("bert", "wordpiece") / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read"):
        PretrainingTokenizer.load(tmp_path)


@pytest.fixture(scope="module")
def dataset_of(made_once, folder_of, corpus_files):
    """A function (layout, algorithm): a dataset that was built with its tokenizer."""

    def get(*case):
        what = ([corpus_files.txt], folder_of(*case))
        options = BuildOptions(holdout=0.1, sentences="document")
        return made_once(
            f"dataset-{'-'.join(case)}", lambda folder: build_dataset(*what, folder, options, show_progress=False)
        )

    return get


BUILT = [("bert", "wordpiece"), ("gpt2", "bpe"), ("t5", "unigram")]


@pytest.mark.parametrize(("layout", "algorithm"), BUILT)
def test_a_dataset_records_the_layout_and_ends_its_documents_by_it(dataset_of, loaded, layout, algorithm, read_shard):
    folder, (ours, _) = dataset_of(layout, algorithm), loaded(layout, algorithm)
    manifest = DatasetManifest.load(folder)
    ids = {"bos": ours.begin_id, "pad": ours.pad_id, "eos": ours.end_id, "mask": ours.mask_id}
    assert manifest.layout == layout
    assert manifest.special_ids == {role: number for role, number in ids.items() if number is not None}
    tokens = np.array(read_shard(folder / "shard-00000").tokens)
    assert np.count_nonzero(tokens == ours.end_id) == manifest.documents
    assert tokens[-1] == ours.end_id
    assert verify(folder, show_progress=False).problems == []


def test_a_dataset_of_an_older_version_is_mpnets(dataset_folder, tmp_path):
    content = json.loads((dataset_folder / "dataset.json").read_text())
    assert content.pop("layout") == "mpnet"
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert DatasetManifest.load(tmp_path).layout == "mpnet"


def test_an_end_in_the_wrong_place_is_found_in_any_layout(dataset_of, tmp_path):
    folder = shutil.copytree(dataset_of("bert", "wordpiece"), tmp_path / "dataset")
    tokens = np.memmap(folder / "shard-00000.bin", np.uint16, "r+")
    tokens[1] = 3
    del tokens
    assert any("</s> before the end of a document" in problem for problem in verify(folder, show_progress=False).problems)


class Reading(MPNet):
    """An objective that hands over what it reads."""

    def draw(self, sequences, vocabulary):
        return {"ids": sequences.ids, "real": sequences.real, "documents": sequences.documents}


@pytest.mark.parametrize(("layout", "algorithm"), BUILT)
@pytest.mark.parametrize("sample_mode", ["stream", "document"])
def test_sequences_begin_and_are_padded_by_the_layout(dataset_of, loaded, layout, algorithm, sample_mode):
    ours, _ = loaded(layout, algorithm)
    data = PretrainingDataset(
        dataset_of(layout, algorithm), 32, sample_mode=sample_mode, isolate_documents=True, objective=Reading()
    )
    batch = data.batch(np.arange(len(data)))
    ids, real = batch["ids"], batch["real"]
    begins = 0 if ours.begin_id is None else 1
    assert (ids[~real] == ours.pad_id).all()
    assert (ids[:, :begins] == ours.begin_id).all()
    if sample_mode == "stream":
        assert len(data) == data.manifest.tokens // (32 - begins)
        assert real.all()
        assert ((ids == ours.begin_id).sum(axis=1) == begins).all()
    else:
        assert (ids[real] == ours.end_id).sum() == data.manifest.documents
        assert real.sum() > 20 * len(data)
    ends = (ids == ours.end_id) & real
    assert (np.diff(batch["documents"], axis=1)[ends[:, :-1]] == 1).all()


def test_without_a_mask_token_masking_is_refused_by_name_and_samples_are_shown_as_text(dataset_of):
    folder = dataset_of("gpt2", "bpe")
    with pytest.raises(UserError, match="the tokenizer's layout gpt2 has no mask token"):
        PretrainingDataset(folder, 32).batch([0])
    everything_kept = MaskingConfig(mask_probability=0, keep_probability=1, random_probability=0)
    assert PretrainingDataset(folder, 32, everything_kept).batch([0])["input_ids"].shape == (1, 32)
    assert "Ġ" in show(folder, 0)


def test_mpnet_is_trained_with_tokenizers_that_have_its_ids(loaded):
    from mpnet_ds.objectives.model_section import MPNetSection

    for case in EXPECTED:
        ours, _ = loaded(*case)
        findings = [finding.text for finding in MPNet().findings(MPNetSection(), ours, None)]
        if case[0] in ("mpnet", "roberta", "xlm-roberta"):
            assert findings == []
        else:
            assert f"has the layout {case[0]}; MPNet needs <s> = 0, <pad> = 1, </s> = 2 and <mask>" in findings[0]


def test_a_vocabulary_knows_the_layouts_sentinels(loaded):
    vocabulary = Vocabulary.of(loaded("t5", "unigram")[0])
    assert (vocabulary.layout, vocabulary.mask_id, vocabulary.sentinels[:2]) == ("t5", None, (699, 698))
    assert vocabulary.is_special[list(vocabulary.sentinels)].all()


def test_foreign_ids_of_another_layout_are_imported_with_its_ends(folder_of, write_foreign, tmp_path, read_shard):
    prefix = write_foreign(tmp_path / "foreign", [[[2, 50, 51, 3]], [[52]]], 8, "megatron")
    import_dataset([str(prefix)], folder_of("bert", "wordpiece"), tmp_path / "dataset", show_progress=False)
    assert read_shard(tmp_path / "dataset" / "shard-00000").documents == [[[50, 51, 3]], [[52, 3]]]
    wrong = write_foreign(tmp_path / "wrong", [[[50, 4, 51]]], 8, "megatron")
    with pytest.raises(UserError, match=r"id 4 is '\[MASK\]', which is never the id of text"):
        import_dataset([str(wrong)], folder_of("bert", "wordpiece"), tmp_path / "other", show_progress=False)


def test_a_start_of_mpnet_takes_no_tokenizer_of_another_layout(folder_of, tmp_path):
    from mpnet_ds.hub.import_model import make_start

    for option in ("tokenizer", "resize_to"):
        with pytest.raises(UserError, match="has the layout bert; MPNet needs <s> = 0"):
            make_start(tmp_path / "out", tmp_path / "nowhere", **{option: folder_of("bert", "wordpiece")})
