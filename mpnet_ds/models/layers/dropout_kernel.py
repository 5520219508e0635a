"""The Triton kernel of ``dropout.py``, and dropout in other kernels of this folder; importing this file imports triton.

Draws are Philox's, with a sequence's seed as its key and a number's position in the sequence as its counter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def kept(seed, positions, KEEP: tl.constexpr):
    """fp32: 1 / KEEP where it keeps the number at a position (int32) of the sequence whose seed is at ``seed``, else 0."""
    return tl.where(tl.rand(tl.load(seed), positions) < KEEP, 1.0 / KEEP, 0.0)


@triton.jit
def drop_kernel(x, seeds, result, numbers, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """A block of numbers of a sequence, which has ``numbers``."""
    blocks = tl.cdiv(numbers, BLOCK)
    sequence, positions = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = positions < numbers
    at = sequence.to(tl.int64) * numbers + positions
    number = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * kept(seeds + sequence, positions, KEEP)
    tl.store(result + at, number.to(result.dtype.element_ty), mask=inside)


def drop(x: Tensor, seeds: Tensor, probability: float) -> Tensor:
    """See ``dropout.dropout``; ``x`` is contiguous."""
    result, numbers = torch.empty_like(x), x.numel() // len(seeds)
    with torch.cuda.device_of(x):
        grid = (len(seeds) * triton.cdiv(numbers, BLOCK),)
        drop_kernel[grid](x, seeds, result, numbers, KEEP=1 - probability, BLOCK=BLOCK)
    return result
