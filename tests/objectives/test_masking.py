import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.counter_rng import below, draw, make_key
from mpnet_ds.data import MaskingConfig
from mpnet_ds.errors import UserError
from mpnet_ds.objectives import objective_of
from mpnet_ds.objectives.base import Vocabulary
from mpnet_ds.objectives.masking import drop_predictions_without_context, mask_sequences
from mpnet_ds.word_boundaries import LONGEST_WORD

V = 1000
MASK_ID = V - 1
SPECIAL = np.array([0, 1, 2, 3, 4, MASK_ID])
TOKEN_BY_TOKEN = MaskingConfig(whole_word=False)


def vocabulary(share_of_continuations: float = 0.4) -> Vocabulary:
    is_special = np.isin(np.arange(V), SPECIAL)
    starts_word = np.random.default_rng(0).random(V) >= share_of_continuations
    return Vocabulary(starts_word | is_special, is_special, MASK_ID)


def full_sequences(count: int, n: int = 512, seed: int = 0, share_of_ends: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(5, MASK_ID, (count, n))
    input_ids[rng.random(input_ids.shape) < share_of_ends] = 2
    input_ids[:, 0] = 0
    return input_ids, np.ones(input_ids.shape, dtype=bool)


def mask(input_ids, attention_mask, words=None, config=None, first_key=0):
    keys = make_key(0, first_key + np.arange(len(input_ids)))
    return mask_sequences(input_ids, attention_mask, keys, words or vocabulary(), config or MaskingConfig())


def words_of(ids: np.ndarray, length: int, words: Vocabulary) -> list[list[int]]:
    """Positions of each word; a special token stands alone, and so does each token of what is longer than a word."""
    found = []
    for position in range(length):
        token = ids[position]
        alone = position == 0 or words.is_special[token] or words.is_special[ids[position - 1]]
        if alone or words.starts_word[token]:
            found.append([])
        found[-1].append(position)
    return [part for word in found for part in ([word] if len(word) <= LONGEST_WORD else [[token] for token in word])]


@st.composite
def batches(draw):
    """Rows of several lengths with padding, of any mixture of words, continuations and special tokens."""
    n = draw(st.integers(8, 80))
    lengths = np.array(draw(st.lists(st.integers(1, n), min_size=1, max_size=5)))
    shares = draw(st.tuples(st.floats(0, 1), st.floats(0, 0.9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    input_ids = rng.integers(5, MASK_ID, (len(lengths), n))
    special = rng.random(input_ids.shape) < shares[1]
    input_ids[special] = rng.choice([0, 2, 4], special.sum())
    attention_mask = np.arange(n) < lengths[:, None]
    input_ids[~attention_mask] = 1
    config = MaskingConfig(
        predicted_fraction=draw(st.floats(0.01, 0.99)),
        whole_word=draw(st.booleans()),
        predict_special_tokens=draw(st.booleans()),
        max_ngram=draw(st.sampled_from([1, 2, 5])),
    )
    return input_ids, attention_mask, vocabulary(shares[0]), config


@given(batches(), st.integers(0, 2**32))
def test_predicted_positions_are_distinct_and_allowed_and_unused_entries_come_last(batch, first_key):
    input_ids, attention_mask, words, config = batch
    positions, inputs = mask(*batch, first_key)
    width = round(config.predicted_fraction * input_ids.shape[1])
    assert positions.shape == inputs.shape == (len(input_ids), width)
    assert positions.dtype == inputs.dtype == np.int64
    for ids, real, chosen, shown in zip(input_ids, attention_mask, positions, inputs, strict=True):
        allowed = real if config.predict_special_tokens else real & ~words.is_special[ids]
        used = min(round(config.predicted_fraction * real.sum()), allowed.sum())
        assert np.unique(chosen[:used]).size == used
        assert allowed[chosen[:used]].all()
        assert (chosen[used:] == -1).all()
        assert (shown[used:] == 0).all()
        ordinary = ~words.is_special[shown[:used]]
        assert ((shown[:used] == MASK_ID) | (shown[:used] == ids[chosen[:used]]) | ordinary).all()


@given(batches(), st.integers(0, 2**32))
def test_at_most_one_word_of_a_sequence_is_cut(batch, first_key):
    input_ids, attention_mask, words, config = batch
    if not config.whole_word:
        config = MaskingConfig(predicted_fraction=config.predicted_fraction, max_ngram=config.max_ngram)
    positions, _ = mask(input_ids, attention_mask, words, config, first_key)
    for ids, real, chosen in zip(input_ids, attention_mask, positions, strict=True):
        shares = [np.isin(word, chosen).mean() for word in words_of(ids, real.sum(), words)]
        assert sum(0 < share < 1 for share in shares) <= 1


@given(batches(), st.integers(0, 2**32), st.randoms())
def test_a_sequence_does_not_depend_on_the_others_of_its_batch(batch, first_key, random):
    input_ids, attention_mask, words, config = batch
    keys = make_key(0, first_key + np.arange(len(input_ids)))
    positions, inputs = mask_sequences(input_ids, attention_mask, keys, words, config)
    order = random.sample(range(len(keys)), len(keys))
    shuffled = mask_sequences(input_ids[order], attention_mask[order], keys[order], words, config)
    np.testing.assert_array_equal(shuffled, [positions[order], inputs[order]])
    alone = mask_sequences(input_ids[:1], attention_mask[:1], keys[:1], words, config)
    np.testing.assert_array_equal(alone, [positions[:1], inputs[:1]])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MaskingConfig(), "c0655744ac986832"),
        (TOKEN_BY_TOKEN, "4e94effb4787e465"),
        (
            MaskingConfig(predicted_fraction=0.4, mask_probability=0.5, keep_probability=0.2, random_probability=0.3),
            "5c93dfaec590f4c5",
        ),
    ],
)
def test_samples_are_those_of_the_first_release(config, expected):
    """A run that is resumed with a newer version, and the losses that the README quotes, rest on this."""
    input_ids = 5 + below(draw(make_key(0, np.arange(40)[:, None]), np.arange(256)), MASK_ID - 5)
    input_ids[:, 0] = 0
    input_ids[:, 100], input_ids[:, 101] = 2, np.flatnonzero(vocabulary().starts_word)[7]
    attention_mask = np.arange(256) < np.where(np.arange(40) % 4, 256, 3 * np.arange(40))[:, None]
    input_ids[~attention_mask] = 1
    positions, inputs = mask(input_ids, attention_mask, config=config)
    assert hashlib.sha256(positions.tobytes() + inputs.tobytes()).hexdigest()[:16] == expected


@pytest.mark.parametrize("whole_word", [True, False])
def test_of_512_tokens_exactly_77_are_predicted(whole_word):
    positions, _ = mask(*full_sequences(50), config=MaskingConfig(whole_word=whole_word))
    assert positions.shape == (50, 77)
    assert (positions > 0).all()


def test_short_sequences_have_their_own_number_of_predicted_tokens():
    input_ids, attention_mask = full_sequences(4, share_of_ends=0)
    attention_mask[:] = np.arange(512) < np.array([512, 256, 10, 3])[:, None]
    positions, _ = mask(input_ids, attention_mask)
    assert (positions >= 0).sum(axis=1).tolist() == [77, 38, 2, 0]


def test_the_number_of_predicted_tokens_rounds_as_the_original_does():
    lengths = np.arange(2049)
    assert MaskingConfig().num_predicted(lengths).tolist() == [round(0.15 * n) for n in lengths.tolist()]


@pytest.mark.parametrize("max_ngram", [1, 3])
@pytest.mark.parametrize("num_tokens", [8, 16, 17, 200])
def test_each_token_of_one_long_word_is_predicted_for_some_keys(num_tokens, max_ngram):
    input_ids, attention_mask = full_sequences(400, n=num_tokens, share_of_ends=0)
    no_starts = Vocabulary(np.zeros(V, dtype=bool), vocabulary().is_special, MASK_ID)
    positions, _ = mask(input_ids, attention_mask, no_starts, MaskingConfig(max_ngram=max_ngram))
    counts = np.bincount(positions.ravel(), minlength=num_tokens)[1:]
    share = positions.shape[1] / (num_tokens - 1)
    assert np.abs(counts - 400 * share).max() < 5 * np.sqrt(400 * share * (1 - share)) * max_ngram


def test_a_span_of_more_tokens_than_are_predicted_is_cut_at_one_word():
    input_ids = np.tile([0, *([600, 7, 7] * 3)], (300, 1))
    words = Vocabulary(np.arange(V) >= 500, vocabulary().is_special, MASK_ID)
    positions, _ = mask(input_ids, np.ones(input_ids.shape, dtype=bool), words, MaskingConfig(0.4, max_ngram=3))
    chosen = [{(position - 1) // 3: sum((row - 1) // 3 == (position - 1) // 3) for position in row} for row in positions]
    assert all(sum(count < 3 for count in row.values()) <= 1 for row in chosen)


def test_a_word_begins_after_a_piece_that_ends_one():
    ends = np.arange(V) < 500
    words = Vocabulary(np.zeros(V, dtype=bool), vocabulary().is_special, MASK_ID, ends_word=ends)
    input_ids = np.tile([0, *([600, 600, 7] * 13)], (300, 1))
    positions, _ = mask(input_ids, np.ones(input_ids.shape, dtype=bool), words)
    assert {tuple(np.sort(row)) for row in (positions - 1) // 3} <= {
        (a, a, a, b, b, b) for a in range(13) for b in range(a + 1, 13)
    }
    assert np.unique(positions).tolist() == list(range(1, 40))


def test_inputs_are_masked_kept_and_replaced_80_10_10():
    input_ids, attention_mask = full_sequences(2000)
    positions, inputs = mask(input_ids, attention_mask)
    true = np.take_along_axis(input_ids, positions, axis=1)
    num_ordinary = V - len(SPECIAL)
    hit_by_chance = 0.1 / num_ordinary
    masked, kept = inputs == MASK_ID, inputs == true
    shares = [(masked, 0.8), (kept, 0.1 + hit_by_chance), (~masked & ~kept, 0.1 - hit_by_chance)]
    for found, expected in shares:
        sigma = np.sqrt(expected * (1 - expected) / inputs.size)
        assert found.mean() == pytest.approx(expected, abs=5 * sigma)
    for entry in (0, 38, 76):
        assert masked[:, entry].mean() == pytest.approx(0.8, abs=5 * np.sqrt(0.16 / 2000))


def test_replacements_are_every_ordinary_id_equally_often_and_no_special_one():
    input_ids, attention_mask = full_sequences(1000)
    config = MaskingConfig(mask_probability=0, keep_probability=0, random_probability=1)
    _, inputs = mask(input_ids, attention_mask, config=config)
    counts = np.bincount(inputs.ravel(), minlength=V)
    assert not counts[SPECIAL].any()
    counts = np.delete(counts, SPECIAL)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi_square - (counts.size - 1)) < 6 * np.sqrt(2 * (counts.size - 1))


def test_special_tokens_are_predicted_only_when_asked_for():
    input_ids, attention_mask = full_sequences(200, share_of_ends=0.2)
    input_ids[:, 1] = 4
    for asked, least in ((False, 0), (True, 1000)):
        positions, _ = mask(input_ids, attention_mask, config=MaskingConfig(predict_special_tokens=asked))
        predicted = np.take_along_axis(input_ids, positions, axis=1)
        for special in (0, 2, 4):
            assert (predicted == special).any() == asked
        assert np.isin(predicted, SPECIAL).sum() >= least


def test_in_a_sequence_of_special_tokens_nothing_is_predicted():
    input_ids = np.full((2, 16), 2)
    positions, inputs = mask(input_ids, np.ones((2, 16), dtype=bool))
    assert positions.tolist() == [[-1, -1]] * 2
    assert inputs.tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("config", [MaskingConfig(), TOKEN_BY_TOKEN])
def test_every_position_is_predicted_equally_often(config):
    input_ids, attention_mask = full_sequences(3000, n=128, share_of_ends=0)
    positions, _ = mask(input_ids, attention_mask, vocabulary(0), config)
    counts = np.bincount(positions.ravel(), minlength=128)
    share = 19 / 127
    assert counts[0] == 0
    assert np.abs(counts[1:] - 3000 * share).max() < 5 * np.sqrt(3000 * share * (1 - share))


@pytest.mark.parametrize("config", [MaskingConfig(), TOKEN_BY_TOKEN])
def test_the_order_of_prediction_does_not_follow_the_order_of_positions(config):
    positions, _ = mask(*full_sequences(2000), config=config)
    for entry in (0, 76):
        assert positions[:, entry].mean() == pytest.approx(256, abs=5 * 512 / np.sqrt(12 * 2000))
        assert positions[:, entry].std() == pytest.approx(512 / np.sqrt(12), rel=0.05)
    ascending = np.diff(positions, axis=1) > 0
    assert ascending.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(ascending.size))


def test_the_tokens_of_a_word_are_not_kept_together_in_the_order():
    words = vocabulary(0.6)
    input_ids, attention_mask = full_sequences(300)
    positions, _ = mask(input_ids, attention_mask, words)
    neighbours = np.abs(np.diff(positions, axis=1)) == 1
    pairs = np.diff(np.sort(positions, axis=1), axis=1) == 1
    assert pairs.mean() > 0.4
    assert neighbours.mean() < 0.05


def test_whole_words_are_chosen_together_more_often_than_single_tokens():
    words = vocabulary(0.6)
    input_ids, attention_mask = full_sequences(100)
    complete = []
    for config in (MaskingConfig(), TOKEN_BY_TOKEN):
        positions, _ = mask(input_ids, attention_mask, words, config)
        long_words = [
            np.isin(word, chosen).mean()
            for ids, chosen in zip(input_ids, positions, strict=True)
            for word in words_of(ids, 512, words)
            if len(word) >= 3
        ]
        complete.append(np.mean(np.array(long_words) == 1))
    assert complete[0] > 0.1
    assert complete[1] < 0.02


def shares_of_runs(max_ngram: int, whole_word: bool) -> list[float]:
    """Sequences with three predicted tokens: how many have them in three separate runs, two, one."""
    input_ids, attention_mask = full_sequences(6000, n=256, share_of_ends=0)
    config = MaskingConfig(predicted_fraction=3 / 256, max_ngram=max_ngram, whole_word=whole_word)
    positions, _ = mask(input_ids, attention_mask, vocabulary(0 if whole_word else 0.4), config)
    pairs = (np.diff(np.sort(positions, axis=1), axis=1) == 1).sum(axis=1)
    return [np.mean(pairs == count) for count in range(3)]


@pytest.mark.parametrize("whole_word", [True, False])
def test_spans_have_n_words_with_a_probability_proportional_to_one_in_n(whole_word):
    one, two, three = 6 / 11, 3 / 11, 2 / 11  # the first span fills all three, or two, or one and then the next begins
    expected = [one * one, two + one * (two + three), three]
    assert shares_of_runs(3, whole_word) == pytest.approx(expected, abs=0.03)
    assert shares_of_runs(1, whole_word) == pytest.approx([1, 0, 0], abs=0.04)
    assert shares_of_runs(2, whole_word) == pytest.approx([4 / 9, 1 / 3 + 2 / 9, 0], abs=0.04)


@pytest.mark.parametrize("predict_special_tokens", [True, False])
def test_spans_end_at_special_tokens(predict_special_tokens):
    input_ids, attention_mask = full_sequences(20, n=64)
    input_ids[:, ::2] = np.resize([2, 0, 4, 1, 3, MASK_ID], 32)
    single, spans = (
        mask(
            input_ids,
            attention_mask,
            vocabulary(0),
            MaskingConfig(max_ngram=n, predict_special_tokens=predict_special_tokens),
        )
        for n in (1, 16)
    )
    np.testing.assert_array_equal(single, spans)


@pytest.mark.parametrize("max_ngram", [1, 4])
def test_a_piece_after_a_special_token_begins_a_word(max_ngram):
    input_ids, attention_mask = full_sequences(20, n=64)
    input_ids[:, ::2] = 2
    no_starts = Vocabulary(vocabulary().is_special, vocabulary().is_special, MASK_ID)
    config = MaskingConfig(predict_special_tokens=True, max_ngram=max_ngram)
    found = mask(input_ids, attention_mask, no_starts, config)
    single = mask(input_ids, attention_mask, no_starts, MaskingConfig(predict_special_tokens=True, whole_word=False))
    np.testing.assert_array_equal(found, single)


def test_spans_are_drawn_anew_for_each_key():
    input_ids, attention_mask = full_sequences(1, n=64, share_of_ends=0)
    repeated = np.repeat(input_ids, 2000, axis=0), np.repeat(attention_mask, 2000, axis=0)
    positions, _ = mask(*repeated, vocabulary(0), MaskingConfig(predicted_fraction=2 / 64, max_ngram=2))
    first = positions.min(axis=1)[np.ptp(positions, axis=1) == 1]
    assert len(first) > 500
    assert set(range(2, 62)) <= set(first.tolist())


def test_other_keys_give_other_predicted_tokens():
    input_ids, attention_mask = full_sequences(1)
    repeated = np.repeat(input_ids, 50, axis=0), np.repeat(attention_mask, 50, axis=0)
    positions, _ = mask(*repeated)
    assert np.unique(positions, axis=0).shape[0] == 50
    common = [np.intersect1d(positions[0], other).size for other in positions[1:]]
    assert np.mean(common) == pytest.approx(77 * 77 / 502, abs=4)


def test_the_arguments_are_left_as_they_were():
    input_ids, attention_mask = full_sequences(3)
    words = vocabulary()
    before = input_ids.copy(), attention_mask.copy(), words.starts_word.copy(), words.is_special.copy()
    mask(input_ids, attention_mask, words)
    for array, copy in zip((input_ids, attention_mask, words.starts_word, words.is_special), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_vocabulary_is_taken_from_the_tokenizer(tokenizer):
    words = Vocabulary.of(tokenizer)
    assert np.flatnonzero(words.is_special).tolist() == tokenizer.special_ids.tolist()
    assert words.mask_id == tokenizer.mask_id
    assert [tokenizer.pieces[i].startswith("##") for i in range(999)] == (~words.starts_word).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predicted_fraction": 0}, "predicted_fraction is 0; it must be greater than 0"),
        ({"predicted_fraction": 1.0}, r"predicted_fraction is 1\.0; it must be less than 1"),
        ({"mask_probability": 0.9, "keep_probability": 0.2}, "sum to 1"),
        ({"mask_probability": 0.5, "keep_probability": 0.2, "random_probability": 0.2}, "sum to 1"),
        ({"keep_probability": -0.1}, r"keep_probability is -0\.1; it must be at least 0"),
        ({"mask_probability": float("nan")}, "mask_probability is NaN"),
        ({"predicted_fraction": "0.15"}, r"predicted_fraction is \"0\.15\"; it must be"),
        ({"random_probability": True}, "random_probability is true; it must be"),
        ({"whole_word": 1}, "whole_word is 1; it must be"),
        ({"predict_special_tokens": "no"}, 'predict_special_tokens is "no"'),
        ({"max_ngram": 0}, "max_ngram is 0; it must be at least 1"),
        ({"max_ngram": 17}, "max_ngram is 17"),
        ({"max_ngram": 2.5}, r"max_ngram is 2\.5; it must be"),
        ({"max_ngram": True}, "max_ngram is true"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        objective_of({"name": "mpnet", "masking": settings})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.8, 0.1, 0.1)),
        ({"mask_probability": 1.0}, (1.0, 0.0, 0.0)),
        ({"mask_probability": 0.5}, (0.5, 0.25, 0.25)),
        ({"keep_probability": 0.0}, (8 / 9, 0.0, 1 / 9)),
        ({"random_probability": 0.1, "keep_probability": 0.0}, (0.9, 0.0, 0.1)),
    ],
)
def test_probabilities_that_are_left_out_share_the_rest_as_their_defaults_do(given, expected):
    config = MaskingConfig(**given)
    assert (config.mask_probability, config.keep_probability, config.random_probability) == pytest.approx(expected)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_an_isolated_document_is_never_predicted_whole(seed, lengths):
    """Else its first token would be predicted from nothing, or from what it must not see."""
    documents = np.repeat(np.arange(len(lengths)), lengths)[None]
    num_tokens = documents.shape[1]
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, num_tokens + 1))
    positions = np.full((1, num_tokens + 1), -1)
    positions[0, :count] = generator.permutation(num_tokens)[:count]
    inputs = np.where(positions >= 0, positions + 100, 0)
    real = np.ones((1, num_tokens), dtype=bool)
    kept, kept_inputs = drop_predictions_without_context(positions, inputs, documents, real)
    chosen = set(positions[0, :count].tolist())
    positions_of = [set(np.flatnonzero(documents[0] == number).tolist()) for number in range(len(lengths))]
    whole = set().union(*[one for one in positions_of if one <= chosen])
    expected = [int(position) for position in positions[0, :count] if position not in whole]
    assert kept[0].tolist() == expected + [-1] * (num_tokens + 1 - len(expected))
    assert kept_inputs[0].tolist() == [position + 100 for position in expected] + [0] * (num_tokens + 1 - len(expected))
