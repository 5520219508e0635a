"""Predicted tokens of a batch: where they are, what is read instead of them, and how well they are predicted.

Shapes: B sequences, n tokens, p predicted tokens, d width. Unused entries of ``predicted_positions`` are -1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def corrupt(input_ids: Tensor, predicted_positions: Tensor, predicted_inputs: Tensor) -> Tensor:
    """Put predicted_inputs [B, p] at predicted_positions [B, p] of input_ids; int64 [B, n]."""
    # Unused entries write into one extra column, which is cut off.
    target = torch.where(predicted_positions >= 0, predicted_positions, input_ids.shape[1])
    return F.pad(input_ids, (0, 1)).scatter(1, target, predicted_inputs)[:, :-1]


def rows_at(hidden: Tensor, predicted_positions: Tensor) -> Tensor:
    """Take the rows of hidden [B, n, d] at the predicted positions: [B, p, d]; those of unused entries mean nothing."""
    return hidden.gather(1, predicted_positions.clamp(min=0)[:, :, None].expand(-1, -1, hidden.shape[2]))


def labels_at(input_ids: Tensor, predicted_positions: Tensor) -> Tensor:
    """Take the true tokens at the predicted positions: int64 [B, p], -1 in unused entries."""
    return torch.where(predicted_positions >= 0, input_ids.gather(1, predicted_positions.clamp(min=0)), -1)


def count_masked(
    labels: Tensor, inputs: Tensor, losses: Tensor, hits: Tensor, mask_id: int | None
) -> dict[str, Tensor] | None:
    """Sum of losses, hits and number of the targets that are read as ``<mask>``: fp32 [3]; None without a mask_id."""
    if mask_id is None:
        return None
    is_masked = (labels >= 0) & (inputs == mask_id)
    return {"masked": torch.stack([(losses * is_masked).sum(), (hits & is_masked).sum(), is_masked.sum()])}
