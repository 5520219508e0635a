"""The Triton kernel of ``cross_entropy.py``; importing this file imports triton.

A program has one row of logits. It reads them twice, the second time from the L2 cache, and writes the gradient where they
were. Head and loss of mpnet-base at 64 sequences move 2.6 GB so, as counted by benchmarks/count_step.py; by separate
operators they moved 7.1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def score_kernel(logits, labels, losses, hits, width, stride, IS_RECORDED: tl.constexpr, BLOCK: tl.constexpr):
    """Loss and hit of one row of logits; leaves its gradient in it if ``IS_RECORDED``."""
    row = tl.program_id(0)
    label = tl.load(labels + row)
    logits += row.to(tl.int64) * stride
    highest, total, best = float("-inf"), 0.0, 0
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        of_block = tl.max(x, 0)
        best = tl.where(of_block > highest, start + tl.argmax(x, 0), best)
        new_highest = tl.maximum(highest, of_block)
        total = total * tl.exp(highest - new_highest) + tl.sum(tl.exp(x - new_highest), 0)
        highest = new_highest
    log_sum = highest + tl.log(total)
    of_label = tl.load(logits + tl.maximum(label, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(label >= 0, log_sum - of_label, 0.0))
    tl.store(hits + row, (best == label).to(tl.int32))
    if IS_RECORDED:
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tl.load(logits + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(x - log_sum) - tl.where(columns == label, 1.0, 0.0)
            gradient = tl.where(label >= 0, gradient, 0.0)
            tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=columns < width)


def score_logits(logits: Tensor, labels: Tensor, is_recorded: bool) -> tuple[Tensor, Tensor]:
    """See ``cross_entropy.score_logits``."""
    rows, width = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    hits = logits.new_empty(rows, dtype=torch.int32)
    with torch.cuda.device_of(logits):
        score_kernel[(rows,)](
            logits, labels, losses, hits, width, logits.stride(0), IS_RECORDED=is_recorded, BLOCK=BLOCK, num_warps=8
        )
    return losses, hits
