"""Plug-in that varies ``model.start`` ``near`` for an experiment (starts.py): what is not a setting of the product.

``START_VARIANT`` in the environment holds any of: ``both`` (every head looks to both sides), ``half`` (the second half of
the heads begins as usual).
"""

import os

import torch
from torch import Tensor

from mpnet_ds.models import initial_values
from mpnet_ds.models.mpnet import model


def varied_bias(distance: Tensor, is_right: Tensor, num_heads: int, strength: float) -> Tensor:
    """Compute ``initial_values.near_bias`` with the variations."""
    variant = os.environ.get("START_VARIANT", "").split()
    bias = initial_values.near_bias(distance, is_right, num_heads, strength)
    if "both" in variant:
        bias = -strength * torch.log1p(distance)[:, None].repeat(1, num_heads)
    if "half" in variant:
        bias[:, num_heads // 2 :] = 0
    return bias


model.near_bias = varied_bias
