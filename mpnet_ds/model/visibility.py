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

Shapes: B rows of a batch, n tokens, p slots, R rows of the network, K keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Layout:
    """Positions and visibility of the network's rows and keys for one batch."""

    row_positions: Tensor
    """int64 [B, R]: position in the text of each row; in its document, where documents are isolated."""
    key_positions: Tensor
    """int64 [B, K]."""
    visible: Tensor
    """bool [B, R, K]."""


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
    batch, num_tokens = attention_mask.shape
    num_slots = predicted_positions.shape[1]
    device = attention_mask.device
    slot_place = predicted_positions.clamp(min=0)
    token_position = _positions(attention_mask, document_ids)
    slot_position = token_position.gather(1, slot_place)
    slot = torch.arange(1, num_slots + 1, device=device).expand(batch, -1)
    ranks = token_ranks(predicted_positions, num_tokens)

    key_positions = [token_position, *([slot_position] if has_mask_rows else [])]
    level = torch.cat([ranks, *([torch.zeros_like(slot)] if has_mask_rows else []), slot - 1], dim=1)[:, :, None]
    visible = (ranks[:, None, :] <= level) & attention_mask[:, None, :]
    if has_mask_rows:
        used = predicted_positions >= 0
        visible = torch.cat([visible, (slot[:, None, :] > level) & used[:, None, :]], dim=2)
    if document_ids is not None:
        slot_document = document_ids.gather(1, slot_place)
        key_document = torch.cat([document_ids, *([slot_document] if has_mask_rows else [])], dim=1)
        row_document = torch.cat([key_document, slot_document], dim=1)
        visible = visible & (row_document[:, :, None] == key_document[:, None, :])
    return Layout(torch.cat([*key_positions, slot_position], dim=1), torch.cat(key_positions, dim=1), visible)


def plain_layout(attention_mask: Tensor, document_ids: Tensor | None = None) -> Layout:
    """One stream in which every row sees every token that is not padding, of its document if there are ``document_ids``."""
    position = _positions(attention_mask, document_ids)
    visible = attention_mask[:, None, :].expand(-1, attention_mask.shape[1], -1)
    if document_ids is not None:
        visible = visible & (document_ids[:, :, None] == document_ids[:, None, :])
    return Layout(position, position, visible)


def _positions(attention_mask: Tensor, document_ids: Tensor | None) -> Tensor:
    """int64 [B, n]: 0, 1, 2 … in each row, or in each document of a row."""
    batch, num_tokens = attention_mask.shape
    position = torch.arange(num_tokens, device=attention_mask.device).expand(batch, -1)
    if document_ids is None:
        return position
    begins = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return position - torch.where(begins, position, 0).cummax(dim=1).values
