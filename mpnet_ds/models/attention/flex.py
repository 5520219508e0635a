"""FlexAttention: on GPUs PyTorch compiles a kernel from our bias and visibility.

The bias is looked up in [H, n, n], by the indices of row and key: its gradient is summed in H * n * n cells, where a lookup
in the table would have all elements meet in 32 * H of them. FlexAttention has no dropout, and no backward on a CPU.

Shapes: B sequences, n tokens, H heads, R rows of the network, K keys, D width of a head.
"""

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpnet_ds.errors import UserError
from mpnet_ds.models.mpnet.relative_position import relative_bias
from mpnet_ds.models.mpnet.visibility import Layout

if TYPE_CHECKING:
    from transformers import MPNetConfig

NO_DROPOUT = (
    "attention 'flex' has no dropout, and attention_probs_dropout_prob is {}. "
    "Set it to 0 in the recipe, or use another attention."
)
NO_GRADIENTS = "attention 'flex' has gradients on GPUs only, and the model is on '{}'. Use attention 'auto' or 'eager'."


class FlexAttention:
    """The back-end ``flex``; on a CPU, for tests, it computes the forward pass only, uncompiled."""

    name = "flex"

    def check(self, device: torch.device, config: "MPNetConfig") -> None:
        """See ``attention.Backend``."""
        if config.attention_probs_dropout_prob > 0:
            raise UserError(NO_DROPOUT.format(config.attention_probs_dropout_prob))
        if device.type != "cuda":
            raise UserError(NO_GRADIENTS.format(device.type))

    def prepare(self, table: nn.Embedding, layout: Layout) -> tuple[Tensor, ...]:
        """See ``attention.Backend``; the bias [H, n, n], and of the layout what the scores are looked up by."""
        bias = relative_bias(table, layout.num_tokens).contiguous()
        indices = (layout.row_indices.int(), layout.key_indices.int())
        return bias, *indices, layout.row_levels, layout.key_from, layout.key_until

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, seeds: Tensor | None, first_row: int,
        *prepared: Tensor,
    ) -> Tensor:  # fmt: skip
        """See ``attention.Backend``.

        Raises:
            UserError: dropout, or gradients on a CPU.
        """
        if dropout > 0:
            raise UserError(NO_DROPOUT.format(dropout))
        on_gpu = query.device.type == "cuda"
        if not on_gpu and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value, prepared[0])):
            raise UserError(NO_GRADIENTS.format(query.device.type))
        return (_compiled() if on_gpu else _attend)(query, key, value, first_row, *prepared)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, first_row: int, bias: Tensor, row_indices: Tensor, key_indices: Tensor,
    row_levels: Tensor, key_from: Tensor, key_until: Tensor,
) -> Tensor:  # fmt: skip
    """Compute attention [B, H, R, D]; a row that sees nothing comes out as 0."""
    from torch.nn.attention.flex_attention import flex_attention  # which imports triton in some versions

    def biased(score: Tensor, b: Tensor, h: Tensor, row: Tensor, k: Tensor) -> Tensor:
        row = row + first_row
        level = row_levels[b, row]
        visible = (key_from[b, k] <= level) & (level < key_until[b, k])
        return torch.where(visible, score + bias[h, row_indices[b, row], key_indices[b, k]], -float("inf"))

    return flex_attention(query, key, value, score_mod=biased)


@cache
def _compiled():
    """Compile at first use, and again for each shape and ``first_row``."""
    return torch.compile(_attend, dynamic=False)
