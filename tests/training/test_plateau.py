"""When a run is said to have left the loss of word frequencies alone, or to be still there."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.training.plateau import CLEARLY, LEAST_TOKENS, Plateau, due_step

LEVEL, DUE = 7.0, 3
LOSSES = st.lists(st.sampled_from([LEVEL, LEVEL + 1, LEVEL - 0.2, LEVEL - 0.4, math.nan]), min_size=1, max_size=15)


def judge(plateau: Plateau, losses: list[float], first: int = 1) -> list[str]:
    return [plateau.judge(step, loss, LEVEL) for step, loss in enumerate(losses, first)]


@given(LOSSES)
def test_it_is_left_once_and_warned_of_once_and_only_before(losses):
    found = judge(Plateau(None, DUE), losses)
    below = [loss < LEVEL - CLEARLY for loss in losses]
    left = below.index(True) if any(below) else len(losses)
    due = [number for number in range(DUE - 1, left) if losses[number] >= LEVEL - CLEARLY]
    expected = {left: "left"} if any(below) else {}
    if due:
        expected[due[0]] = "stuck"
    assert found == [expected.get(number, "") for number in range(len(losses))]


def test_it_is_left_clearly_below_the_level_only():
    assert judge(Plateau(None, DUE), [LEVEL, LEVEL - 0.29, LEVEL - 0.31, LEVEL, 1.0]) == ["", "", "left", "", ""]


def test_a_loss_of_no_target_says_nothing():
    assert judge(Plateau(None, 2), [math.nan, math.nan, LEVEL]) == ["", "", "stuck"]


@given(LOSSES, st.integers(0, 15))
def test_it_continues_from_its_state(losses, cut):
    whole, first, second = (Plateau(None, DUE) for _ in range(3))
    expected = judge(whole, losses)
    found = judge(first, losses[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    assert found + judge(second, losses[cut:], 1 + min(cut, len(losses))) == expected


@pytest.mark.parametrize(
    ("max_steps", "warmup_steps", "tokens_per_step", "due"),
    [
        (100_000, 500, 1e6, 10_000),  # a tenth of the steps
        (100_001, 500, 1e6, 10_001),  # rounded up
        (1_000, 500, 1e6, 501),  # the warm-up has to be over
        (1_000, 50, 1_000.0, 1_000_000 // 1_000),  # the tokens that the slowest runs needed
    ],
)
def test_a_run_is_due_after_a_tenth_its_warm_up_and_a_least_number_of_tokens(max_steps, warmup_steps, tokens_per_step, due):
    assert LEAST_TOKENS == 1_000_000
    assert due_step(max_steps, warmup_steps, tokens_per_step) == due


@given(st.integers(1, 10**6), st.integers(0, 10**5), st.floats(8, 1e8))
def test_no_limit_is_fallen_short_of(max_steps, warmup_steps, tokens_per_step):
    due = due_step(max_steps, warmup_steps, tokens_per_step)
    assert due >= max_steps / 10
    assert due > warmup_steps
    assert (due + 0.5) * tokens_per_step >= LEAST_TOKENS
    assert due <= max(max_steps / 10 + 1, warmup_steps + 1, LEAST_TOKENS / tokens_per_step + 0.5)
