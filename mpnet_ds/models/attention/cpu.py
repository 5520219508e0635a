"""Attention for CPUs: a few heads at a time, so that everything between the two products stays in the cache.

On a CPU the products of attention cost less than repeated passes over [B, H, R, K] numbers in memory, and than allocating
that memory each time. Here scores, softmax, dropout and the product with the values are done for a few heads
at a time, in place; the bias is added by the product itself.

One tensor is kept for backward: the probabilities, negative where dropped.

Shapes: B sequences, H heads, R rows of the network, K keys, D width of a head.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, library, nn

from mpnet_ds.deepspeed_workarounds import softmax_backward_into
from mpnet_ds.errors import UserError
from mpnet_ds.models.layers.random_bits import RandomBits, rounded
from mpnet_ds.models.mpnet.relative_position import NUM_BUCKETS, pair_buckets
from mpnet_ds.models.mpnet.visibility import Layout

if TYPE_CHECKING:
    from transformers import MPNetConfig

SCORES_AT_ONCE = 2**22
"""Numbers of a block: 16 MiB in fp32, less than a last-level cache. Smaller blocks are a little faster on an idle machine
and much slower on a busy one, where the cores wait for each other after every operation."""


class CpuAttention:
    """The back-end ``cpu``, for tensors on a CPU."""

    name = "cpu"

    def check(self, device: torch.device, config: "MPNetConfig") -> None:
        """See ``attention.Backend``."""
        check_cpu(device)

    def prepare(self, table: nn.Embedding, layout: Layout) -> tuple[Tensor]:
        """See ``attention.Backend``; the bias [B, H, R, K]."""
        check_cpu(table.weight.device)
        buckets = pair_buckets(layout.row_indices, layout.key_indices, layout.num_tokens).to(torch.uint8)
        buckets.masked_fill_(~layout.visible, NUM_BUCKETS)
        return (bias_of_buckets(table(torch.arange(NUM_BUCKETS)), buckets),)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, seeds: Tensor | None, first_row: int, bias: Tensor
    ) -> Tensor:  # fmt: skip
        """See ``attention.Backend``."""
        is_recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value, bias))
        return attention(query, key, value, bias[:, :, first_row:], seeds, dropout, is_recorded)[0]


def check_cpu(device: torch.device) -> None:
    """Raise ``UserError`` for another device."""
    if device.type != "cpu":
        raise UserError(f"attention 'cpu' is for CPUs, and the model is on '{device.type}'. Use 'auto' or 'sdpa'.")


@library.custom_op("mpnet_ds::bias_of_buckets", mutates_args=())
def bias_of_buckets(table: Tensor, buckets: Tensor) -> Tensor:
    """Look up [B, H, R, K] in table [32, H] by buckets uint8 [B, R, K]; bucket 32 is for keys that are not visible.

    These get the smallest finite number, rather than minus infinity: a row of padding that sees nothing stays finite.
    """
    batch, rows, keys = buckets.shape
    hidden = table.new_full((1, table.shape[1]), torch.finfo(table.dtype).min)
    by_head = torch.cat([table, hidden]).t().contiguous()
    bias = table.new_empty(batch, table.shape[1], rows, keys)
    flat = buckets.flatten().int()
    for head, values in enumerate(by_head):
        bias[:, head] = values.index_select(0, flat).view(buckets.shape)
    return bias


@bias_of_buckets.register_fake
def _(table, buckets):
    batch, rows, keys = buckets.shape
    return table.new_empty(batch, table.shape[1], rows, keys)


@library.custom_op("mpnet_ds::sum_by_bucket", mutates_args=())
def sum_by_bucket(gradient: Tensor, buckets: Tensor) -> Tensor:
    """Sum gradient [B, H, R, K] by buckets uint8 [B, R, K] into [32, H], in fp64."""
    flat = buckets.flatten()
    sums = [torch.bincount(flat, of_head.double().flatten(), NUM_BUCKETS + 1) for of_head in gradient.unbind(1)]
    return torch.stack(sums, dim=1)[:NUM_BUCKETS].to(gradient.dtype)


@sum_by_bucket.register_fake
def _(gradient, buckets):
    return gradient.new_empty(NUM_BUCKETS, gradient.shape[1])


def _keep_buckets(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _bias_backward(ctx, gradient: Tensor) -> tuple:
    return sum_by_bucket(gradient, *ctx.saved_tensors), None


bias_of_buckets.register_autograd(_bias_backward, setup_context=_keep_buckets)


@library.custom_op("mpnet_ds::attention", mutates_args=())
def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, seeds: Tensor | None, dropout: float, is_recorded: bool
) -> tuple[Tensor, Tensor]:
    """Compute attention [B, H, R, D], and the probabilities [B, H, R, K], negative where dropped.

    Args:
        query: [B, H, R, D].
        key: [B, H, K, D].
        value: [B, H, K, D].
        bias: [B, H, R, K].
        seeds: int64 [B], of dropout's draws; None without dropout.
        dropout: probability that one is dropped.
        is_recorded: whether backward follows; if not, the probabilities are not kept (empty).
    """
    (batch, heads, rows, width), keys = query.shape, key.shape[2]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value * (1 / (1 - rounded(dropout)))))
    bias = bias.flatten(0, 1)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    probabilities = query.new_empty(batch * heads, rows, keys) if is_recorded else query.new_empty(0)
    bits = RandomBits(seeds, heads) if dropout else None
    for part in _parts(batch * heads, rows * keys):
        scores = probabilities[part] if is_recorded else query.new_empty(len(out[part]), rows, keys)
        torch.baddbmm(bias[part], query[part], key[part].mT, alpha=1 / math.sqrt(width), out=scores)
        kept = torch.softmax(scores, dim=-1, out=scores)
        if dropout:
            drawn = bits.keep_(torch.empty_like(scores), dropout)
            torch.copysign(scores, drawn.sub_(0.5), out=scores)
            kept = torch.clamp_min(scores, 0, out=drawn)
        torch.bmm(kept, value[part], out=out[part])
    return out.unflatten(0, (batch, heads)), probabilities


@attention.register_fake
def _(query, key, value, bias, seeds, dropout, is_recorded):
    (batch, heads, rows, _), keys = query.shape, key.shape[2]
    out = query.new_empty(query.shape)
    return out, query.new_empty((batch * heads, rows, keys) if is_recorded else (0,))


@library.custom_op("mpnet_ds::attention_backward", mutates_args=())
def attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, probabilities: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key, value and of the bias [B, H, R, K]."""
    batch, heads, rows, width = query.shape
    scale = 1 / math.sqrt(width)
    gradient, query, key, value = (x.flatten(0, 1) for x in (gradient * (1 / (1 - rounded(dropout))), query, key, value))
    of_query, of_key, of_value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    of_bias = torch.empty_like(probabilities)
    for part in _parts(batch * heads, rows * key.shape[1]):
        signed, of_scores = probabilities[part], of_bias[part]
        kept = signed.clamp_min(0)
        torch.bmm(kept.mT, gradient[part], out=of_value[part])
        of_kept = torch.bmm(gradient[part], value[part].mT)
        if dropout:
            of_kept = torch.ops.aten.threshold_backward(of_kept, kept, 0)
        plain = torch.abs(signed, out=kept) if dropout else kept
        softmax_backward_into(of_scores, of_kept, plain)
        torch.baddbmm(of_query[part], of_scores, key[part], beta=0, alpha=scale, out=of_query[part])
        torch.baddbmm(of_key[part], of_scores.mT, query[part], beta=0, alpha=scale, out=of_key[part])
    return tuple(x.unflatten(0, (batch, heads)) for x in (of_query, of_key, of_value, of_bias))


@attention_backward.register_fake
def _(gradient, query, key, value, probabilities, dropout):
    batch, heads, rows, _ = query.shape
    shapes = (query.shape, key.shape, value.shape, (batch, heads, rows, key.shape[2]))
    return tuple(query.new_empty(shape) for shape in shapes)


def _keep_for_backward(ctx, inputs, output) -> None:
    query, key, value, _, _, ctx.dropout, _ = inputs
    ctx.save_for_backward(query, key, value, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros would be made for the probabilities


def _attention_backward(ctx, gradient: Tensor, _) -> tuple:
    return *attention_backward(gradient, *ctx.saved_tensors, ctx.dropout), None, None, None


attention.register_autograd(_attention_backward, setup_context=_keep_for_backward)


def _parts(count: int, size: int) -> list[slice]:
    """Divide ``count`` matrices of ``size`` numbers into blocks that fit into the cache."""
    step = max(1, SCORES_AT_ONCE // size)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
