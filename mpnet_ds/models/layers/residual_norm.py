"""Dropout, residual connection and LayerNorm in one: on a GPU two kernels, one for each direction, elsewhere PyTorch's.

Apart they pass a hidden state through memory 7.5 times forward and 5.5 times backward, together 4 times each. The kernels
draw dropout from a counter-based generator (Philox), with a seed from PyTorch's generator of the device, and draw it again
in backward: no mask is kept.

Shapes: N rows, d width.
"""

import torch
from torch import Tensor, library, nn

from mpnet_ds.models.layers import kernels
from mpnet_ds.models.layers.dropout import Dropout

WIDEST = 8192
"""Numbers of a row that a program holds in registers."""


class ResidualNorm(nn.LayerNorm):
    """``LayerNorm(residual + dropout(x))``; parameters are those of ``torch.nn.LayerNorm``."""

    def __init__(self, width: int, eps: float, dropout: float):
        super().__init__(width, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[…, d] from x and residual, both […, d]."""
        if not kernels.run_on(x) or x.shape[-1] > WIDEST:
            return super().forward(residual + self.dropout(x))
        probability = self.dropout.p if self.training else 0.0
        seed = torch.randint(2**31, (1,), device=x.device) if probability else x.new_empty(1, dtype=torch.int64)
        return residual_norm(x.contiguous(), residual.contiguous(), self.weight, self.bias, seed, probability, self.eps)[0]


@library.custom_op("mpnet_ds::residual_norm", mutates_args=())
def residual_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, probability: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ``LayerNorm(residual + dropout(x))``, and for backward the sum and its mean and inverse deviation.

    Args:
        x, residual: […, d], contiguous.
        weight, bias: [d].
        seed: int64 [1], of the numbers that dropout draws.
        probability: that a number of ``x`` is dropped.
    Returns:
        The result and the sum, […, d]; mean and 1 / standard deviation, fp32 [N].
    """
    from mpnet_ds.models.layers import residual_norm_kernels  # imports triton

    return residual_norm_kernels.forward(x, residual, weight, bias, seed, probability, eps)


@residual_norm.register_fake
def _(x, residual, weight, bias, seed, probability, eps):
    of_rows = [x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32) for _ in range(2)]
    return torch.empty_like(x), torch.empty_like(x), *of_rows


@library.custom_op("mpnet_ds::residual_norm_backward", mutates_args=())
def residual_norm_backward(
    grad: Tensor, total: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, seed: Tensor, probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of x, residual, weight and bias from that of the result, […, d], and what forward kept."""
    from mpnet_ds.models.layers import residual_norm_kernels  # imports triton

    return residual_norm_kernels.backward(grad, total, mean, scale, weight, seed, probability)


@residual_norm_backward.register_fake
def _(grad, total, mean, scale, weight, seed, probability):
    return torch.empty_like(grad), torch.empty_like(grad), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx, inputs, output) -> None:
    _, _, weight, _, seed, ctx.probability, _ = inputs
    ctx.save_for_backward(*output[1:], weight, seed)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros would be made for those


def _gradients(ctx, grad: Tensor, *_) -> tuple:
    total, mean, scale, weight, seed = ctx.saved_tensors
    gradients = residual_norm_backward(grad.contiguous(), total, mean, scale, weight, seed, ctx.probability)
    return *gradients, None, None, None


residual_norm.register_autograd(_gradients, setup_context=_keep)
