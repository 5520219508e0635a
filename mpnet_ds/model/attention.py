"""Attention back-ends. Each computes ``softmax(q k^T / sqrt(D) + bias) v`` with dropout on the probabilities.

| name    | what it is | picked by ``auto`` |
|---|---|---|
| eager   | two matrix products and a softmax | on CPU, where SDPA is slow when the bias needs a gradient |
| sdpa    | ``torch.nn.functional.scaled_dot_product_attention`` with the same bias | on GPUs |

The bias carries both the relative positions and the visibility: it is built once a step and shared by all layers, since
they share one table.

Shapes: B rows of a batch, H heads, R rows of the network, K keys, D width of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.model.relative_position import bucket_table
from mpnet_ds.model.visibility import Layout

BACKENDS = ("auto", "eager", "sdpa")


def check_backend(name: str) -> str:
    """The name itself; ``UserError`` with the nearest one if there is no such back-end."""
    if name not in BACKENDS:
        raise UserError(f"unknown attention '{name}'. {did_you_mean(name, BACKENDS)}")
    return name


def attention_bias(table: nn.Embedding, layout: Layout) -> Tensor:
    """What is added to the scores: [B, H, R, K] in the table's dtype, its smallest number where a key is not visible.

    The smallest finite number rather than minus infinity: a row of padding that sees nothing stays finite.
    """
    reach = max(layout.row_positions.shape[1], layout.key_positions.shape[1])
    relative = layout.key_positions[:, None, :] - layout.row_positions[:, :, None]
    buckets = bucket_table(reach, relative.device)[relative + reach]
    bias = table(buckets).permute(0, 3, 1, 2)
    return bias.masked_fill(~layout.visible[:, None], torch.finfo(bias.dtype).min)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float, backend: str) -> Tensor:
    """[B, H, R, D] from query [B, H, R, D], key and value [B, H, K, D] and bias [B, H, R, K]."""
    if backend == "auto":
        backend = "sdpa" if query.is_cuda else "eager"
    if backend == "sdpa":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    scores = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(-1, -2)) + bias
    return torch.matmul(F.dropout(torch.softmax(scores, dim=-1), dropout), value)
