"""Query, key and value of rows, by one matrix product.

Keys and values belong to the first rows only. A linear map of such a slice makes a copy of it, and its backward pass adds
gradients of slices to gradients of all rows; one product of all rows does neither. It computes keys and values of the last
rows in vain: with 77 of 512 tokens predicted, 2 % of a layer's products.

Shapes: B sequences, R rows of the network, K keys, d width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def project(hidden: Tensor, num_keys: int, query: nn.Linear, key: nn.Linear, value: nn.Linear) -> tuple[Tensor, ...]:
    """Apply three maps to hidden [B, R, d]; return the query [B, R, d], and key and value [B, K, d] of the first rows.

    All are views of one tensor. ``num_keys`` is K.
    """
    maps = (query, key, value)
    packed = F.linear(hidden, torch.cat([one.weight for one in maps]), torch.cat([one.bias for one in maps]))
    return _TakeApart.apply(packed, num_keys)


class _TakeApart(torch.autograd.Function):
    """Views of [B, R, 3 d]; backward writes their gradients into one tensor, unless they are views of one already."""

    @staticmethod
    def forward(ctx, packed: Tensor, num_keys: int) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = packed.chunk(3, dim=2)
        return query, key[:, :num_keys], value[:, :num_keys]

    @staticmethod
    def backward(ctx, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        (batch, rows, width), num_keys = query.shape, key.shape[1]
        if _are_packed(query, key, value):
            return query._base.view(batch, rows, 3 * width), None
        packed = query.new_empty(batch, rows, 3, width)
        packed[:, :, 0] = query
        packed[:, :num_keys, 1] = key
        packed[:, :num_keys, 2] = value
        packed[:, num_keys:, 1:] = 0
        return packed.flatten(2), None


def _are_packed(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the three are parts of one tensor of B R 3 d numbers, as triton.py's gradients are; the others there are 0."""
    if torch.compiler.is_compiling() or query._base is None or query._base.numel() != 3 * query.numel():
        return False
    _, rows, width = query.shape
    return all(
        part._base is query._base
        and part.stride() == (3 * rows * width, 3 * width, 1)
        and part.storage_offset() == i * width
        for i, part in enumerate((query, key, value))
    )
