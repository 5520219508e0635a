import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpnet_ds.data import MaskingConfig, PretrainingDataset, build_dataset
from mpnet_ds.data.samples import document_sequences
from mpnet_ds.data.samples.dataset import document_ids
from mpnet_ds.data.samples.document_sequences import DocumentSequences
from mpnet_ds.data.storage.token_file import TokenFile, TokenFileWriter
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer_layouts import MPNETS_FRAME, Frame
from tests.shards import add_document

BOS, EOS = 0, 2
ITEMS_PER_BLOCK = 4
LINES = st.lists(st.integers(0, 30), min_size=0, max_size=5)
CORPORA = st.lists(st.lists(LINES, min_size=1, max_size=12), min_size=1, max_size=3)
"""Ids of each line of each document of each shard."""
MODES = st.sampled_from(["document", "line"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(document_sequences, "ITEMS_PER_BLOCK", ITEMS_PER_BLOCK)
    monkeypatch.setattr(document_sequences, "BLOCKS_AT_ONCE", 2)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


def corpus_of(sizes) -> list[list[list[list[int]]]]:
    """Ids of shards, documents, lines; no ordinary id comes twice, each document that has ids ends in ``</s>``."""
    numbers = itertools.count(5)
    corpus = [[[[next(numbers) for _ in range(n)] for n in lines] for lines in shard] for shard in sizes]
    for document in itertools.chain.from_iterable(corpus):
        if document:
            document[-1].append(EOS)
    return corpus


def shards_of(corpus, folder) -> list[TokenFile]:
    for number, documents in enumerate(corpus):
        writer = TokenFileWriter(folder / f"shard-{number}", np.dtype("<u2"))
        for document in documents:
            add_document(writer, [np.array(line, dtype=np.uint16) for line in document])
        writer.close()
    opened = [TokenFile(folder / f"shard-{number}") for number in range(len(corpus))]
    return [shard for shard in opened if len(shard.tokens)]


def items_of(documents, sample_mode: str) -> list[list[int]]:
    if sample_mode == "document":
        return [list(itertools.chain.from_iterable(document)) for document in documents]
    closed = [[line + [EOS] * (line[-1:] != [EOS] and number < len(document)) for number, line in enumerate(document, 1)]
              for document in documents]  # fmt: skip
    return [line if line != [EOS] or stored else [] for document, stored_document in zip(closed, documents, strict=True)
            for line, stored in zip(document, stored_document, strict=True)]  # fmt: skip


def expected_sequences(corpus, n: int, sample_mode: str, packing: bool, opening: list[int]) -> list[list[int]]:
    """The definition, item by item: a sequence takes the next unit if it fits; shards and blocks start new ones."""
    rows = []
    for documents in corpus:
        items = items_of(documents, sample_mode)
        for begin in range(0, len(items), ITEMS_PER_BLOCK):
            rows.append([])
            for item in items[begin : begin + ITEMS_PER_BLOCK]:
                for start in range(0, len(item), n - len(opening)):
                    unit = [*opening, *item[start : start + n - len(opening)]]
                    if packing and len(rows[-1]) + len(unit) <= n:
                        rows[-1] += unit
                    else:
                        rows.append(unit)
    return [row for row in rows if row]


@settings(max_examples=30)
@given(CORPORA, st.integers(8, 20), MODES, st.booleans())
@pytest.mark.parametrize("frame", [MPNETS_FRAME, Frame(begin=None, end=EOS, pad=EOS)])
def test_sequences_hold_whole_units_in_their_order_and_no_token_is_lost_or_doubled(
    scratch, frame, sizes, n, sample_mode, packing
):
    corpus = corpus_of(sizes)
    rows = DocumentSequences(shards_of(corpus, scratch), n, sample_mode, packing, frame)
    expected = expected_sequences(corpus, n, sample_mode, packing, [BOS] * frame.num_begin)
    assert len(rows) == len(expected)
    if expected:
        input_ids, real = rows.read(np.arange(len(rows)), np.zeros(len(rows), dtype=int))
        assert [row[mask].tolist() for row, mask in zip(input_ids, real, strict=True)] == expected
        assert (input_ids[~real] == frame.pad).all()
        assert rows.tokens_per_sequence == pytest.approx(real.sum() / len(rows))
        everything = [token for token in input_ids.ravel().tolist() if token > EOS]
        assert everything == [token for token in itertools.chain.from_iterable(
            line for shard in corpus for document in shard for line in document) if token > EOS]  # fmt: skip


@settings(max_examples=30)
@given(CORPORA, st.integers(8, 20), MODES, st.booleans(), st.data())
def test_a_sequence_is_the_same_alone_and_in_any_company(scratch, sizes, n, sample_mode, packing, data):
    rows = DocumentSequences(shards_of(corpus_of(sizes), scratch), n, sample_mode, packing)
    if not len(rows):
        return
    numbers = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6)))
    together, _ = rows.read(numbers, np.zeros(len(numbers), dtype=int))
    alone = [rows.read(numbers[i : i + 1], np.zeros(1, dtype=int))[0][0] for i in range(len(numbers))]
    np.testing.assert_array_equal(together, alone)


