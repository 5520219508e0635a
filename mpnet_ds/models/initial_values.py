"""Initial values with which attention begins near each position, instead of with the mean of all positions.

Usual initial values are small: each head begins by averaging over all keys, and the average tells next to nothing about a
position. Small models then stay at the loss of word frequencies alone for millions of tokens (docs/training.md, "Does it
learn?"). Values that let each head begin with a few neighbours end that after some hundred thousand tokens. They change
no shape and no formula: what is trained, saved and exported is the same model. Related: mimetic initialisation (Trockman
and Kolter, arXiv 2305.09828), and the fixed slopes of ALiBi (Press et al., arXiv 2108.12409), which are not learned.

Shapes: H heads.
"""

import torch
from torch import Tensor


def near_bias(distance: Tensor, is_right: Tensor, num_heads: int, strength: float) -> Tensor:
    """Compute what to add to a table of relative positions: fp32 [buckets, H].

    Even heads begin by looking to the left, odd ones to the right: with weights proportional to
    ``(1 + distance)^-strength`` there, and ``e^(-2 strength)`` times that on the other side.

    Args:
        distance: fp32 [buckets], the distance that each bucket stands for.
        is_right: bool [buckets], whether its keys are to the right of their queries; distance 0 counts as left.
        strength: > 0.
    """
    looks_right = torch.arange(num_heads) % 2 == 1
    is_behind = is_right[:, None] != looks_right
    return -strength * torch.log1p(distance)[:, None] - 2 * strength * is_behind
