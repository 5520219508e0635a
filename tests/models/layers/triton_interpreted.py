"""The Triton kernels of models/layers in Triton's interpreter; run as attention/triton_interpreted.py is."""

import os
from functools import partial

import pytest
import torch
from torch import Tensor, library
from torch.nn import functional as F

from mpnet_ds.models.layers import cross_entropy, cross_entropy_kernel, gelu, gelu_kernel, kernels, residual_norm
from mpnet_ds.models.layers.dropout import drop_by_kernel, dropout
from mpnet_ds.models.layers.gelu import GeluLinear
from mpnet_ds.models.layers.residual_norm import ResidualNorm, residual_norm_backward
from tests.models.layers.test_dropout import losses, small_model

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


@pytest.fixture
def use_kernels(monkeypatch):
    """A function: from now on the layers take their kernels."""
    return lambda: monkeypatch.setattr(kernels, "run_on", lambda tensor: True)


def output_and_gradients(layer, parameters, inputs, grad) -> list[Tensor]:
    """The output of ``layer(*inputs)``, and the gradients of inputs and parameters."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    out = layer(*inputs)
    return [out.detach(), *torch.autograd.grad(out, [*inputs, *parameters], grad)]


def assert_near(found, expected, tolerance) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=0)


def dense(width: int, dtype: torch.dtype = torch.float32, kind=torch.nn.Linear):
    layer = kind(8, width).to(dtype)
    layer.weight.data, layer.bias.data = random(width, 8, seed=6, dtype=dtype) / 3, random(width, seed=7, dtype=dtype)
    return layer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
@pytest.mark.parametrize("width", [24, 300])
def test_norm_and_gradients_are_those_of_pytorch(width, dtype, tolerance, use_kernels):
    norm, of_x = ResidualNorm(width, 1e-5, 0.0).to(dtype), dense(width, dtype)
    norm.weight.data, norm.bias.data = 1 + random(width, seed=1, dtype=dtype) / 4, random(width, seed=2, dtype=dtype)
    inputs, grad = [random(2, 5, size, seed=3, dtype=dtype) for size in (8, width)], random(2, 5, width, seed=5, dtype=dtype)
    arguments = partial(norm, of_x, seeds=None), [*norm.parameters(), *of_x.parameters()], inputs, grad
    expected = output_and_gradients(*arguments)
    use_kernels()
    assert_near(output_and_gradients(*arguments), expected, tolerance)


def test_dropout_leaves_out_the_same_numbers_forward_and_backward(use_kernels):
    norm, of_x = ResidualNorm(1000, 1e-5, 0.0), dense(1000)
    ones, zeros, bias = torch.ones(10, 1000), torch.zeros(10, 1000), torch.zeros(1000)
    _, total, *_ = residual_norm.residual_norm(ones, zeros, norm.weight, norm.bias, bias, torch.tensor([7, 8]), 0.25, 1e-5)
    kept = total != 0
    torch.testing.assert_close(total[kept], torch.full_like(total[kept], 4 / 3))
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.02)

    def drawn(seed: int):
        norms = norm.weight, norm.bias, of_x.bias, torch.tensor([seed, 8]), 0.25, norm.eps
        return lambda x, residual: residual_norm.residual_norm(
            F.linear(x, of_x.weight, of_x.bias.detach()), residual, *norms
        )[0]

    inputs, grad = [random(10, 8, seed=3), random(10, 1000, seed=4)], random(10, 1000, seed=5)
    parameters = [*norm.parameters(), *of_x.parameters()]
    expected = output_and_gradients(
        lambda x, residual: norm(lambda x: of_x(x) * kept / 0.75, x, residual, None), parameters, inputs, grad
    )
    assert_near(output_and_gradients(drawn(7), parameters, inputs, grad), expected, 1e-4)
    halves = zip(*(drawn(seed)(*inputs).split(5) for seed in (7, 9)), strict=True)
    assert [torch.equal(*half) for half in halves] == [False, True]


def test_dropout_by_a_kernel_leaves_out_the_same_numbers_in_backward(use_kernels):
    use_kernels()
    x = random(2, 3, 700).requires_grad_()
    out = dropout(x, torch.tensor([5, 6]), 0.25)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(x))
    assert gradient.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (gradient == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(out, x * gradient)
    assert torch.equal(dropout(x[1:], torch.tensor([6]), 0.25), out[1:])


def test_ranks_and_micro_batches_do_not_matter_to_dropout(use_kernels):
    use_kernels()
    model = small_model(1, "triton", heads=1)
    with torch.no_grad():
        torch.testing.assert_close(sum(losses(model, 2, 2)), sum(losses(model, 2, 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
@pytest.mark.parametrize(("rows", "width"), [(3, 24), (21, 520)])
def test_gelu_and_gradients_are_those_of_pytorch(rows, width, dtype, tolerance, use_kernels, monkeypatch):
    monkeypatch.setattr(gelu_kernel, "PROGRAMS", 2)  # the second has fewer rows
    layer = dense(width, dtype, GeluLinear)
    arguments = (
        layer,
        list(layer.parameters()),
        [random(1, rows, 8, dtype=dtype)],
        random(1, rows, width, seed=5, dtype=dtype),
    )
    expected = output_and_gradients(*arguments)
    use_kernels()
    assert_near(output_and_gradients(*arguments), expected, tolerance)


def test_the_operators_keep_what_they_promise_to_torch():
    norm, x = ResidualNorm(16, 1e-5, 0.0), random(3, 16)
    values = (x, x + 1, norm.weight, norm.bias, torch.zeros(16))
    inputs = [tensor.detach().clone().requires_grad_() for tensor in values]
    seeds = torch.tensor([3, 4, 5])
    library.opcheck(residual_norm.residual_norm, (*inputs, seeds, 0.5, 1e-5))
    _, total, mean, scale = residual_norm.residual_norm(*inputs, seeds, 0.5, 1e-5)
    library.opcheck(residual_norm_backward, (x, total.detach(), mean, scale, norm.weight.detach(), seeds, 0.5))
    library.opcheck(drop_by_kernel, (random(3, 1, 4).requires_grad_(), seeds, 0.5))
    library.opcheck(cross_entropy.score_logits_on_gpu, (random(3, 40), torch.tensor([1, -1, 2]), True))
    library.opcheck(gelu.gelu, (x.clone().requires_grad_(), norm.bias.detach().clone().requires_grad_()))
    library.opcheck(gelu.gelu_backward, (x, x + 1))
