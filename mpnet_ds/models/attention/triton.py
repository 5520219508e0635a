"""Attention by kernels of our own: scores, bias, visibility, softmax and dropout are never materialised.

What a step holds, once for all layers:

* the bias F [H, n, T] between the tokens of rows and keys, for the tokens' columns (see ``triton_kernels`` for columns);
* the same for the mask keys, gathered from it: [H, B, R, M], the only tensor that grows with B and R;
* levels and indices of rows and columns, and the prediction at each index: [B, ...], int32.

A kernel loads rows of F as they are, at the row's offset, and compares levels. In backward it stores the gradient of the
scores [B, H, R, T + M] once; two small kernels make from it the query's gradient and F's, the latter summed over the batch.
Nothing is added atomically: gradients are the same from run to run, bit for bit.

Dropout keeps an element where the product of two odd random numbers modulo 2**32, one of its row and one of its column, is
large enough. Each sequence has numbers of its own, H*R and K, drawn by Philox from the sequence's seed, in forward and again
in backward. An element is dropped with probability p, to 2**-31. How good that is: the numbers of two rows (or columns) are
the same, or in a simple ratio, a few times in 2**31 pairs, and then their masks resemble each other; but the numbers of two
rows and two columns determine four elements, and that these four are uncorrelated is what the tests find, not a theorem. It
costs one multiplication an element; Philox for each would cost more than the matrix products.

Rows that see nothing, and those of unused entries, come out as 0 and have no gradients.

Shapes: B sequences, n tokens, p predicted tokens, H heads, R rows of the network, K keys, D width of a head.
"""

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from mpnet_ds.errors import UserError
from mpnet_ds.models.mpnet.relative_position import relative_bias
from mpnet_ds.models.mpnet.visibility import NEVER, Layout

if TYPE_CHECKING:
    from transformers import MPNetConfig

TOKEN_UNIT, MASK_UNIT = 64, 16
WIDEST_HEAD = 128


class TritonAttention:
    """The back-end ``triton``: needs a GPU; tests without one set TRITON_INTERPRET=1 before triton is imported."""

    name = "triton"

    def check(self, device: torch.device, config: "MPNetConfig") -> None:
        """See ``attention.Backend``."""
        check_triton(device)
        check_width(config.hidden_size // config.num_attention_heads)

    def prepare(self, table: nn.Embedding, layout: Layout) -> tuple[Tensor, ...]:
        """See ``attention.Backend``; the tensors that ``attend`` calls by name.

        Raises:
            UserError: triton is not installed, or the table is not on a GPU.
        """
        check_triton(table.weight.device)
        tokens = layout.num_tokens
        bias = F.pad(relative_bias(table, tokens), (0, -tokens % TOKEN_UNIT))
        levels, predictions = seeing_levels(layout)
        return (
            bias.contiguous(),
            mask_key_bias(bias.detach(), layout),
            layout.row_indices.int().contiguous(),
            levels,
            in_columns(layout.key_from, tokens, NEVER),
            in_columns(layout.key_until, tokens, 0),
            predictions,
            predicting_sequences(predictions),
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, seeds: Tensor | None, first_row: int,
        *prepared: Tensor,
    ) -> Tensor:  # fmt: skip
        """See ``attention.Backend``; a view of [B, R, H, D] in memory.

        Raises:
            UserError: a head is wider than 128.
        """
        check_width(query.shape[3])
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        out, _ = attention(query, key, value, *prepared, seeds, round(dropout * 2**32), first_row)
        return out.transpose(1, 2)


def check_triton(device: torch.device) -> None:
    """Raise ``UserError`` if the kernels cannot run."""
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "attention 'triton' needs the package triton, which is not installed. It comes with torch's builds for CUDA; "
            "or use attention 'sdpa'."
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            f"attention 'triton' needs a GPU, and the model is on '{device.type}'. Use attention 'auto' or 'eager'."
        )


