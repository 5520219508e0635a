import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.data import BuildOptions, PretrainingDataset, build_dataset
from mpnet_ds.data.samples.mixture import LONGEST_PATTERN, MixtureDataset, open_datasets, parse_weighted, slots_for, spread
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.errors import UserError

LENGTH = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory, save_word_tokenizer):
    """Three datasets of one tokenizer and three sizes, whose ordinary ids begin at 105, 205 and 305."""
    folder = tmp_path_factory.mktemp("mixed")
    save_word_tokenizer(folder / "tokenizer", 400)
    for number, documents in enumerate((240, 120, 60)):
        words = np.random.default_rng(number).integers(100 * (number + 1), 100 * (number + 2), (documents, 50))
        text = "\n\n".join(" ".join(f"w{i}" for i in row) for row in words)
        (folder / f"{number}.txt").write_text(text)
        build_dataset(
            [str(folder / f"{number}.txt")],
            folder / "tokenizer",
            folder / f"data-{number}",
            BuildOptions(holdout=0.1),
            show_progress=False,
        )
    return [folder / f"data-{number}" for number in range(3)]


def mixture(folders, *weights, seed=0, **options) -> MixtureDataset:
    weights = [None if weight is None else Fraction(weight) for weight in weights or [None] * len(folders)]
    return open_datasets(list(zip(folders, weights, strict=True)), seed, seq_length=LENGTH, **options)


def dataset_of(batch: dict) -> np.ndarray:
    """Dataset of each sequence, told from its tokens."""
    ordinary = np.where(batch["input_ids"] >= 105, batch["input_ids"], 10**6).min(axis=1)
    return (ordinary - 105) // 100


SLOTS = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@given(SLOTS, st.data())
def test_every_window_holds_the_share_of_each_to_less_than_two(slots, data):
    length, pattern = sum(slots), spread(slots)
    first, size = data.draw(st.integers(0, 3 * length)), data.draw(st.integers(1, 2 * length))
    window = pattern[(first + np.arange(size)) % length]
    counts = np.bincount(window, minlength=len(slots))
    assert np.abs(counts - size * np.array(slots) / length).max() < 2
    whole = pattern[(first + np.arange(length)) % length]
    assert np.bincount(whole, minlength=len(slots)).tolist() == slots


@given(SLOTS, st.data())
def test_a_beginning_holds_the_share_of_each_rounded_up_or_down(slots, data):
    size = data.draw(st.integers(1, sum(slots)))
    counts = np.bincount(spread(slots)[:size], minlength=len(slots))
    assert np.abs(counts - size * np.array(slots) / sum(slots)).max() < 1


@given(st.lists(st.fractions(Fraction(1, 40), 50, max_denominator=40), min_size=1, max_size=6))
def test_slots_are_in_the_proportion_of_the_weights(weights):
    slots, total = slots_for(weights), sum(weights)
    assert sum(slots) <= LONGEST_PATTERN
    exact = [weight / total for weight in weights]
    found = [Fraction(count, sum(slots)) for count in slots]
    if sum(slots) < LONGEST_PATTERN:
        assert found == exact
    assert max(abs(a - b) for a, b in zip(found, exact, strict=True)) < Fraction(1, 5000)


def test_a_tiny_weight_still_has_a_slot():
    assert slots_for([Fraction(1), Fraction(1, 10**9)]) == [9_999, 1]


@pytest.mark.parametrize("first", [0, 7, 123_456])
def test_the_datasets_are_mixed_in_their_exact_shares(folders, first):
    data = mixture(folders, "0.6", "0.3", "0.1")
    found = dataset_of(data.consecutive(first, 200))
    for begin in range(190):
        assert np.bincount(found[begin : begin + 10], minlength=3).tolist() == [6, 3, 1]


def test_without_weights_the_shares_are_those_of_the_samples(folders):
    data = mixture(folders)
    sizes = [len(part) for part in data.datasets]
    assert data.shares == [Fraction(size, sum(sizes)) for size in sizes]
    assert len(data) == sum(sizes)
    found = dataset_of(data.batch(np.arange(len(data))))
    assert np.bincount(found).tolist() == sizes


def test_each_dataset_is_gone_through_in_its_own_order(folders):
    data = mixture(folders, "0.5", "0.25", "0.25")
    batch = data.consecutive(0, 400)
    found = dataset_of(batch)
    for number, part in enumerate(data.datasets):
        rows = found == number
        own = part.consecutive(0, int(rows.sum()))
        assert rows.sum() > len(part)
        for name in own:
            np.testing.assert_array_equal(batch[name][rows], own[name])


@pytest.fixture(scope="module")
def opened_twice(folders):
    return [mixture(folders, "7/10", "2/10", "1/10", sample_mode="document", isolate_documents=True) for _ in range(2)]


