"""Dropout on CPUs: how much it leaves out, that it is forgotten nowhere, and that it can be repeated."""

import pytest
import torch

from mpnet_ds.models.attention import cpu
from mpnet_ds.models.attention.cpu import CpuAttention
from mpnet_ds.models.layers.dropout import Dropout
from mpnet_ds.models.layers.random_bits import RandomBits, draw_seed, rounded

SHAPE = (40, 30, 101)
COUNT = 40 * 30 * 101


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.0001, 0.9])
def test_the_share_that_is_left_out_is_the_probability(probability):
    kept = RandomBits(torch.tensor(5)).keep_(torch.empty(SHAPE), probability)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    deviation = (COUNT * probability * (1 - probability)) ** 0.5
    assert (kept == 0).sum().item() == pytest.approx(COUNT * probability, abs=5 * deviation)


def test_draws_next_to_each_other_and_of_near_seeds_do_not_depend_on_each_other():
    first, second = (RandomBits(torch.tensor(seed)).keep_(torch.empty(SHAPE), 0.3) - 0.7 for seed in (7, 8))
    others = [second, *(first.roll(1, dims=dim) for dim in range(3)), first.roll(4, dims=2)]
    for other in others:
        assert abs((first * other).mean() / 0.21) < 5 / COUNT**0.5


def test_probabilities_are_rounded_to_a_65536th():
    assert rounded(0.1) == pytest.approx(0.1, abs=1e-5)
    assert rounded(0.1) * 65536 == 6554


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_and_backward_leaves_out_the_same(dtype):
    torch.manual_seed(0)
    x = torch.ones(SHAPE, dtype=dtype, requires_grad=True)
    dropped = Dropout(0.1)(x)
    scale = torch.tensor(1 / (1 - rounded(0.1)), dtype=dtype)
    assert torch.equal(dropped, torch.where(dropped == 0, 0, scale))
    dropped.backward(torch.full_like(dropped, 2))
    assert torch.equal(x.grad, 2 * dropped)


def test_nothing_is_left_out_in_evaluation_or_at_0():
    x = torch.randn(50)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_pytorchs_seed_repeats_a_draw():
    x = torch.ones(1000)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append((Dropout(0.5)(x), Dropout(0.5)(x)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[0][1])
    assert not torch.equal(found[0][0], found[2][0])


def attended(seed: int, value: torch.Tensor, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(seed)
    return CpuAttention().attend(query, key, value, 0.2, 0, bias)


@pytest.mark.parametrize("at_once", [cpu.SCORES_AT_ONCE, 1400, 1])
def test_attention_leaves_out_probabilities_and_its_gradients_know_which(at_once, monkeypatch):
    """The mask is read off with the identity for values; then the plain formula with that mask must give the same.

    Of the six matrices of 21 by 16 scores all are computed at once, or four and two, or one by one.
    """
    monkeypatch.setattr(cpu, "SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    batch, heads, rows, keys = 2, 3, 21, 16
    query, key, value = (torch.randn(batch, heads, n, 16, generator=generator) for n in (rows, keys, keys))
    bias = torch.randn(batch, heads, rows, keys, generator=generator)
    probabilities = torch.softmax(query @ key.mT / 4 + bias, dim=-1)
    identity = torch.eye(keys).expand(batch, heads, -1, -1)
    seen = attended(9, identity, query, key, bias)
    mask = (seen > 0) / (1 - rounded(0.2))
    torch.testing.assert_close(seen, probabilities * mask, atol=1e-6, rtol=0)
    assert (seen == 0).float().mean().item() == pytest.approx(0.2, abs=0.05)

    leaves = [x.clone().requires_grad_() for x in (query, key, value, bias)]
    upstream = torch.randn(batch, heads, rows, 16, generator=generator)
    found = attended(9, leaves[2], leaves[0], leaves[1], leaves[3])
    expected = (torch.softmax(leaves[0] @ leaves[1].mT / 4 + leaves[3], dim=-1) * mask) @ leaves[2]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    ours, theirs = (torch.autograd.grad(out, leaves, upstream) for out in (found, expected))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


def test_a_seed_is_drawn_anew_each_time():
    torch.manual_seed(0)
    assert len({int(draw_seed()) for _ in range(100)}) == 100
