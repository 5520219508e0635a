"""Initial values with which attention begins near each position, instead of with the mean of all positions.

Usual initial values are small: each head begins by averaging over all keys, and the average tells next to nothing about a
position. Small models then stay at the loss of word frequencies alone for millions of tokens (docs/training.md, "Does it
learn?"). Values that let each head begin with a few neighbours end that after some hundred thousand tokens. They change
no shape and no formula: what is trained, saved and exported is the same model. Related: mimetic initialisation (Trockman
and Kolter, arXiv 2305.09828), and the fixed slopes of ALiBi (Press et al., arXiv 2108.12409), which are not learned.

Shapes: H heads of width D, n positions, d width of the model.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpnet_ds.errors import UserError


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


@torch.no_grad()
def look_near_by_sinusoids(
    positions: Tensor,
    words: Sequence[Tensor],
    attention: Sequence[tuple[Tensor, Tensor]],
    num_heads: int,
    strength: float = 2.0,
    offsets: Sequence[int] = (-1, 1, -3, 3),
) -> None:
    """Let each head of a model with learned absolute positions begin by looking at one neighbour, in place.

    The last 2P dimensions of the embeddings, P = min(D // 2, 3 d // 16), begin with positions only: ``words`` are zero
    there, and row i of ``positions`` holds the sinusoids (Vaswani et al., arXiv 1706.03762)

        a sin(ω_j i), a cos(ω_j i),    ω_j = (π / n)^(j / P) radians per token,    j = 0 … P - 1.

    Their amplitude a gives them half of the variance of the sum of all embeddings, whose other half is measured. The first
    2P rows of each head's key weight gain s times the identity on these dimensions, those of its query weight s times the
    rotation by the head's offset δ. After the LayerNorm, a pair's squared amplitude is d / 2P, and the logit of key k for
    query q is

        s² d / (2 √D) · mean_j cos(ω_j (k - q - δ)),    s² = 4 √D · strength · ln(n / π) / d.

    With these frequencies, 1 minus the mean is about (ln r + 0.58) / ln(n / π) at distances r = abs(k - q - δ) from 2 to
    n / π: attention falls off as r^(-2 strength) at any widths, numbers of heads and amplitudes. With a strength of 2 and
    D >= 16, 0.6 of it is at the offset and 0.2 on either side, about as much as odds of (1 + r)^-2 on one side only would
    give. Later layers begin like this too where LayerNorm follows the residual connection; where it precedes, what earlier
    layers add soon outweighs the embeddings.

    Args:
        positions: [n, d], n > 3, the position table. The row of the first token does not matter.
        words: [any, d] each, the tables that are added to it: words, token types.
        attention: query weight and key weight of each layer, [heads * D, d] as in ``nn.Linear``; views of a fused weight
            will do, and keys may have fewer heads.
        num_heads: H, heads of the queries; D is the width of one.
        strength: how quickly attention falls off with the distance from the offset; finite and above 0.
        offsets: key minus query position, for one head after the other through all layers, from the start again when they
            are used up; all negative for a causal model.

    Raises:
        UserError: ``strength`` is not a positive number, or a head is too narrow for a sine and a cosine.
    """
    if not 0 < strength < math.inf:
        raise UserError(f"strength is {strength}: it must be a finite number above 0")
    num_positions, hidden_width = positions.shape
    head_width = attention[0][0].shape[0] // num_heads
    pairs = min(head_width // 2, 3 * hidden_width // 16)
    if pairs < 1:
        raise UserError(
            f"heads of width {head_width} in a model of width {hidden_width} are too narrow for sinusoids: use fewer heads"
        )
    first = hidden_width - 2 * pairs
    for table in words:
        table[:, first:] = 0
    squared_length = sum(
        torch.linalg.vector_norm(t[:, :first], dtype=torch.float32) ** 2 / len(t) for t in (positions, *words)
    )
    amplitude = math.sqrt(squared_length / pairs)
    frequencies = (math.pi / num_positions) ** (torch.arange(pairs) / pairs)
    angles = torch.arange(num_positions)[:, None] * frequencies
    positions[:, first:] = amplitude * torch.cat([angles.sin(), angles.cos()], 1)
    scale = math.sqrt(4 * math.sqrt(head_width) * strength * math.log(num_positions / math.pi) / hidden_width)
    for layer, (query, key) in enumerate(attention):
        key.unflatten(0, (-1, head_width))[:, : 2 * pairs, first:] += scale * torch.eye(2 * pairs).to(key)
        for head in range(num_heads):
            offset = offsets[(layer * num_heads + head) % len(offsets)]
            rows = query[head * head_width :][: 2 * pairs, first:]
            rows += scale * _rotation(frequencies * offset).to(query)


def _rotation(angles: Tensor) -> Tensor:
    """Rotate (sin a …, cos a …) to (sin(a + angle) …, cos(a + angle) …): [2P, 2P] from angles [P]."""
    cos, sin = angles.cos().diag(), angles.sin().diag()
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])
