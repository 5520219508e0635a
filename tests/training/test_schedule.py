import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.training.schedule import learning_rate


def test_first_step_has_one_step_of_the_warm_up_and_the_last_one_step_of_the_decay():
    rates = [learning_rate(step, 1.0, 4, 10) for step in range(1, 11)]
    expected = [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    assert rates == pytest.approx(expected)


@given(st.integers(1, 50), st.integers(1, 200), st.floats(1e-6, 1.0))
def test_rates_rise_to_the_peak_then_fall_and_stay_positive(warmup, length, peak):
    rates = [learning_rate(step, peak, warmup, warmup + length) for step in range(1, warmup + length + 1)]
    assert max(rates) == pytest.approx(peak)
    assert rates.index(max(rates)) == warmup - 1
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup - 1 :] == sorted(rates[warmup - 1 :], reverse=True)
    assert min(rates) > 0
