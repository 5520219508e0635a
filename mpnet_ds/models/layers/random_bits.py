"""Random bits for dropout, drawn fast on a CPU.

PyTorch draws them one by one from a Mersenne twister, which took an eighth to a sixth of a training step. Here NumPy's SFC64
makes 64 bits at a time: 16 for each number. A probability is thereby rounded to a multiple of 1/65536: 0.1 is 0.100006. What
is kept is scaled by the rounded one, so that the mean stays right.

Each sequence has a stream of its own, and each matrix begins with a new word of it: what is drawn for a matrix depends on
the sequence's seed and the matrix's number, and not on what else is computed with it.
"""

import numpy as np
import torch
from torch import Tensor

LEVELS = 2**16
_UNUSED = np.random.SeedSequence(0)  # for a generator that is seeded otherwise; to make one takes longer than a draw
WARM_UP = 12
"""Words that are passed over, as SFC64's author does after seeding it with one number."""


def rounded(probability: float) -> float:
    """Round to the probability that is actually used."""
    return round(probability * LEVELS) / LEVELS


class RandomBits:
    """Draws for the matrices of a batch: those of the first sequence, then those of the second, and so on.

    Args:
        seeds: int64 [B], see dropout_seeds.py, on the CPU.
        matrices: M, of each sequence.
    """

    def __init__(self, seeds: Tensor, matrices: int = 1):
        self._states = np.repeat(seeds.numpy().view(np.uint64)[:, None], 4, axis=1)
        self._states[:, 3] = 1  # SFC64's counter
        self._matrices, self._drawn = matrices, 0
        self._generator = np.random.SFC64(_UNUSED)

    def keep_(self, masks: Tensor, probability: float) -> Tensor:
        """Fill the next of the B × M masks (contiguous, any dtype) with 0 at ``probability``, else with 1; return them."""
        lowest_kept = round(probability * LEVELS) - LEVELS // 2
        flat, first = masks.flatten(1), 0
        while first < len(flat):
            count = min(len(flat) - first, self._matrices - self._drawn % self._matrices)
            torch.ge(self._draw(count, flat.shape[1]), lowest_kept, out=flat[first : first + count])
            first += count
        return masks

    def _draw(self, count: int, numbers: int) -> Tensor:
        """Draw int16 [count, numbers] for the next matrices of a sequence."""
        sequence, done = divmod(self._drawn, self._matrices)
        if done == 0:
            state = {"state": self._states[sequence]}
            self._generator.state = {"bit_generator": "SFC64", "state": state, "has_uint32": 0, "uinteger": 0}
            self._generator.random_raw(WARM_UP, output=False)
        self._drawn += count
        words = self._generator.random_raw(count * -(-numbers // 4))
        return torch.from_numpy(words).view(torch.int16).view(count, -1)[:, :numbers]
