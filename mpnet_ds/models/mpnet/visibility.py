"""Who sees what in the two streams, as a comparison of small integers.

The predicted positions are ``z_1 … z_p`` in the order of prediction. Token ``j`` has ``order[j] = i`` if ``j = z_i``, and
0 if it is not predicted. Each row has a *level*; a row of level ``l`` sees token ``j`` iff ``order[j] <= l``, and mask row
``i`` iff ``i > l``:

    row                                   level
    token that is not predicted           0        sees the tokens that are not predicted, and all mask rows
    predicted token z_i (its true id)     i        sees z_1 … z_i as they are, and mask rows for the rest
    mask row i                            0
    query row i                           i - 1    as its token's row, but with mask row i instead of the token

So every row sees each position exactly once: n of the n + p keys. Source: Song et al., arXiv 2004.09297, section 2.3,
written for tokens in their natural order.

With *document ids* a row sees keys of its own document only, and positions are counted from each document's first token: a
document is computed as if it were alone. A mask row or query row belongs to the document of its position.

Both rules are one: a key is visible to the levels ``from <= level < until``, token ``j`` from ``order[j]`` on and mask row
``i`` until ``i``. Documents are kept apart in the same way, by levels of their own: those of document ``c`` begin at
``c * (p + 1)``. So a layout holds one small integer for each row and two for each key, and a back-end compares them where
it needs to.

Shapes: B sequences, n tokens, p predicted tokens, R rows of the network, K keys. Keys 0 … n - 1 are the tokens, in order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpnet_ds.models.documents import positions_in_documents

NEVER = 2**31 - 1
"""``key_from`` of a key that nobody sees: no level is as high."""


@dataclass
class Layout:
    """Positions and visibility of the network's rows and keys for one batch."""

    num_tokens: int
    """n."""
    row_positions: Tensor
    """int64 [B, R]: each row's position in the text; in its document, where documents are isolated."""
    row_indices: Tensor
    """int64 [B, R]: which of the n tokens the row is or stands for. Indices differ by as much as positions do."""
    key_indices: Tensor
    """int64 [B, K]."""
    row_levels: Tensor
    """int32 [B, R]."""
    key_from: Tensor
    """int32 [B, K]: the lowest level that sees the key."""
    key_until: Tensor
    """int32 [B, K]: the lowest level above that no longer sees it."""

    @property
    def visible(self) -> Tensor:
        """bool [B, R, K]."""
        levels = self.row_levels[:, :, None]
        return (self.key_from[:, None, :] <= levels) & (levels < self.key_until[:, None, :])


def prediction_order(predicted_positions: Tensor, num_tokens: int) -> Tensor:
    """int64 [B, n]: i for predicted token i = 1 … p, 0 elsewhere; entries of -1 are skipped."""
    batch, num_predicted = predicted_positions.shape
    number = torch.arange(1, num_predicted + 1, device=predicted_positions.device).expand(batch, -1)
    used = predicted_positions >= 0
    order = torch.zeros(batch, num_tokens + 1, dtype=torch.int64, device=predicted_positions.device)
    # Unused entries write into one extra column, which is cut off.
    order.scatter_(1, torch.where(used, predicted_positions, num_tokens), number)
    return order[:, :num_tokens]


def two_stream_layout(
    predicted_positions: Tensor, attention_mask: Tensor, has_mask_rows: bool, document_ids: Tensor | None = None
) -> Layout:
    """Lay out n tokens, then p mask rows (if any), then p query rows. Keys are all rows except the query rows.

    Args:
        predicted_positions: int64 [B, p], -1 in unused entries.
        attention_mask: bool [B, n], False on padding.
        document_ids: int64 [B, n], not decreasing along a sequence; None lets documents see each other.
    """
    num_tokens, num_predicted = attention_mask.shape[1], predicted_positions.shape[1]
    predicted_index = predicted_positions.clamp(min=0)
    token_position, token_index = _positions(attention_mask, document_ids), _indices(attention_mask)
    predicted_position = token_position.gather(1, predicted_index)
    number = torch.arange(1, num_predicted + 1, device=predicted_index.device).expand_as(predicted_index)
    order = prediction_order(predicted_positions, num_tokens)
    token_base = _first_levels(attention_mask, document_ids, num_predicted)
    predicted_base = token_base.gather(1, predicted_index)
    mask_rows = 1 if has_mask_rows else 0

    def join(of_tokens: Tensor, of_mask_rows: Tensor, *of_query_rows: Tensor) -> Tensor:
        return torch.cat([of_tokens, *[of_mask_rows] * mask_rows, *of_query_rows], dim=1)

    return Layout(
        num_tokens=num_tokens,
        row_positions=join(token_position, predicted_position, predicted_position),
        row_indices=join(token_index, predicted_index, predicted_index),
        key_indices=join(token_index, predicted_index),
        row_levels=join(token_base + order, predicted_base, predicted_base + number - 1).int(),
        key_from=join(
            torch.where(attention_mask, token_base + order, NEVER),
            torch.where(predicted_positions >= 0, predicted_base, NEVER),
        ).int(),
        key_until=join(token_base + num_predicted + 1, predicted_base + number).int(),
    )


def plain_layout(attention_mask: Tensor, document_ids: Tensor | None = None) -> Layout:
    """Lay out one stream, in which every row sees all real tokens, or with ``document_ids`` those of its document."""
    index, level = _indices(attention_mask), _first_levels(attention_mask, document_ids, num_predicted=0)
    return Layout(
        num_tokens=attention_mask.shape[1],
        row_positions=_positions(attention_mask, document_ids),
        row_indices=index,
        key_indices=index,
        row_levels=level.int(),
        key_from=torch.where(attention_mask, level, NEVER).int(),
        key_until=(level + 1).int(),
    )


def _indices(attention_mask: Tensor) -> Tensor:
    """int64 [B, n]: 0, 1, 2 … in each sequence."""
    return torch.arange(attention_mask.shape[1], device=attention_mask.device).expand(attention_mask.shape[0], -1)


def _positions(attention_mask: Tensor, document_ids: Tensor | None) -> Tensor:
    """int64 [B, n]: 0, 1, 2 … in each sequence, or in each document of a sequence."""
    return _indices(attention_mask) if document_ids is None else positions_in_documents(document_ids)


def _first_levels(attention_mask: Tensor, document_ids: Tensor | None, num_predicted: int) -> Tensor:
    """int64 [B, n]: the lowest level of each token's document."""
    if document_ids is None:
        return torch.zeros(attention_mask.shape, dtype=torch.int64, device=attention_mask.device)
    return document_ids * (num_predicted + 1)
