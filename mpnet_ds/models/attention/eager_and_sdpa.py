"""Attention with a materialised bias: the plain formulation, and PyTorch's own kernels.

The bias carries both the relative positions and the visibility. It is built once a step and shared by all layers, since
they share one table.

Shapes: B sequences, H heads, R rows of the network, K keys, D width of a head.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpnet_ds.models.layers.dropout import dropout as drop
from mpnet_ds.models.mpnet.relative_position import pair_buckets
from mpnet_ds.models.mpnet.visibility import Layout

if TYPE_CHECKING:
    from transformers import MPNetConfig

ALIGNMENT = 8
"""Numbers: 16 bytes in 16 bits."""
KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Those that take a bias, but for cuDNN's: it returns NaN gradients for some numbers of keys (PyTorch issue 196678)."""


class EagerAttention:
    """Two matrix products and a softmax, on any device: what the other back-ends are compared with."""

    name = "eager"

    def check(self, device: torch.device, config: "MPNetConfig") -> None:
        """See ``attention.Backend``; nothing is refused."""

    def prepare(self, table: nn.Embedding, layout: Layout) -> tuple[Tensor]:
        """See ``attention.Backend``; the bias [B, H, R, K]."""
        return (attention_bias(table, layout),)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, seeds: Tensor | None, first_row: int, bias: Tensor
    ) -> Tensor:  # fmt: skip
        """See ``attention.Backend``."""
        scores = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(-1, -2)) + bias[:, :, first_row:]
        return torch.matmul(drop(torch.softmax(scores, dim=-1), seeds, dropout), value)


class SdpaAttention(EagerAttention):
    """``torch.nn.functional.scaled_dot_product_attention``; slow on a CPU, where the bias needs a gradient.

    On a GPU its dropout draws from PyTorch's generator, and not by seeds of sequences.
    """

    name = "sdpa"

    def prepare(self, table: nn.Embedding, layout: Layout) -> tuple[Tensor]:
        """See ``attention.Backend``; the bias [B, H, R, K], rows of which begin at multiples of 16 bytes.

        The kernels want that: of any other bias every layer would make a copy.
        """
        bias = attention_bias(table, layout)
        return (F.pad(bias, (0, -bias.shape[3] % ALIGNMENT))[..., : bias.shape[3]],)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, seeds: Tensor | None, first_row: int, bias: Tensor
    ) -> Tensor:  # fmt: skip
        """See ``attention.Backend``."""
        if dropout and not has_kernel(query):
            return super().attend(query, key, value, dropout, seeds, first_row, bias)
        with sdpa_kernel(KERNELS):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, :, first_row:], dropout_p=dropout)


def has_kernel(query: Tensor) -> bool:
    """Whether PyTorch has a kernel; on a CPU, with dropout, it computes as ``EagerAttention``, but with draws of its own."""
    return query.device.type != "cpu"


def attention_bias(table: nn.Embedding, layout: Layout) -> Tensor:
    """Compute what is added to the scores: [B, H, R, K] in the table's dtype, its smallest number for invisible keys.

    The smallest finite number rather than minus infinity: a row of padding that sees nothing stays finite.
    """
    buckets = pair_buckets(layout.row_indices, layout.key_indices, layout.num_tokens)
    bias = table(buckets).permute(0, 3, 1, 2)
    return bias.masked_fill(~layout.visible[:, None], torch.finfo(bias.dtype).min)
