"""The Triton kernel of ``gelu.py``; importing this file imports triton.

A program has some columns of every ``num_programs``-th tile of rows and sums their gradients in a fixed order; the programs'
sums are added afterwards, so results are the same bit for bit from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 512
"""For each block of columns, at most."""
ROW_TILE, BLOCK = 4, 512


@triton.jit
def backward_kernel(grad, x, grad_x, sums, rows, width, ROW_TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of x in tiles of rows, and its sum over them, fp32."""
    program, columns = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros([ROW_TILE, BLOCK], tl.float32)
    for first in range(program * ROW_TILE, rows, tl.num_programs(0) * ROW_TILE):
        r = first + tl.arange(0, ROW_TILE)
        mask = (r < rows)[:, None] & inside[None, :]
        at = r.to(tl.int64)[:, None] * width + columns[None, :]
        numbers = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        normal = 0.5 * (1.0 + tl.erf(numbers * 0.7071067811865476))  # its cumulative distribution
        density = tl.exp(-0.5 * numbers * numbers) * 0.3989422804014327
        dx = dy * (normal + numbers * density)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=mask)
        total += dx
    tl.store(sums + program * width + columns, tl.sum(total, 0), mask=inside)


def backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``gelu.gelu_backward``."""
    width = x.shape[-1]
    rows = x.numel() // width
    programs = min(PROGRAMS, triton.cdiv(rows, ROW_TILE))
    grad_x, sums = torch.empty_like(x), x.new_empty(programs, width, dtype=torch.float32)
    with torch.cuda.device_of(x):
        backward_kernel[(programs, triton.cdiv(width, BLOCK))](
            grad, x, grad_x, sums, rows, width, ROW_TILE=ROW_TILE, BLOCK=BLOCK, num_warps=4
        )
    return grad_x, sums.sum(0).to(x.dtype)
