"""Dropout whose draws follow from seeds of the sequences (dropout_seeds.py): on a CPU cheap ones, on a GPU by a kernel.

The kernel keeps no mask: backward draws again. On a device without Triton it is PyTorch's dropout, which has no seeds.
"""

import math

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from mpnet_ds.models.layers import kernels
from mpnet_ds.models.layers.random_bits import RandomBits, rounded


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` by ``dropout``."""

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """Drop numbers of ``x`` in training; arguments as in ``dropout``."""
        return dropout(x, seeds, self.p if self.training else 0.0)


def dropout(x: Tensor, seeds: Tensor | None, probability: float) -> Tensor:
    """Drop numbers of ``x`` [B, …, rows, columns] and scale the others; same shape and dtype.

    Args:
        seeds: int64 [B], of this place; may be None at probability 0.
    """
    if probability == 0:
        return x
    if kernels.run_on(x):
        return drop_by_kernel(x, seeds, probability)
    return drop(x, seeds, probability)[0] if x.device.type == "cpu" else F.dropout(x, probability)


@library.custom_op("mpnet_ds::drop", mutates_args=())
def drop(x: Tensor, seeds: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Do what ``dropout`` does, on a CPU; also return each number's factor, of the same shape and dtype."""
    factors = torch.empty(x.shape, dtype=x.dtype)
    bits = RandomBits(seeds, math.prod(x.shape[1:-2]))
    bits.keep_(factors.flatten(0, -3), probability).mul_(1 / (1 - rounded(probability)))
    return x * factors, factors


@drop.register_fake
def _(x, seeds, probability):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _keep_factors(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros would be made for the factors


def _drop_backward(ctx, gradient: Tensor, _) -> tuple:
    return gradient * ctx.saved_tensors[0], None, None


drop.register_autograd(_drop_backward, setup_context=_keep_factors)


@library.custom_op("mpnet_ds::drop_by_kernel", mutates_args=())
def drop_by_kernel(x: Tensor, seeds: Tensor, probability: float) -> Tensor:
    """Do what ``dropout`` does, by a kernel."""
    from mpnet_ds.models.layers import dropout_kernel  # imports triton

    return dropout_kernel.drop(x.contiguous(), seeds, probability)


@drop_by_kernel.register_fake
def _(x, seeds, probability):
    return x.new_empty(x.shape)


def _keep_seeds(ctx, inputs, output) -> None:
    _, seeds, ctx.probability = inputs
    ctx.save_for_backward(seeds)


def _drop_again(ctx, gradient: Tensor) -> tuple:
    return drop_by_kernel(gradient, *ctx.saved_tensors, ctx.probability), None, None


drop_by_kernel.register_autograd(_drop_again, setup_context=_keep_seeds)
