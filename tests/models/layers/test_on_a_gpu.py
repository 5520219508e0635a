"""The Triton kernels of models/layers on a GPU, against PyTorch in fp32 on the CPU."""

import pytest
import torch
from torch import nn

from mpnet_ds.models.layers import cross_entropy
from mpnet_ds.models.layers.gelu import GeluLinear
from mpnet_ds.models.layers.residual_norm import ResidualNorm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_loss_and_gradients_are_those_of_pytorch(dtype, tolerance):
    torch.manual_seed(0)
    tensors = [x.to(dtype) for x in (torch.randn(300, 64), torch.randn(5000, 64) / 8, torch.randn(5000) / 8)]
    labels = torch.randint(-1, 5000, (300,))
    here = [x.float().requires_grad_() for x in tensors]
    there = [x.cuda().requires_grad_() for x in tensors]
    expected, _, hits = cross_entropy.linear_cross_entropy(*here, labels)
    found, _, found_hits = cross_entropy.linear_cross_entropy(*there, labels.cuda())
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    assert (found_hits.cpu() != hits).sum() <= 3
    for one, other in zip(torch.autograd.grad(found, there), torch.autograd.grad(expected, here), strict=True):
        assert (one.float().cpu() - other).norm() <= tolerance * other.norm()


def assert_same_on_a_gpu(module: nn.Module, call, num_inputs: int, dtype: torch.dtype, tolerance: float) -> None:
    """Output and gradients of ``call(module, *inputs)`` in ``dtype`` are those in fp32 on the CPU."""
    inputs = [torch.randn(4, 70, 768).to(dtype) for _ in range(num_inputs)]
    found, expected = [], []
    for values, device, kind in ((expected, "cpu", torch.float32), (found, "cuda", dtype)):
        module.to(device, kind)
        here = [tensor.to(device, kind).requires_grad_() for tensor in inputs]
        out = call(module, *here)
        grad = torch.linspace(-1, 1, out.numel()).view_as(out).to(device, kind)
        values += [out, *torch.autograd.grad(out, [*here, *module.parameters()], grad)]
    for one, other in zip(found, expected, strict=True):
        assert (one.detach().float().cpu() - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_norm_and_gradients_are_those_of_pytorch(dtype, tolerance):
    torch.manual_seed(0)
    both = nn.ModuleList([ResidualNorm(768, 1e-5, dropout=0.0), nn.Linear(768, 768)])
    both[0].weight.data.normal_(1, 0.2)
    assert_same_on_a_gpu(both, lambda both, x, residual: both[0](both[1], x, residual, None), 2, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_gelu_and_gradients_are_those_of_pytorch(dtype, tolerance):
    torch.manual_seed(0)
    assert_same_on_a_gpu(GeluLinear(768, 3072), lambda layer, x: layer(x), 1, dtype, tolerance)


def test_dropout_follows_the_seed_and_keeps_the_mean():
    norm, ones = ResidualNorm(768, 1e-5, dropout=0.1).cuda(), nn.Linear(768, 768).cuda()
    ones.weight.data.zero_(), ones.bias.data.fill_(1)
    x = zeros = torch.zeros(64, 768, device="cuda")
    results = []
    for seed in (0, 0, 1):
        out = norm(ones, x, zeros, torch.tensor([seed], device="cuda"))
        results.append((out, *torch.autograd.grad(out.sum(), [norm.weight])))
    assert all(torch.equal(one, other) for one, other in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    kept = results[0][0] > 0
    assert kept.double().mean().item() == pytest.approx(0.9, abs=0.01)
