"""The Triton kernels of models/layers in Triton's interpreter; run as attention/triton_interpreted.py is."""

import os

import pytest
import torch
from torch import Tensor, library
from torch.nn import functional as F

from mpnet_ds.models.layers import cross_entropy, cross_entropy_kernel, residual_norm
from mpnet_ds.models.layers.residual_norm import ResidualNorm, residual_norm_backward

assert os.environ.get("TRITON_INTERPRET") == "1"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
@pytest.mark.parametrize("width", [37, 9000])
def test_losses_hits_and_gradients_of_logits_are_those_of_pytorch(width, dtype, tolerance):
    logits, labels = 3 * random(6, width, dtype=dtype), torch.tensor([0, width - 1, -1, 5, 7, 0])
    logits[3, 5] = logits[4, 8] = 30  # a hit, and none
    found, expected = logits.clone(), logits.clone()
    losses, hits = cross_entropy_kernel.score_logits(found, labels, True)
    expected_losses, expected_hits = cross_entropy.score_logits(expected, labels, True)
    torch.testing.assert_close(losses, expected_losses, atol=1e-4, rtol=1e-5)
    assert hits.tolist() == expected_hits.int().tolist()
    assert hits[3] == 1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert (found[2] == 0).all()


def test_logits_stay_where_no_gradient_is_wanted_and_need_not_be_contiguous():
    logits = random(3, 64)[:, :40]
    before = logits.clone()
    losses, _ = cross_entropy_kernel.score_logits(logits, torch.tensor([1, 39, 0]), False)
    assert torch.equal(logits, before)
    torch.testing.assert_close(losses, F.cross_entropy(before, torch.tensor([1, 39, 0]), reduction="none"))


def norm_and_gradients(function, x, residual, norm, grad) -> list[Tensor]:
    inputs = [tensor.clone().requires_grad_() for tensor in (x, residual)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, [*inputs, norm.weight, norm.bias], grad)]


def kernel(norm: ResidualNorm, probability: float = 0.0, seed: int = 0):
    """The operator with a norm's weights."""
    drawn = torch.tensor([seed])
    return lambda x, residual: residual_norm.residual_norm(
        x, residual, norm.weight, norm.bias, drawn, probability, norm.eps
    )[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
@pytest.mark.parametrize("width", [24, 300])
def test_norm_and_gradients_are_those_of_pytorch(width, dtype, tolerance):
    norm = ResidualNorm(width, 1e-5, 0.0).to(dtype)
    norm.weight.data, norm.bias.data = 1 + random(width, seed=1, dtype=dtype) / 4, random(width, seed=2, dtype=dtype)
    x, residual, grad = (random(2, 5, width, seed=seed, dtype=dtype) for seed in (3, 4, 5))
    found = norm_and_gradients(kernel(norm), x, residual, norm, grad)
    expected = norm_and_gradients(norm, x, residual, norm, grad)
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=0)


def test_dropout_leaves_out_the_same_numbers_forward_and_backward():
    norm, ones, zeros = ResidualNorm(1000, 1e-5, 0.0), torch.ones(10, 1000), torch.zeros(10, 1000)
    _, total, *_ = residual_norm.residual_norm(ones, zeros, norm.weight, norm.bias, torch.tensor([7]), 0.25, 1e-5)
    kept = total != 0
    torch.testing.assert_close(total[kept], torch.full_like(total[kept], 4 / 3))
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.02)
    x, residual, grad = (random(10, 1000, seed=seed) for seed in (3, 4, 5))
    found = norm_and_gradients(kernel(norm, 0.25, seed=7), x, residual, norm, grad)
    expected = norm_and_gradients(lambda x, residual: norm(x * kept / 0.75, residual), x, residual, norm, grad)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert not torch.equal(kernel(norm, 0.25, seed=7)(x, residual), kernel(norm, 0.25, seed=8)(x, residual))


def test_the_operators_keep_what_they_promise_to_torch():
    norm, x = ResidualNorm(16, 1e-5, 0.0), random(3, 16)
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, x + 1, norm.weight, norm.bias)]
    seed = torch.tensor([3])
    library.opcheck(residual_norm.residual_norm, (*inputs, seed, 0.5, 1e-5))
    _, total, mean, scale = residual_norm.residual_norm(*inputs, seed, 0.5, 1e-5)
    library.opcheck(residual_norm_backward, (x, total.detach(), mean, scale, norm.weight.detach(), seed, 0.5))
    library.opcheck(cross_entropy.score_logits_on_gpu, (random(3, 40), torch.tensor([1, -1, 2]), True))