@settings(max_examples=30)
@given(CORPORA, MODES)
def test_the_token_ranges_of_a_sequence_hold_its_ids(scratch, sizes, sample_mode):
    rows = DocumentSequences(shards_of(corpus_of(sizes), scratch), 8, sample_mode, packing=True)
    for number in range(len(rows)):
        input_ids, _ = rows.read(np.array([number]), np.array([0]))
        stored = np.concatenate([shard.tokens[first:stop] for shard, first, stop in rows.token_ranges(number, 0)])
        assert stored[stored > EOS].tolist() == input_ids[input_ids > EOS].tolist()


def test_a_line_that_ends_a_document_within_is_not_given_a_second_end(scratch):
    corpus = [[[[5, EOS], [6], [7, EOS]]]]
    rows = DocumentSequences(shards_of(corpus, scratch), 16, "line", packing=True)
    input_ids, real = rows.read(np.array([0]), np.array([0]))
    assert input_ids[real].tolist() == [BOS, 5, EOS, BOS, 6, EOS, BOS, 7, EOS]


@pytest.fixture(scope="module")
def built(tmp_path_factory, save_word_tokenizer):
    """A dataset of 200 documents of 1 … 60 words in lines of at most 9, w0 being in no document."""
    folder = tmp_path_factory.mktemp("built-units")
    words, documents = iter(f"w{i}" for i in range(1, 9000)), []
    for number in range(200):
        document = list(itertools.islice(words, 1 + number * 7 % 60))
        documents.append("\n".join(" ".join(document[i : i + 9]) for i in range(0, len(document), 9)))
    (folder / "text.txt").write_text("\n\n".join(documents))
    save_word_tokenizer(folder / "tokenizer", 9000)
    build_dataset([str(folder / "text.txt")], folder / "tokenizer", folder / "dataset", show_progress=False)
    return folder / "dataset"


@pytest.mark.parametrize("sample_mode", ["stream", "document", "line"])
@pytest.mark.parametrize("n", [16, 48])
def test_an_epoch_holds_every_token_once(built, sample_mode, n):
    data = PretrainingDataset(built, n, sample_mode=sample_mode)
    batch = data.batch(np.arange(len(data)), epoch=3)
    seen = batch["input_ids"][batch["attention_mask"]]
    counts = np.bincount(seen, minlength=9006)
    assert counts.max(initial=0, where=np.arange(counts.size) > EOS) == 1
    lost = data.manifest.tokens % (n - 1) if sample_mode == "stream" else 0
    assert (seen > EOS).sum() >= data.manifest.tokens - data.manifest.documents - lost
    if sample_mode == "document":
        assert (seen == EOS).sum() == data.manifest.documents


def test_padding_is_neither_predicted_nor_counted(built):
    batch = PretrainingDataset(built, 48, sample_mode="document", packing=False).batch(np.arange(200))
    lengths = batch["attention_mask"].sum(axis=1)
    assert lengths.min() < 8
    assert lengths.max() == 48
    slots = (batch["predicted_positions"] >= 0).sum(axis=1)
    np.testing.assert_array_equal(slots, np.minimum(np.rint(0.15 * lengths), lengths - 2 + (lengths == 48)))
    assert (batch["predicted_positions"] < lengths[:, None]).all()


