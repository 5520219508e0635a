import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.counter_rng import below, draw, make_key, mix, unit_interval

UINT64 = st.integers(0, 2**64 - 1)


def test_draws_are_the_published_numbers_of_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert draw(np.uint64(1234567), np.arange(5)).tolist() == published


@given(UINT64, UINT64)
def test_mix_never_maps_two_numbers_to_one(a, b):
    x, y = mix(np.array([a, b], dtype=np.uint64)).tolist()
    assert (a == b) == (x == y)


def test_each_input_bit_flips_half_of_the_output_bits():
    x = draw(np.uint64(1), np.arange(2000))
    for bit in range(64):
        changed = mix(x) ^ mix(x ^ np.uint64(1 << bit))
        assert np.bitwise_count(changed).mean() == pytest.approx(32, abs=6 * 4 / np.sqrt(2000))


@given(st.integers(-(2**63), 2**64 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_a_key_of_an_array_is_the_keys_of_its_items(seed, parts):
    keys = make_key(seed, 3, np.array(parts))
    assert keys.dtype == np.uint64
    assert keys.tolist() == [int(make_key(seed, 3, part)) for part in parts]


def test_a_key_depends_on_every_part_and_on_their_order():
    keys = {int(make_key(*parts)) for parts in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 2), (0, 2, 1), (-1,), (2**63,)]}
    assert len(keys) == 9


def test_neighbouring_keys_and_counters_give_unrelated_bits():
    bits = draw(make_key(0, np.arange(300))[:, None], np.arange(300))
    assert np.unique(bits).size == bits.size
    in_bits = np.unpackbits(bits.view(np.uint8).reshape(300, -1), axis=1).astype(float)
    assert in_bits.mean() == pytest.approx(0.5, abs=6 * 0.5 / np.sqrt(in_bits.size))
    rows = np.corrcoef(in_bits)
    assert np.abs(rows[~np.eye(300, dtype=bool)]).max() < 6 / np.sqrt(in_bits.shape[1])


@given(UINT64, st.integers(1, 2**32 - 1))
def test_below_is_the_scaled_upper_half(bits, limit):
    assert int(below(np.uint64(bits), limit)) == ((bits >> 32) * limit) >> 32 < limit


def test_below_reaches_every_number_equally_often():
    counts = np.bincount(below(draw(np.uint64(7), np.arange(100_000)), 10), minlength=10)
    assert counts.size == 10
    assert np.abs(counts - 10_000).max() < 6 * np.sqrt(100_000 * 0.1 * 0.9)


@given(UINT64)
def test_the_unit_interval_is_half_open(bits):
    assert 0 <= unit_interval(np.uint64(bits)) < 1


def test_the_unit_interval_is_filled_evenly():
    x = unit_interval(draw(np.uint64(5), np.arange(100_000)))
    assert x.mean() == pytest.approx(0.5, abs=6 / np.sqrt(12 * 100_000))
    assert x.var() == pytest.approx(1 / 12, rel=0.02)


def test_arithmetic_modulo_two_to_the_64_raises_no_warning():
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        draw(make_key(2**64 - 1, 2**63, -1), np.array([-1, 2**62]))
    assert raised == []
