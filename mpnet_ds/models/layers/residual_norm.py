"""Dropout, residual connection and LayerNorm in one: on a GPU two kernels, one for each direction, elsewhere PyTorch's.

Apart they pass a hidden state through memory 7.5 times forward and 6.5 times backward, together 4 times each: backward also
sums the gradient of the bias that was added before dropout. Backward draws dropout again: no mask is kept.

Shapes: B sequences, N rows of all of them, d width.
"""

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from mpnet_ds.models.layers import kernels
from mpnet_ds.models.layers.dropout import Dropout

WIDEST = 8192
"""Numbers of a row that a program holds in registers."""


class ResidualNorm(nn.LayerNorm):
    """``LayerNorm(residual + dropout(dense(x)))``; parameters are those of ``torch.nn.LayerNorm``."""

    def __init__(self, width: int, eps: float, dropout: float):
        super().__init__(width, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, dense: nn.Linear, x: Tensor, residual: Tensor, seeds: Tensor | None) -> Tensor:
        """[B, …, d] from x [B, …, size_in] and residual [B, …, d]; ``dense`` maps size_in to d, seeds as in ``dropout``."""
        if not kernels.run_on(x) or residual.shape[-1] > WIDEST:
            return super().forward(residual + self.dropout(dense(x), seeds))
        probability = self.dropout.p if self.training else 0.0
        mapped = F.linear(x, dense.weight, dense.bias.detach())  # its gradient comes from the kernel
        norm = self.weight, self.bias, dense.bias
        return residual_norm(mapped, residual.contiguous(), *norm, seeds, probability, self.eps)[0]


@library.custom_op("mpnet_ds::residual_norm", mutates_args=())
def residual_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    bias_of_x: Tensor,
    seeds: Tensor | None,
    probability: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ``LayerNorm(residual + dropout(x))``, and for backward the sum and its mean and inverse deviation.

    Args:
        x, residual: [B, …, d], contiguous.
        weight, bias: [d].
        bias_of_x: [d], was added to ``x`` already; backward sums its gradient.
        seeds: int64 [B], of dropout's draws; None at probability 0.
        probability: that a number of ``x`` is dropped.
    Returns:
        The result and the sum, [B, …, d]; mean and 1 / standard deviation, fp32 [N].
    """
    from mpnet_ds.models.layers import residual_norm_kernels  # imports triton

    return residual_norm_kernels.forward(x, residual, weight, bias, seeds, probability, eps)


@residual_norm.register_fake
def _(x, residual, weight, bias, bias_of_x, seeds, probability, eps):
    of_rows = [x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32) for _ in range(2)]
    return torch.empty_like(x), torch.empty_like(x), *of_rows


@library.custom_op("mpnet_ds::residual_norm_backward", mutates_args=())
def residual_norm_backward(
    grad: Tensor, total: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, seeds: Tensor | None, probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute gradients of x, residual and the three vectors from that of the result, [B, …, d], and what forward kept."""
    from mpnet_ds.models.layers import residual_norm_kernels  # imports triton

    return residual_norm_kernels.backward(grad, total, mean, scale, weight, seeds, probability)


@residual_norm_backward.register_fake
def _(grad, total, mean, scale, weight, seeds, probability):
    return *(torch.empty_like(grad) for _ in range(2)), *(torch.empty_like(weight) for _ in range(3))


def _keep(ctx, inputs, output) -> None:
    _, _, weight, _, _, seeds, ctx.probability, _ = inputs
    ctx.save_for_backward(*output[1:], weight, seeds)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros would be made for those


def _gradients(ctx, grad: Tensor, *_) -> tuple:
    total, mean, scale, weight, seeds = ctx.saved_tensors
    gradients = residual_norm_backward(grad.contiguous(), total, mean, scale, weight, seeds, ctx.probability)
    return *gradients, None, None, None


residual_norm.register_autograd(_gradients, setup_context=_keep)
