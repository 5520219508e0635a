"""Documents that share a sequence and are kept apart. Shapes: B sequences, n tokens."""

import torch
from torch import Tensor
from torch.nn import functional as F


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Count tokens from 0 in each document: int64 [B, n] from document_ids int64 [B, n], not decreasing along a sequence."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand(document_ids.shape[0], -1)
    begins = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def visible_tokens(attention_mask: Tensor | None, document_ids: Tensor | None) -> Tensor | None:
    """Tell which tokens each token may see: bool [B, 1, n], or [B, n, n] with documents; None: all.

    Args:
        attention_mask: bool [B, n], False on padding, or None.
        document_ids: int64 [B, n], or None: a sequence is one document.
    """
    visible = None if attention_mask is None else attention_mask[:, None, :]
    if document_ids is None:
        return visible
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return same if visible is None else same & visible


def causal_tokens(input_ids: Tensor) -> Tensor:
    """Tell which tokens each token may see if none sees what follows it: bool [1, n, n]."""
    length = input_ids.shape[1]
    return torch.ones(1, length, length, dtype=torch.bool, device=input_ids.device).tril()
