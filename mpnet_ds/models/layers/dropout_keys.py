"""Keys of dropout: what is dropped follows from the run's seed, the step, the sequence's number in the global batch, and the
place in the model. Ranks, micro-batches and gradient accumulation do not matter, nor does recomputation in backward.

A key holds the step in 30 bits, the number in 22 and the place in 12 (more wrap around), plus a hash of the seed. Keys of a
step are different and otherwise as alike as can be: the generators that take them (SFC64 and Philox) are made for that.
"""

import torch
from torch import Tensor

from mpnet_ds.counter_rng import make_key

PLACE_BITS, NUMBER_BITS = 12, 22


def dropout_keys(seed: int, step: Tensor | int, numbers: Tensor, places: int) -> Tensor:
    """Compute the keys of all places, int64 [places, B].

    Args:
        seed: of the run.
        step: from 1, int64 scalar.
        numbers: of the sequences in the global batch, int64 [B].
        places: P, of the model, at which something is dropped.
    """
    first = int(make_key(seed)) >> 2  # int64, also after a few places more
    of_places = torch.arange(first, first + places, device=numbers.device)
    return of_places[:, None] + ((numbers << PLACE_BITS) + (step << PLACE_BITS + NUMBER_BITS))


def drawn_keys(places: int, batch: int, device: torch.device) -> Tensor:
    """Draw keys, int64 [places, B], from PyTorch's generator of the device: for batches whose sequences have no numbers."""
    return torch.randint(2**63 - 1, (places, batch), device=device)
