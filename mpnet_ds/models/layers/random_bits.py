"""Random bits for dropout, drawn fast on a CPU.

PyTorch draws them one by one from a Mersenne twister, which took an eighth to a sixth of a training step. Here NumPy's SFC64
makes 64 bits at a time: 16 for each number. A probability is thereby rounded to a multiple of 1/65536: 0.1 is 0.100006. What
is kept is scaled by the rounded one, so that the mean stays right.

Each sequence has a stream of its own, and each matrix begins with a new word of it: what is drawn for a matrix depends on
the sequence's seed and the matrix's number, and not on what else is computed with it.
"""

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

LEVELS = 2**16
WORDS_AT_ONCE = 2**16
"""Of 8 bytes: what is drawn is used while it is in the cache."""


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
        self._states = np.repeat(seeds.numpy().view(np.uint64)[:, None], 3, axis=1)
        self._matrices, self._drawn = matrices, 0

    def keep_(self, masks: Tensor, probability: float) -> Tensor:
        """Fill the next of the B × M masks (contiguous, any dtype) with 0 at ``probability``, else with 1; return them."""
        flat, lowest_kept = masks.flatten(1), round(probability * LEVELS) - LEVELS // 2
        for part in flat.split(max(1, WORDS_AT_ONCE * 4 // flat.shape[1])):
            bits = torch.from_numpy(self._draw(*part.shape))
            torch.ge(bits, lowest_kept, out=part)
        return masks

    def _draw(self, matrices: int, numbers: int) -> np.ndarray:
        """Draw int16 [matrices, numbers] for the next matrices."""
        drawn, last, words = [], self._drawn + matrices, -(-numbers // 4)
        while self._drawn < last:
            sequence, done = divmod(self._drawn, self._matrices)
            if done == 0:
                self._generator = np.random.SFC64(_State(self._states[sequence]))
            count = min(last - self._drawn, self._matrices - done)
            drawn.append(self._generator.random_raw((count, words)))
            self._drawn += count
        together = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
        return together.view(np.int16)[:, :numbers]


class _State(ISeedSequence):
    """What SFC64 begins with: three times a seed, as its author does; NumPy then passes over 12 draws, as he does.

    NumPy's own way from a number to these three takes longer than the draws.
    """

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words: int, dtype: type = np.uint32) -> np.ndarray:
        """Return the words, uint64 [3]."""
        return self._words
