"""Random bits for dropout, drawn fast on a CPU.

PyTorch draws them one by one from a Mersenne twister, which took an eighth to a sixth of a training step. Here a seed comes
from PyTorch's generator, so that ``torch.manual_seed`` and activation checkpointing (which restores the generator's state)
repeat a draw, and NumPy's SFC64 makes 64 bits at a time of it: 16 for each number. A probability is thereby rounded to a
multiple of 1/65536: 0.1 is 0.100006. What is kept is scaled by the rounded one, so that the mean stays right.
"""

import numpy as np
import torch
from torch import Tensor

LEVELS = 2**16


def rounded(probability: float) -> float:
    """Round to the probability that is actually used."""
    return round(probability * LEVELS) / LEVELS


class RandomBits:
    """A stream of draws from a seed.

    Args:
        seed: int64 scalar on the CPU, from ``draw_seed``.
    """

    def __init__(self, seed: Tensor):
        self._generator = np.random.SFC64(int(seed))

    def keep_(self, mask: Tensor, probability: float) -> Tensor:
        """Fill ``mask`` (contiguous, any dtype) with 0 at ``probability`` and with 1 elsewhere; return it."""
        bits = torch.from_numpy(self._generator.random_raw(-(-mask.numel() // 4))).view(torch.int16)
        lowest_kept = round(probability * LEVELS) - LEVELS // 2
        return torch.ge(bits[: mask.numel()].view(mask.shape), lowest_kept, out=mask)


def draw_seed() -> Tensor:
    """Draw a seed, an int64 scalar >= 0, from PyTorch's CPU generator."""
    return torch.randint(2**63 - 1, ())
