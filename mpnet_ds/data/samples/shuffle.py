"""The shuffled order of samples, computed for any index instead of stored.

A Feistel network permutes the numbers of 2h bits (the smallest h with 2^2h >= N): it splits a number into halves (L, R)
and repeats (L, R) <- (R, L xor F(R)), which is invertible for any F. A result above N-1 is fed in again until it is within
range ("cycle walking", on average fewer than 4 rounds), so the numbers below N are permuted among themselves. A list of
shuffled numbers would take 8 bytes a sample (400 MB for 50 M samples) in each process; this takes no memory. Source:
Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, CT-RSA 2002.
"""

import numpy as np

from mpnet_ds.counter_rng import make_key, mix

ROUNDS = 4


def shuffled(positions: np.ndarray, num_samples: int, seed: int, epoch) -> np.ndarray:
    """Compute the samples at ``positions`` of the order of an epoch.

    Args:
        positions: int [...], each in 0 … num_samples-1.
        num_samples: N, the number of samples in an epoch.
        epoch: int, or int array broadcast against ``positions``; each epoch has its own order.
    Returns:
        int64 [...]. Over all positions of one epoch, each number 0 … N-1 occurs exactly once.
    """
    positions, epoch = np.broadcast_arrays(np.asarray(positions), np.asarray(epoch))
    if positions.size and not (positions.min() >= 0 and positions.max() < num_samples):
        raise ValueError(f"positions must be in 0 … {num_samples - 1}, got {positions.min()} … {positions.max()}")
    half_bits = max(1, (max(num_samples - 1, 1).bit_length() + 1) // 2)
    number, epoch = positions.ravel().astype(np.uint64), epoch.ravel()
    epoch = epoch[:1] if (epoch == epoch[:1]).all() else epoch
    round_keys = make_key(seed, epoch, np.arange(ROUNDS)[:, None])  # (rounds, 1 or positions)
    result, outside = number, np.arange(number.size)
    while outside.size:
        number = _feistel(number, half_bits, round_keys)
        result[outside] = number
        again = np.flatnonzero(number >= num_samples)
        number, outside = number[again], outside[again]
        round_keys = round_keys if epoch.size == 1 else round_keys[:, again]
    return result.reshape(positions.shape).astype(np.int64)


def _feistel(number: np.ndarray, half_bits: int, round_keys: np.ndarray) -> np.ndarray:
    shift, low = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = number >> shift, number & low
    for key in round_keys:
        mixed = mix(right ^ key)
        mixed &= low
        mixed ^= left
        left, right = right, mixed
    return (left << shift) | right
