"""Relative-position buckets: which of 32 learned biases a pair of positions gets.

Distances below 8 have a bucket each; beyond, buckets widen logarithmically up to distance 128 and the last takes the rest.
A key to the right of its query uses buckets 16 … 31, one to the left (or the same) 0 … 15; 16 is never used.

    |distance|  0 … 7   8–11  12–15  16–22  23–31  32–45  46–63  64–90  >= 91
    bucket      0 … 7     8      9     10     11     12     13     14     15     (+ 16 to the right)

The formula is T5's (Raffel et al., arXiv 1910.10683) with 32 buckets and distance 128, which is all that
``transformers.MPNetModel`` can compute. The edges are written down as integers, because the logarithm's rounding
error would move a pair that sits on one.
"""

import torch
from torch import Tensor, nn

NUM_BUCKETS = 32
MAX_DISTANCE = 128
FIRST_DISTANCE_OF_BUCKET = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)  # of buckets 1 … 15


def bucket(relative_position: Tensor) -> Tensor:
    """Compute the bucket of each ``key_position - query_position``; int64, same shape."""
    edges = torch.tensor(FIRST_DISTANCE_OF_BUCKET, device=relative_position.device)
    distance = torch.bucketize(relative_position.abs(), edges, right=True)
    return distance + (relative_position > 0) * (NUM_BUCKETS // 2)


def bucket_table(max_distance: int, device: torch.device) -> Tensor:
    """Tabulate the bucket of relative position ``r`` at index ``r + max_distance``: int64 [2 * max_distance + 1]."""
    return bucket(torch.arange(-max_distance, max_distance + 1, device=device))


def middle_of_buckets() -> tuple[Tensor, Tensor]:
    """Compute the middle of the distances of each bucket, fp32 [32], and whether it is to the right, bool [32].

    For the last bucket of a side, which has no end, it is that of 91 … 128.
    """
    first = torch.tensor([0, *FIRST_DISTANCE_OF_BUCKET, MAX_DISTANCE + 1], dtype=torch.float32)
    middle = (first[:-1] + first[1:] - 1) / 2
    return middle.repeat(2), torch.arange(NUM_BUCKETS) >= NUM_BUCKETS // 2


def pair_buckets(row_indices: Tensor, key_indices: Tensor, num_tokens: int) -> Tensor:
    """Look up the bucket of each pair of a row and a key: int64 [B, R, K].

    Args:
        row_indices: int64 [B, R], 0 … n - 1.
        key_indices: int64 [B, K], likewise.
        num_tokens: n.
    """
    relative = key_indices[:, None, :] - row_indices[:, :, None]
    return bucket_table(num_tokens, relative.device)[relative + num_tokens]


def relative_bias(table: nn.Embedding, num_tokens: int) -> Tensor:
    """Compute the bias between tokens i and j, at [:, i, j]: [H, n, n] in the table's dtype.

    Args:
        table: [32, H], the learned biases of the buckets.
        num_tokens: n.
    """
    device = table.weight.device
    values = table(torch.arange(NUM_BUCKETS, device=device))
    # Backward adds n values into one, of which bf16 would lose all but the first few hundred.
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    by_distance = exact[bucket_table(num_tokens, device)].t()  # (H, 2n + 1): key minus query, from -n
    return by_distance.unfold(1, num_tokens, 1)[:, 1 : num_tokens + 1].flip(1).to(values.dtype)