@given(first=st.integers(0, 2**40), cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_sample_follows_from_its_number_alone(opened_twice, first, cuts):
    data, again = opened_twice
    whole = data.consecutive(first, sum(cuts))
    begins = first + np.cumsum([0, *cuts[:-1]])
    parts = [again.consecutive(int(begin), count) for begin, count in zip(begins, cuts, strict=True)]
    assert set(whole) == {"input_ids", "predicted_positions", "predicted_inputs", "attention_mask", "document_ids"}
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


def test_epochs_of_a_mixture_follow_each_other(folders):
    data = mixture(folders, "0.5", "0.25", "0.25")
    which, own_numbers = data.origin(np.arange(len(data) + 1))
    begins_anew = own_numbers >= np.array([len(part) for part in data.datasets])[which]
    assert begins_anew.tolist() == [False] * len(data) + [True]
    across = data.consecutive(2 * len(data) - 3, 6)
    for part, batch in (
        (slice(3), data.batch(np.arange(len(data) - 3, len(data)), 1)),
        (slice(3, 6), data.batch([0, 1, 2], [2])),
    ):
        for name in across:
            np.testing.assert_array_equal(across[name][part], batch[name])


def test_sequences_of_equal_index_are_masked_at_different_positions(folders):
    data = mixture([folders[0]] * 2)
    one, other = (part.batch(np.arange(20))["predicted_positions"] for part in data.datasets)
    assert (one == other).mean() < 0.1


def test_one_dataset_is_itself(folders):
    data = mixture(folders[:1], "0.5")
    assert isinstance(data, PretrainingDataset)
    alone = PretrainingDataset(folders[0], LENGTH).batch(np.arange(9))
    assert all(np.array_equal(array, alone[name]) for name, array in data.batch(np.arange(9)).items())


@pytest.fixture(scope="module")
def short(folders, tmp_path_factory):
    """A dataset of short documents: most of its sequences are padding where each has only one."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "text.txt").write_text("\n\n".join(f"w{i % 10} w{i % 7}" for i in range(100)))
    build_dataset([str(folder / "text.txt")], folders[0].parent / "tokenizer", folder / "data", show_progress=False)
    return folder / "data"


@pytest.mark.parametrize("options", [{}, {"sample_mode": "document", "packing": False}], ids=["blocks", "documents"])
def test_piece_shares_are_those_of_the_samples(folders, short, options):
    for data in (mixture([*folders[:2], short], "0.5", "0.3", "0.2", **options), mixture([short], **options)):
        ids = data.consecutive(0, 5_000)["input_ids"]
        found = np.bincount(ids[ids > 4], minlength=data.tokenizer.vocab_size)
        expected = data.piece_shares()
        assert expected.sum() == pytest.approx(1)
        expected[:5] = 0  # </s>, and what the samples add
        np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), atol=1e-3)


def test_piece_shares_are_unknown_if_one_dataset_has_no_counts(folders, tmp_path):
    old = shutil.copytree(folders[2], tmp_path / "old")
    replace(DatasetManifest.load(old), piece_counts="").save(old)
    assert PretrainingDataset(old, LENGTH).piece_shares() is None
    assert mixture([folders[0], old]).piece_shares() is None


def test_holdouts_are_mixed_when_all_have_one(folders, tmp_path):
    data = mixture(folders[:2], "0.7", "0.3")
    assert data.holdouts == [(folders[0] / "holdout", Fraction(7, 10)), (folders[1] / "holdout", Fraction(3, 10))]
    without = shutil.copytree(folders[1], tmp_path / "data")
    shutil.rmtree(without / "holdout")
    assert mixture([folders[0], without]).holdouts == []
    assert mixture(folders[:1]).holdouts == [(folders[0] / "holdout", None)]


def test_identity_tells_datasets_and_shares(folders):
    checksums = [mixture(folders[:2], *weights).checksum for weights in (("1", "1"), ("2", "2"), ("1", "2"))]
    assert checksums[0] == checksums[1] != checksums[2]
    assert [share for _, share in checksums[2]] == ["1/3", "2/3"]


def test_datasets_of_different_tokenizers_are_named(folders, dataset_folder):
    with pytest.raises(UserError, match=rf"{dataset_folder} was built with a different tokenizer than {folders[0]}"):
        mixture([folders[0], dataset_folder])


def test_weights_that_make_no_sense_are_refused(folders):
    with pytest.raises(UserError, match=f"{folders[1]} has no weight"):
        mixture(folders[:2], "0.5", None)
    with pytest.raises(UserError, match=f"{folders[1]} has weight -0.5; it must be greater than 0"):
        mixture(folders[:2], "0.5", "-0.5")
    with pytest.raises(UserError, match=r"'0\.7x' is not a weight"):
        parse_weighted("data:0.7x")
    with pytest.raises(UserError, match="'1/0' is not a weight"):
        parse_weighted("data:1/0")


def test_the_weight_follows_the_last_colon(tmp_path):
    assert parse_weighted("some/data") == ("some/data", None)
    assert parse_weighted("a:b:0.7") == ("a:b", Fraction(7, 10))
    assert parse_weighted("data:3/4") == ("data", Fraction(3, 4))
    (tmp_path / "a:7").mkdir()
    assert parse_weighted(str(tmp_path / "a:7")) == (str(tmp_path / "a:7"), None)
