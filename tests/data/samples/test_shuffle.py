import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.data.samples.shuffle import shuffled

SEEDS = st.integers(-(2**63), 2**64 - 1)
EPOCHS = st.integers(0, 2**40)


@given(st.integers(1, 3000), SEEDS, EPOCHS)
def test_an_epoch_is_a_permutation_of_all_samples(num_samples, seed, epoch):
    order = shuffled(np.arange(num_samples), num_samples, seed, epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(num_samples))


@given(st.integers(1, 2**50), SEEDS, st.data())
def test_samples_of_huge_datasets_are_distinct_and_in_range(num_samples, seed, data):
    positions = data.draw(st.lists(st.integers(0, num_samples - 1), min_size=1, max_size=30, unique=True))
    order = shuffled(np.array(positions), num_samples, seed, 1)
    assert order.min() >= 0
    assert order.max() < num_samples
    assert np.unique(order).size == len(positions)


@given(st.integers(1, 10_000), SEEDS, st.data())
def test_an_item_does_not_depend_on_what_is_asked_with_it(num_samples, seed, data):
    item = st.tuples(st.integers(0, num_samples - 1), st.integers(0, 5))
    positions, epochs = np.array(data.draw(st.lists(item, min_size=1, max_size=12))).T
    together = shuffled(positions, num_samples, seed, epochs)
    alone = [int(shuffled(p, num_samples, seed, e)) for p, e in zip(positions, epochs, strict=True)]
    assert together.tolist() == alone


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [shuffled(np.arange(500), 500, seed, epoch) for seed in range(5) for epoch in range(5)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 12  # one on average


def test_any_sample_may_be_at_any_position():
    num_samples, epochs = 1000, 20_000
    expected, spread = epochs / num_samples, np.sqrt(2 * (num_samples - 1))
    for position in (0, 1, 500, 999):
        counts = np.bincount(shuffled(position, num_samples, 3, np.arange(epochs)), minlength=num_samples)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - (num_samples - 1)) < 6 * spread


def test_neighbours_in_the_dataset_are_far_apart_in_the_order():
    order = shuffled(np.arange(10_000), 10_000, 0, 0)
    assert np.abs(np.diff(order)).mean() == pytest.approx(10_000 / 3, rel=0.05)
    assert np.abs(order - np.arange(10_000)).mean() == pytest.approx(10_000 / 3, rel=0.05)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_outside_the_epoch_is_refused(position):
    with pytest.raises(ValueError, match="0 … 9"):
        shuffled(np.array([0, position]), 10, 0, 0)


def test_shapes_are_kept():
    assert shuffled(np.zeros((3, 4), dtype=int), 7, 0, 0).shape == (3, 4)
    assert shuffled(np.arange(4), 7, 0, np.arange(3)[:, None]).shape == (3, 4)
    assert shuffled(np.array([], dtype=int), 7, 0, 0).shape == (0,)