def test_packing_fills_sequences(built, monkeypatch):
    monkeypatch.setattr(document_sequences, "ITEMS_PER_BLOCK", 1024)
    rows = {p: len(PretrainingDataset(built, 256, sample_mode="line", packing=p)) for p in (True, False)}
    assert rows[True] * 15 < rows[False]


@pytest.mark.parametrize("sample_mode", ["document", "line"])
def test_samples_follow_from_seed_epoch_and_index(built, sample_mode):
    one, other = (PretrainingDataset(built, 32, seed=4, sample_mode=sample_mode) for _ in range(2))
    indices = np.random.default_rng(0).permutation(len(one))[:30]
    together = one.batch(indices, epoch=2)
    for row in (0, 11, 29):
        alone = other.batch(indices[row], epoch=2)
        assert all(np.array_equal(together[name][[row]], alone[name]) for name in together)
    assert not np.array_equal(one.batch(indices, epoch=3)["input_ids"], together["input_ids"])


@pytest.mark.parametrize("name", ["documents", "Stream", ""])
def test_an_unknown_sample_mode_is_named(built, name):
    with pytest.raises(UserError, match=f"unknown sample_mode '{name}'"):
        PretrainingDataset(built, sample_mode=name)


@pytest.mark.parametrize("sample_mode", ["document", "line"])
def test_an_index_that_contradicts_itself_is_named(built, tmp_path, sample_mode):
    folder = shutil.copytree(built, tmp_path / "dataset")
    path = folder / "shard-00000.idx"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00000\.idx.*build the dataset again"):
        PretrainingDataset(folder, 32, sample_mode=sample_mode)


def test_an_item_that_starts_after_its_end_is_named(built, tmp_path):
    folder = shutil.copytree(built, tmp_path / "dataset")
    path = folder / "shard-00000.idx"
    content = bytearray(path.read_bytes())
    num_sequences = int.from_bytes(content[18:26], "little")
    content[34 + 4 * num_sequences + 8 * 5 + 2] = 1  # the offset of the fifth sequence
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00000\.idx: item \d+ starts after its end"):
        PretrainingDataset(folder, 32, sample_mode="line")


def test_documents_of_a_sequence_are_numbered_from_its_ends_and_beginnings():
    rows = np.array([[0, 5, 6, 2, 7, 8, 2, 9], [0, 5, 2, 0, 6, 0, 7, 2], [0, 2, 2, 0, 5, 2, 1, 1]])
    assert document_ids(rows).tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 2],
        [0, 0, 0, 1, 1, 2, 2, 2],
        [0, 0, 1, 2, 2, 2, 3, 3],
    ]


def test_without_a_token_that_begins_them_documents_are_numbered_from_ends_and_padding_is_one_of_them():
    rows = np.array([[5, 2, 0, 6, 2, 2, 2, 2], [2, 0, 0, 2, 5, 6, 7, 8]])
    real = np.arange(8) < np.array([[5], [8]])
    assert document_ids(rows, Frame(begin=None, end=2, pad=2), real).tolist() == [
        [0, 0, 1, 1, 1, 2, 2, 2],
        [0, 1, 1, 1, 2, 2, 2, 2],
    ]


@pytest.mark.parametrize("sample_mode", ["stream", "document", "line"])
def test_documents_are_numbered_when_they_are_to_be_isolated(built, sample_mode):
    options = {"sample_mode": sample_mode, "masking": MaskingConfig(max_ngram=3)}
    isolated = PretrainingDataset(built, 64, isolate_documents=True, **options).batch(np.arange(20))
    plain = PretrainingDataset(built, 64, **options).batch(np.arange(20))
    np.testing.assert_array_equal(isolated.pop("document_ids"), document_ids(plain["input_ids"]))
    assert all(np.array_equal(isolated[name], plain[name]) for name in plain | isolated)
