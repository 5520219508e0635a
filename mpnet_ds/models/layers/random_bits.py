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
        drawn, last, numbers = [], self._drawn + len(masks), masks[0].numel()
        while self._drawn < last:
            drawn.append(self._draw(last - self._drawn, -(-numbers // 4)))
        words = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
        bits = torch.from_numpy(words.view(np.int16)[:, :numbers])
        torch.ge(bits, round(probability * LEVELS) - LEVELS // 2, out=masks.flatten(1))
        return masks

    def _draw(self, most: int, words: int) -> np.ndarray:
        """Draw uint64 [count, words] for the next matrices of a sequence, ``most`` or as many as it has."""
        sequence, done = divmod(self._drawn, self._matrices)
        if done == 0:
            self._generator = np.random.SFC64(_State(self._states[sequence]))
        count = min(most, self._matrices - done)
        self._drawn += count
        return self._generator.random_raw((count, words))


class _State(ISeedSequence):
    """What SFC64 begins with: three times a seed, as its author does; NumPy then passes over 12 draws, as he does.

    NumPy's own way from a number to these three takes longer than the draws.
    """

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words: int, dtype: type = np.uint32) -> np.ndarray:
        """Return the words, uint64 [3]."""
        return self._words
