"""Seeds of dropout's draws, one for each sequence and place in the model.

They follow from the run's seed, the step and the sequence's number in the global batch. So ranks, micro-batches and gradient
accumulation do not matter to what is dropped, and a layer that is recomputed in backward drops the same.

A seed is a hash of the run's seed, plus the step in 30 bits, the number in 22 and the place in 12 (larger ones wrap around).
Seeds of a run are different, and no more: the generators that take them, SFC64 and Philox, need no more.
"""

import torch
from torch import Tensor

from mpnet_ds.counter_rng import make_key

PLACE_BITS, NUMBER_BITS = 12, 22


def dropout_seeds(seed: int, step: Tensor, numbers: Tensor, places: int) -> Tensor:
    """Compute the seeds of all places, int64 [places, B].

    Args:
        seed: of the run.
        step: from 1, int64 scalar.
        numbers: of the sequences in the global batch, int64 [B].
        places: number of places.
    """
    first = int(make_key(seed)) >> 2  # so that the last place fits into int64, too
    of_places = torch.arange(first, first + places, device=numbers.device)
    return of_places[:, None] + ((numbers << PLACE_BITS) + (step << PLACE_BITS + NUMBER_BITS))


def drawn_seeds(places: int, batch: int, device: torch.device) -> Tensor:
    """Draw seeds, int64 [places, B], from PyTorch's generator of the device: for batches whose sequences have no numbers."""
    return torch.randint(2**63 - 1, (places, batch), device=device)
