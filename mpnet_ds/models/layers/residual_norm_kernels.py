"""The Triton kernels of ``residual_norm.py``; importing this file imports triton.

A program has whole rows of d numbers. Backward sums the gradients of the vectors over the rows of a program, in a fixed
order; the programs' sums are added afterwards, so results are the same bit for bit from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mpnet_ds.models.layers.dropout_kernel import kept

PROGRAMS = 1024
"""Of backward: each sums over its rows."""


@triton.jit
def forward_kernel(
    x, residual, weight, bias, seeds, result, total, mean, scale, rows_of_sequence, width, eps,
    KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Result, sum, mean and inverse deviation of one row."""
    row, columns = tl.program_id(0), tl.arange(0, BLOCK)
    inside = columns < width
    at = row.to(tl.int64) * width + columns
    added = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if KEEP < 1:
        added *= kept(seeds + row // rows_of_sequence, row % rows_of_sequence * width + columns, KEEP)
    rounded = (tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) + added).to(total.dtype.element_ty)
    tl.store(total + at, rounded, mask=inside)
    numbers = rounded.to(tl.float32)
    row_mean = tl.sum(numbers, 0) / width
    centred = tl.where(inside, numbers - row_mean, 0.0)
    row_scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + at, (centred * row_scale * w + b).to(result.dtype.element_ty), mask=inside)
    tl.store(mean + row, row_mean)
    tl.store(scale + row, row_scale)


@triton.jit
def backward_kernel(
    grad, total, mean, scale, weight, seeds, grad_x, grad_residual, grad_weight, grad_bias, grad_bias_of_x, rows,
    rows_of_sequence, width, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of x and residual of every ``num_programs``-th row, and their part of the vectors', fp32."""
    program, columns = tl.program_id(0), tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros([BLOCK], tl.float32)
    of_bias = tl.zeros([BLOCK], tl.float32)
    of_bias_of_x = tl.zeros([BLOCK], tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * width + columns
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        numbers = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        row_scale = tl.load(scale + row)
        normed = tl.where(inside, (numbers - tl.load(mean + row)) * row_scale, 0.0)
        of_weight += dy * normed
        of_bias += dy
        dnormed = dy * w
        along, constant = tl.sum(dnormed * normed, 0) / width, tl.sum(dnormed, 0) / width
        dtotal = (dnormed - constant - normed * along) * row_scale
        tl.store(grad_residual + at, dtotal.to(grad_residual.dtype.element_ty), mask=inside)
        if KEEP < 1:
            dtotal *= kept(seeds + row // rows_of_sequence, row % rows_of_sequence * width + columns, KEEP)
        of_bias_of_x += dtotal
        tl.store(grad_x + at, dtotal.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(grad_weight + program * width + columns, of_weight, mask=inside)
    tl.store(grad_bias + program * width + columns, of_bias, mask=inside)
    tl.store(grad_bias_of_x + program * width + columns, of_bias_of_x, mask=inside)


def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seeds: Tensor | None, probability: float, eps: float):
    """See ``residual_norm.residual_norm``."""
    width = x.shape[-1]
    rows = x.numel() // width
    result, total = torch.empty_like(x), torch.empty_like(x)
    mean, scale = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        forward_kernel[(rows,)](
            x, residual, weight, bias, seeds, result, total, mean, scale, _rows_of_sequence(rows, seeds), width, eps,
            KEEP=1 - probability, **_block(width),
        )  # fmt: skip
    return result, total, mean, scale


def backward(
    grad: Tensor, total: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, seeds: Tensor | None, probability: float
):
    """See ``residual_norm.residual_norm_backward``."""
    width, rows = grad.shape[-1], len(mean)
    programs = min(rows, PROGRAMS)
    grad_x, grad_residual = torch.empty_like(grad), torch.empty_like(grad)
    of_vectors = grad.new_empty(3, programs, width, dtype=torch.float32)
    with torch.cuda.device_of(grad):
        backward_kernel[(programs,)](
            grad, total, mean, scale, weight, seeds, grad_x, grad_residual, *of_vectors, rows,
            _rows_of_sequence(rows, seeds), width, KEEP=1 - probability, **_block(width),
        )  # fmt: skip
    return grad_x, grad_residual, *(of_vector.sum(0).to(weight.dtype) for of_vector in of_vectors)


def _rows_of_sequence(rows: int, seeds: Tensor | None) -> int:
    return rows if seeds is None else rows // len(seeds)


def _block(width: int) -> dict[str, int]:
    """Numbers of a program, and its warps: 8 to 32 numbers a thread."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 256))}
