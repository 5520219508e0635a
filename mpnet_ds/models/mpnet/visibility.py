"""Who sees what in the two streams, as a comparison of small integers.

The predicted positions are ``z_1 … z_p`` in the order of prediction. Token ``j`` has ``rank[j] = i`` if ``j = z_i``, and
0 if it is not predicted. Each row has a *level*; a row of level ``l`` sees token ``j`` iff ``rank[j] <= l``, and mask row
``i`` iff ``i > l``:

    row                                   level
    token that is not predicted           0        sees the tokens that are not predicted, and all mask rows
    predicted token z_i (its true id)     i        sees z_1 … z_i as they are, and mask rows for the rest
    mask row i                            0
    query row i                           i - 1    as its token's row, but with mask row i instead of the token

So every row sees each position exactly once: n of the n + p keys. Source: Song et al., arXiv 2004.09297, section 2.3,
written for tokens in their natural order.

With *document ids* a row sees keys of its own document only, and positions are counted from each document's first token: a
document is computed as if it stood alone. A mask row or query row belongs to the document of its position.

Both rules are one: a key is there for the levels ``from <= level < until``, token ``j`` from ``rank[j]`` on and mask row
``i`` until ``i``. Documents are told apart in the same way, by levels of their own: those of document ``c`` begin at
``c * (p + 1)``. So a layout holds one small integer for each row and two for each key, and whoever computes attention
compares them where it needs to.

Shapes: B rows of a batch, n tokens, p slots, R rows of the network, K keys. Keys 0 … n - 1 are the tokens, in order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEVER = 2**31 - 1
"""``key_from`` of a key that nobody sees: no level is as high."""


@dataclass
class Layout:
    """Positions and visibility of the network's rows and keys for one batch."""

    num_tokens: int
    """n."""
    row_positions: Tensor
    """int64 [B, R]: position in the text of each row; in its document, where documents are isolated."""
    row_places: Tensor
    """int64 [B, R]: which of the n tokens the row is or stands for. Places are as far from each other as positions are."""
    key_places: Tensor
    """int64 [B, K]."""
    row_levels: Tensor
    """int32 [B, R]."""
    key_from: Tensor
    """int32 [B, K]: the lowest level that sees the key."""
    key_until: Tensor
    """int32 [B, K]: the lowest level above that does not see it any more."""

    @property
    def visible(self) -> Tensor:
        """bool [B, R, K]."""
        levels = self.row_levels[:, :, None]
        return (self.key_from[:, None, :] <= levels) & (levels < self.key_until[:, None, :])


def token_ranks(predicted_positions: Tensor, num_tokens: int) -> Tensor:
    """int64 [B, n]: i for the token of slot i = 1 … p, 0 elsewhere; slots of -1 are passed over."""
    batch, num_slots = predicted_positions.shape
    slot = torch.arange(1, num_slots + 1, device=predicted_positions.device).expand(batch, -1)
    used = predicted_positions >= 0
    ranks = torch.zeros(batch, num_tokens + 1, dtype=torch.int64, device=predicted_positions.device)
    # Unused slots write into one extra column, which is cut off.
    ranks.scatter_(1, torch.where(used, predicted_positions, num_tokens), slot)
    return ranks[:, :num_tokens]


def two_stream_layout(
    predicted_positions: Tensor, attention_mask: Tensor, has_mask_rows: bool, document_ids: Tensor | None = None
) -> Layout:
    """Rows: n tokens, then p mask rows (if any), then p query rows. Keys: all of these but the query rows.

    Args:
        predicted_positions: int64 [B, p], -1 in unused slots.
        attention_mask: bool [B, n], False on padding.
        document_ids: int64 [B, n], not decreasing along a row; None lets documents see each other.
    """
    num_tokens, num_slots = attention_mask.shape[1], predicted_positions.shape[1]
    slot_place = predicted_positions.clamp(min=0)
    token_position, token_place = _positions(attention_mask, document_ids), _places(attention_mask)
    slot_position = token_position.gather(1, slot_place)
    slot = torch.arange(1, num_slots + 1, device=slot_place.device).expand_as(slot_place)
    ranks = token_ranks(predicted_positions, num_tokens)
    token_base = _first_levels(attention_mask, document_ids, num_slots)
    slot_base = token_base.gather(1, slot_place)
    mask_rows = 1 if has_mask_rows else 0

    def join(of_tokens: Tensor, of_mask_rows: Tensor, *of_query_rows: Tensor) -> Tensor:
        return torch.cat([of_tokens, *[of_mask_rows] * mask_rows, *of_query_rows], dim=1)

    return Layout(
        num_tokens=num_tokens,
        row_positions=join(token_position, slot_position, slot_position),
        row_places=join(token_place, slot_place, slot_place),
        key_places=join(token_place, slot_place),
        row_levels=join(token_base + ranks, slot_base, slot_base + slot - 1).int(),
        key_from=join(
            torch.where(attention_mask, token_base + ranks, NEVER), torch.where(predicted_positions >= 0, slot_base, NEVER)
        ).int(),
        key_until=join(token_base + num_slots + 1, slot_base + slot).int(),
    )


def plain_layout(attention_mask: Tensor, document_ids: Tensor | None = None) -> Layout:
    """One stream in which every row sees every token that is not padding, of its document if there are ``document_ids``."""
    place, level = _places(attention_mask), _first_levels(attention_mask, document_ids, num_slots=0)
    return Layout(
        num_tokens=attention_mask.shape[1],
        row_positions=_positions(attention_mask, document_ids),
        row_places=place,
        key_places=place,
        row_levels=level.int(),
        key_from=torch.where(attention_mask, level, NEVER).int(),
        key_until=(level + 1).int(),
    )


def _places(attention_mask: Tensor) -> Tensor:
    """int64 [B, n]: 0, 1, 2 … in each row."""
    return torch.arange(attention_mask.shape[1], device=attention_mask.device).expand(attention_mask.shape[0], -1)


def _positions(attention_mask: Tensor, document_ids: Tensor | None) -> Tensor:
    """int64 [B, n]: 0, 1, 2 … in each row, or in each document of a row."""
    place = _places(attention_mask)
    if document_ids is None:
        return place
    begins = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def _first_levels(attention_mask: Tensor, document_ids: Tensor | None, num_slots: int) -> Tensor:
    """int64 [B, n]: the lowest level of each token's document."""
    if document_ids is None:
        return torch.zeros(attention_mask.shape, dtype=torch.int64, device=attention_mask.device)
    return document_ids * (num_slots + 1)
