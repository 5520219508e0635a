"""A counter-based random number generator: stateless, each number is a hash of a key and a counter.

``draw(key, counter)`` returns 64 random bits for each counter under each key, so a sample is the same in any process, in
any order, alone or in a batch. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, *Fast Splittable
Pseudorandom Number Generators*, OOPSLA 2014), applied to a Weyl sequence as there. All arithmetic is modulo 2^64.
"""

import numpy as np

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(x: np.ndarray) -> np.ndarray:
    """Apply a bijection of uint64 in which every input bit flips each output bit with probability one half."""
    x = np.asarray(x)
    mixed = np.right_shift(x, _SHIFT_1, out=np.empty_like(x))
    mixed ^= x
    mixed *= _MULTIPLY_1
    shifted = np.right_shift(mixed, _SHIFT_2, out=np.empty_like(x))
    mixed ^= shifted
    mixed *= _MULTIPLY_2
    np.right_shift(mixed, _SHIFT_3, out=shifted)
    mixed ^= shifted
    return mixed


def make_key(seed: int, *parts) -> np.ndarray:
    """Derive uint64 key(s) from a seed and integers or integer arrays (broadcast): epoch, sample index, purpose …"""
    with np.errstate(over="ignore"):
        key = mix(np.asarray(int(seed) % 2**64, dtype=np.uint64) + _WEYL)
        for part in parts:
            key = mix((key ^ np.asarray(part).astype(np.uint64)) + _WEYL)
    return key


def draw(key: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """Draw 64 random bits for each pair of key and counter, broadcast against each other."""
    with np.errstate(over="ignore"):
        return mix(key + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * _WEYL)


def below(bits: np.ndarray, limit) -> np.ndarray:
    """Map 64 random bits to 0 … limit-1 (limit < 2^32) by multiplication; the bias is below limit / 2^32."""
    return (((bits >> np.uint64(32)) * np.asarray(limit, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def unit_interval(bits: np.ndarray) -> np.ndarray:
    """Map 64 random bits to [0, 1), float64, in steps of 2^-53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
