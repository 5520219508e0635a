"""The fused projection and loss against the plain one, whatever the number of rows at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import library
from torch.nn import functional as F

from mpnet_ds.models.layers.cross_entropy import linear_cross_entropy, score

NAMES = ("hidden", "weight", "bias")


def problem(rows: int, width: int, pieces: int, seed: int, dtype=torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (pieces, width), (pieces,))
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return tensors, torch.randint(-1, pieces, (rows,), generator=generator)


def plain(hidden, weight, bias, labels):
    logits = F.linear(hidden, weight, bias).float()
    hits = (logits.argmax(1) == labels) & (labels >= 0)
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="none"), hits


@given(
    rows=st.integers(1, 9), pieces=st.integers(2, 40), at_once=st.integers(1, 200), multiple=st.sampled_from([1, 8, 64]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_losses_hits_and_gradients_are_those_of_the_plain_loss(rows, pieces, at_once, multiple, seed):
    tensors, labels = problem(rows, 5, pieces, seed)
    expected, expected_hits = plain(*tensors, labels)
    total, losses, hits, *gradients = score(*tensors, labels, at_once, multiple, True)
    torch.testing.assert_close(total, expected.sum().detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(losses, expected.detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(hits, expected_hits)
    for name, found, theirs in zip(NAMES, gradients, torch.autograd.grad(expected.sum(), tensors), strict=True):
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5, msg=name)


def test_backward_scales_with_what_it_gets():
    tensors, labels = problem(12, 6, 30, seed=1)
    expected = torch.autograd.grad(plain(*tensors, labels)[0].sum() * 0.3, tensors)
    for found, theirs in zip(
        torch.autograd.grad(linear_cross_entropy(*tensors, labels)[0] * 0.3, tensors), expected, strict=True
    ):
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gradients_are_near_the_exact_ones(dtype):
    tensors, labels = problem(200, 32, 500, seed=2, dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = torch.autograd.grad(F.cross_entropy(F.linear(*exact), labels, ignore_index=-1, reduction="sum"), exact)
    _, _, _, *gradients = score(*tensors, labels, 50 * 500, 64, True)
    for name, found, theirs in zip(NAMES, gradients, expected, strict=True):
        assert (found.double() - theirs).norm() < 0.02 * theirs.norm(), name


def test_filled_up_pieces_are_never_predicted():
    hidden, weight, bias = torch.randn(50, 4), torch.randn(10, 4), torch.full((10,), -1000.0)
    labels = F.linear(hidden, weight, bias).argmax(1)
    total, _, hits, *_ = score(hidden, weight, bias, labels, 100, 64, False)
    assert hits.sum() == 50
    torch.testing.assert_close(total, plain(hidden, weight, bias, labels)[0].sum(), atol=1e-3, rtol=1e-5)


def test_without_gradients_none_are_computed():
    tensors, labels = problem(3, 4, 5, seed=3)
    with torch.no_grad():
        total, *_ = linear_cross_entropy(*tensors, labels)
    assert not total.requires_grad
    assert [x.numel() for x in score(*tensors, labels, 9, 1, False)[3:]] == [0, 0, 0]


def test_rows_that_do_not_count_may_hold_anything():
    tensors, labels = problem(4, 3, 6, seed=4)
    labels[2] = -1
    with torch.no_grad():
        tensors[0][2] = 1e30
    total, *_ = linear_cross_entropy(*tensors, labels)
    total.backward()
    assert torch.isfinite(total)
    assert not tensors[0].grad[2].any()
    assert torch.isfinite(tensors[1].grad).all()


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_operator_keeps_what_it_promises_to_torch(multiple):
    tensors, labels = problem(5, 3, 6, seed=5)
    library.opcheck(score, (*tensors, labels, 12, multiple, True))
