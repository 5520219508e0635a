"""Dropout that is cheap on a CPU; on other devices PyTorch's own."""

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from mpnet_ds.models.layers.random_bits import RandomBits, draw_seed, rounded


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, on a CPU with the draws of random_bits.py."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers of ``x``; same shape and dtype."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        return drop(x, draw_seed(), self.p)[0]


@library.custom_op("mpnet_ds::drop", mutates_args=())
def drop(x: Tensor, seed: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Drop numbers of ``x`` and scale the others; also return each number's factor, of the same shape and dtype."""
    factors = torch.empty(x.shape, dtype=x.dtype)
    RandomBits(seed).keep_(factors, probability).mul_(1 / (1 - rounded(probability)))
    return x * factors, factors


@drop.register_fake
def _(x, seed, probability):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _keep_factors(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros would be made for the factors


def _drop_backward(ctx, gradient: Tensor, _) -> tuple:
    return gradient * ctx.saved_tensors[0], None, None


drop.register_autograd(_drop_backward, setup_context=_keep_factors)