def check_width(width: int) -> None:
    """Raise ``UserError`` for heads that are too wide."""
    if width > WIDEST_HEAD:
        raise UserError(
            f"heads are {width} wide; attention 'triton' computes heads of up to {WIDEST_HEAD}. "
            "Use more heads, or attention 'sdpa'."
        )


def num_predicted(layout: Layout) -> int:
    """Return p, which is 0 in a layout of one stream."""
    return layout.row_indices.shape[1] - layout.key_indices.shape[1]


def seeing_levels(layout: Layout) -> tuple[Tensor, Tensor]:
    """Compute the rows' levels, int32 [B, R], and the number of the prediction at each index, int32 [B, n]; -1 for none.

    Rows of unused entries have level -1: nothing reads them, and all have index 0, whose gradients must not include theirs.
    """
    tokens, predicted = layout.num_tokens, num_predicted(layout)
    if predicted == 0:
        return layout.row_levels.contiguous(), torch.full_like(layout.row_levels, -1)
    predictions = layout.row_levels[:, :tokens] % (predicted + 1) - 1
    indices = layout.row_indices[:, tokens:]
    number = torch.arange(predicted, device=indices.device).repeat(indices.shape[1] // predicted)
    used = predictions.gather(1, indices) == number
    levels = torch.cat([layout.row_levels[:, :tokens], torch.where(used, layout.row_levels[:, tokens:], -1)], dim=1)
    return levels, predictions.contiguous()


def predicting_sequences(predictions: Tensor) -> Tensor:
    """List the sequences that predict each index, int32 [n, B + 1]: their numbers, the others', and how many they are."""
    predicted = (predictions >= 0).t()
    sequences = predicted.char().argsort(dim=1, descending=True, stable=True)
    return torch.cat([sequences, predicted.sum(dim=1, keepdim=True)], dim=1).int()


def mask_key_bias(bias: Tensor, layout: Layout) -> Tensor:
    """Gather the bias of the scores with mask keys, [H, B, R, M], from the bias [H, n, T]."""
    indices = layout.key_indices[:, layout.num_tokens :]
    indices = F.pad(indices, (0, -indices.shape[1] % MASK_UNIT))
    return bias[:, layout.row_indices[:, :, None], indices[:, None, :]].contiguous()


def in_columns(of_keys: Tensor, tokens: int, elsewhere: int) -> Tensor:
    """Spread int32 [B, K] over columns, int32 [B, T + M rounded up to whole tiles]; ``elsewhere`` in those without a key."""
    of_tokens, of_mask_keys = of_keys[:, :tokens], of_keys[:, tokens:]
    padded = [F.pad(x, (0, -x.shape[1] % TOKEN_UNIT), value=elsewhere) for x in (of_tokens, of_mask_keys)]
    return torch.cat(padded, dim=1)


@library.custom_op("mpnet_ds::triton_attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask_bias: Tensor,
    row_indices: Tensor,
    row_levels: Tensor,
    column_from: Tensor,
    column_until: Tensor,
    predictions: Tensor,
    predicting: Tensor,
    seeds: Tensor | None,
    dropped: int,
    first_row: int,
) -> tuple[Tensor, Tensor]:
    """Compute O [B, R, H, D], and for backward the base-2 logarithm of the sum of exponentials, fp32 [B, H, R].

    Args:
        query, key, value: [B, H, rows, D], of any strides but the last.
        bias, mask_bias, row_indices, row_levels, column_from, column_until, predictions, predicting: from
            ``TritonAttention.prepare``.
        seeds: int64 [B], of dropout's draws; None without dropout.
        dropped: dropout probability * 2**32.
        first_row: of the layout's rows.
    """
    batch, heads, rows, width = query.shape
    out = query.new_empty(batch, rows, heads, width)
    lse = query.new_empty(batch, heads, rows, dtype=torch.float32)
    prepared = (bias, mask_bias, row_indices, row_levels, column_from, column_until)
    from mpnet_ds.models.attention import triton_kernels  # imports triton

    triton_kernels.forward(query, key, value, *prepared, seeds, out, lse, dropped, first_row)
    return out, lse


@attention.register_fake
def _(query, key, value, *_) -> tuple[Tensor, Tensor]:
    batch, heads, rows, width = query.shape
    return query.new_empty(batch, rows, heads, width), query.new_empty(batch, heads, rows, dtype=torch.float32)


@library.custom_op("mpnet_ds::triton_attention_backward", mutates_args=())
def attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask_bias: Tensor,
    row_indices: Tensor,
    row_levels: Tensor,
    column_from: Tensor,
    column_until: Tensor,
    predictions: Tensor,
    predicting: Tensor,
    seeds: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    dropped: int,
    first_row: int,
    bias_learns: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of query, key and value, one tensor (see ``of_heads``), and of the bias, [H, n, T] or empty.

    Args:
        out, lse: what ``attention`` returned.
        grad_out: [B, H, R, D], the gradient of O.
        bias_learns: whether the bias's gradient is wanted.
        (others): arguments of ``attention``.
    """
    gradients, of_bias = _empty_gradients(query, key, value, bias, bias_learns)
    if is_packed(query, key, value):
        gradients.view(query.shape[0], query.shape[2], 3, -1)[:, key.shape[2] :, 1:] = 0  # these rows are not keys
    from mpnet_ds.models.attention import triton_kernels  # imports triton

    triton_kernels.backward(
        query, key, value, bias, mask_bias, row_indices, row_levels, column_from, column_until, predictions, predicting,
        seeds, out, lse, grad_out, *of_heads(gradients, query, key, value), of_bias, dropped,
        first_row,
    )  # fmt: skip
    return gradients, of_bias


def _empty_gradients(query, key, value, bias, bias_learns: bool) -> tuple[Tensor, Tensor]:
    """Allocate what ``attention_backward`` returns."""
    size = 3 * query.numel() if is_packed(query, key, value) else query.numel() + key.numel() + value.numel()
    return query.new_empty(size), torch.empty_like(bias) if bias_learns else bias.new_empty(0)


def is_packed(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the three, [B, H, rows, D], lie in memory as the parts of one product [B, R, 3 H D] do."""
    _, heads, rows, width = query.shape
    strides = (3 * rows * heads * width, width, 3 * heads * width, 1)
    return all(x.stride() == strides for x in (query, key, value))


def of_heads(gradients: Tensor, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """View one tensor as the gradients [B, H, rows, D] of query, key and value: packed as they are, or one after the other.

    Packed gradients are the gradient of the product that query, key and value are views of: nothing is copied.
    """
    (batch, heads, rows, width), inputs = query.shape, (query, key, value)
    if is_packed(*inputs):
        parts = gradients.view(batch, rows, 3, heads, width).unbind(2)
    else:
        parts = gradients.split([x.numel() for x in inputs])
        parts = [part.view(batch, -1, heads, width) for part in parts]
    return [part[:, : x.shape[2]].transpose(1, 2) for part, x in zip(parts, inputs, strict=True)]


@attention_backward.register_fake
def _(query, key, value, bias, *arguments):
    return _empty_gradients(query, key, value, bias, arguments[-1])


def _keep_for_backward(ctx, inputs, output) -> None:
    *tensors, ctx.dropped, ctx.first_row = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # else zeros would be made for the logarithms


def _gradients(ctx, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_out = grad_out.transpose(1, 2)
    grad_out = grad_out if grad_out.stride(3) == 1 else grad_out.contiguous()
    bias_learns = ctx.needs_input_grad[3]
    saved = ctx.saved_tensors
    gradients, of_bias = attention_backward(*saved, grad_out, ctx.dropped, ctx.first_row, bias_learns)
    return *of_heads(gradients, *saved[:3]), of_bias if bias_learns else None, *[None] * 10


attention.register_autograd(_gradients, setup_context=_keep_for_backward)
