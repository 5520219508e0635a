"""A linear map and GELU: on a GPU the gradient of the bias is summed while that of GELU is computed.

As operators of their own GELU and the sum pass the inner width through memory four times in backward, so three.

Shapes: N rows, d width.
"""

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from mpnet_ds.models.layers import kernels


class GeluLinear(nn.Linear):
    """``gelu(W x + b)``; parameters are those of ``torch.nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """[…, size_out] from x […, size_in]."""
        if not kernels.run_on(x):
            return F.gelu(super().forward(x))
        return gelu(F.linear(x, self.weight, self.bias.detach()), self.bias)


@library.custom_op("mpnet_ds::gelu", mutates_args=())
def gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Compute GELU of x […, d], to which ``bias`` [d] was added already; backward sums the bias's gradient."""
    return F.gelu(x)


@gelu.register_fake
def _(x, bias):
    return torch.empty_like(x)


@library.custom_op("mpnet_ds::gelu_backward", mutates_args=())
def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x […, d], contiguous, and of the bias [d]."""
    from mpnet_ds.models.layers import gelu_kernel  # imports triton

    return gelu_kernel.backward(grad, x)


@gelu_backward.register_fake
def _(grad, x):
    return torch.empty_like(x), x.new_empty(x.shape[-1])


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0])


def _gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    return gelu_backward(grad.contiguous(), *ctx.saved_tensors)


gelu.register_autograd(_gradients, setup_context=_keep)
