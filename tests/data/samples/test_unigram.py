"""The loss of word frequencies alone, counted by hand: the shards read with ``struct``, the targets one by one."""

import math
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest

from mpnet_ds.data import PretrainingDataset
from mpnet_ds.data.samples.mixture import open_datasets
from mpnet_ds.data.samples.unigram import Unigram
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.objectives import objective_of
from mpnet_ds.objectives.base import Objective, Term

LENGTH = 32
BOS, EOS = 0, 2
OBJECTIVES = {
    "mpnet": {"name": "mpnet"},
    "plm": {"name": "plm"},
    "mlm": {"name": "mlm"},
    "kept and random": {"name": "mpnet", "masking": {"keep_probability": 0.1, "random_probability": 0.1}},
    "token by token": {"name": "mlm", "masking": {"whole_word": False}},
    "spans": {"name": "mpnet", "masking": {"max_ngram": 3}},
    "special": {"name": "mpnet", "masking": {"predict_special_tokens": True}},
}


@pytest.fixture(scope="module")
def count(dataset_folder, read_shard):
    """``count(mode, held_out)``: how often an epoch of the shared dataset has each id, as a ``Counter``."""

    def get(mode: str, held_out: bool = False) -> Counter:
        folder = dataset_folder / "holdout" if held_out else dataset_folder
        shards = [read_shard(path.with_suffix("")) for path in sorted(folder.glob("shard-*.bin"))]
        documents = [document for shard in shards for document in shard.documents]
        counts = Counter(token for document in documents for line in document for token in line)
        if mode == "stream":
            counts[BOS] += sum(counts.values()) / (LENGTH - 1)
            return counts
        for document in documents:
            for number, line in enumerate(document, 1):
                ends = number < len(document)
                counts[EOS] += ends
                counts[BOS] += math.ceil((len(line) + ends) / (LENGTH - 1))
        return counts

    return get


def losses_of(counts: Counter, data, predicts_special: bool) -> list[float]:
    """By token; infinite for what is never a target."""
    pieces = range(data.tokenizer.vocab_size)
    allowed = [predicts_special or piece not in data.tokenizer.special_ids for piece in pieces]
    total = sum(counts[piece] + 1 for piece in pieces if allowed[piece])
    return [-math.log((counts[piece] + 1) / total) if allowed[piece] else math.inf for piece in pieces]


@pytest.mark.parametrize("mode", ["stream", "line"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_level_is_that_of_a_count_by_hand(dataset_folder, count, name, mode):
    objective = objective_of(OBJECTIVES[name])
    data = PretrainingDataset(dataset_folder, LENGTH, sample_mode=mode, objective=objective)
    unigram, losses = Unigram.of(data, objective), losses_of(count(mode), data, name == "special")
    np.testing.assert_allclose(unigram.losses, losses, rtol=1e-9)

    held_out = PretrainingDataset(data.holdout_folder, LENGTH, sample_mode=mode, objective=objective)
    batch, found = held_out.batch(range(40)), []
    for ids, positions in zip(batch["input_ids"].tolist(), batch["predicted_positions"].tolist(), strict=True):
        found += [losses[ids[position]] for position in positions if position >= 0]
    total, number = unigram.sum_of(objective.target_ids(batch))
    assert number == len(found) == objective.num_targets(batch)[0] > 40
    assert total == pytest.approx(sum(found))

    counts = {piece: number for piece, number in count(mode).items() if losses[piece] < math.inf}
    expected = sum(number * losses[piece] for piece, number in counts.items()) / sum(counts.values())
    entropy = -sum(number * math.log(number / sum(counts.values())) for number in counts.values()) / sum(counts.values())
    assert unigram.expected == pytest.approx(expected)
    assert entropy < expected < entropy + 0.01


@pytest.mark.parametrize("mode", ["stream", "line", "document"])
def test_expected_level_is_the_mean_over_the_training_data(dataset_folder, mode):
    """Special tokens included, of which the samples add some."""
    objective = objective_of({"name": "mpnet", "masking": {"predicted_fraction": 0.9, "predict_special_tokens": True}})
    data = PretrainingDataset(dataset_folder, LENGTH, sample_mode=mode, objective=objective)
    unigram = Unigram.of(data, objective)
    total, number = unigram.sum_of(objective.target_ids(data.batch(range(len(data)))))
    assert unigram.expected == pytest.approx(total / number, abs=0.02)


def test_a_token_that_the_training_data_do_not_have_has_a_finite_loss(dataset_folder, count):
    data, objective = PretrainingDataset(dataset_folder, LENGTH), objective_of("mpnet")
    counts, special = count("stream"), data.tokenizer.special_ids
    absent = [piece for piece in range(999) if not counts[piece] and piece not in special]
    assert absent
    total, number = Unigram.of(data, objective).sum_of(np.array(absent[:1]))
    assert number == 1
    ordinary = sum(n for piece, n in counts.items() if piece not in special)
    assert total == pytest.approx(math.log(ordinary + 999 - len(special)))


def test_a_mixture_has_the_level_of_its_samples(dataset_folder, count):
    """Of the shared dataset and its held-out documents, which make up 3/4 of the samples."""
    objective = objective_of({"name": "mpnet", "masking": {"whole_word": False}})
    parts = [(dataset_folder, Fraction(1)), (dataset_folder / "holdout", Fraction(3))]
    data = open_datasets(parts, 0, seq_length=LENGTH, objective=objective)
    unigram, mixed = Unigram.of(data, objective), Counter()
    counts = [count("stream"), count("stream", held_out=True)]
    for share, each in zip((0.25, 0.75), counts, strict=True):
        for piece, number in each.items():
            mixed[piece] += share * number / sum(each.values()) * sum(map(Counter.total, counts))
    np.testing.assert_allclose(unigram.losses, losses_of(mixed, data, False), rtol=1e-9)
    target_ids = objective.target_ids(data.consecutive(0, 4000))
    assert unigram.expected == pytest.approx(unigram.losses[target_ids].mean(), abs=0.03)


@dataclass(frozen=True)
class NoTokens(Objective):
    """Its targets are not tokens."""

    name: ClassVar[str] = "no tokens"

    @property
    def terms(self):
        return (Term("spot", "is_replaced"),)


def test_the_level_is_unknown_without_counts_or_tokens_to_predict(dataset_folder, tmp_path):
    old = shutil.copytree(dataset_folder, tmp_path / "old")
    replace(DatasetManifest.load(old), piece_counts="").save(old)
    objective = objective_of("mpnet")
    assert Unigram.of(PretrainingDataset(old, LENGTH), objective) is None
    parts = [(dataset_folder, Fraction(1)), (old, Fraction(1))]
    assert Unigram.of(open_datasets(parts, 0, seq_length=LENGTH), objective) is None
    assert Unigram.of(PretrainingDataset(dataset_folder, LENGTH), NoTokens()) is None
