"""The kernels of attention/triton.py; importing this file imports triton.

Shapes: B sequences, n tokens, p predicted tokens, H heads, R query rows, K keys, D width of a head.

Keys are numbered in *columns*: T columns for the n tokens, then M for the p mask keys (``mpnet`` only). T is a
multiple of ``TOKEN_UNIT`` and M of ``MASK_UNIT``, so that a tile of keys is in one of the two and every row of a
bias begins at a multiple of 32 bytes, for loads of 16 bytes a thread. Columns beyond the n tokens and p mask keys are seen
by no row.

    factors_kernel    a sequence:        the odd random numbers that dropout multiplies
    forward_kernel    a tile of rows:    scores, softmax and products with the values over all columns; O and log2-sum-exp
    delta_kernel      a tile of rows:    delta = sum over D of dO * O
    backward_kernel   a tile of columns: over all rows, probabilities again, dV and dK in registers; stores dS
    query_kernel      a tile of rows:    dQ = dS K
    bias_kernel       a token's index:   sums dS over the batch and the rows of that token

No kernel adds atomically, so results are the same bit for bit from run to run.

O and dK are summed by ``tl.fma`` behind their product. With ``+=`` the compiler lets the product run on into the next pass
of the loop, and then ptxas lets every wgmma wait for the one before (C7515).

Arithmetic and bytes of one layer of mpnet-base at 64 rows of 512 tokens, computed and not measured: B = 64, H = 12, R = 666,
K = 589 in 592 columns, D = 64, bf16; B*H*R*K = 301 M elements, and a matrix product is 38.6 GFLOP.

    forward_kernel    77 GFLOP    Q, K, V, O 247 MB, biases of mask keys 82 MB; those of tokens, 6 MB, stay in the L2 cache
    delta_kernel                  dO, O 131 MB
    backward_kernel   154 GFLOP   K, V, dK, dV 232 MB, Q, dO 131 MB (10 times from the L2 cache), biases 82 MB, dS 606 MB
    query_kernel      39 GFLOP    dS 606 MB, K, dQ 123 MB
    bias_kernel                   dS 606 MB, dF 6 MB

That is 77 GFLOP and 0.33 GB forward, 193 GFLOP and 2.5 GB backward. But the compiler makes 23 instructions an element in the
loop of forward_kernel and 32 in that of backward_kernel, with dropout (19 and 24 without). One a cycle from each of 132 * 4
schedulers of 32 lanes at 1.7 GHz is 0.24 and 0.34 ms, twice what the products take at 700 TFLOP/s: these two should be bound
by instructions and the other three by memory, 0.37 ms at 4 TB/s. In all about 1 ms a layer, 11 ms a step of 12 layers, of
which the last has the query rows alone. A step of 64 rows at 500,000 tokens/s takes 66 ms.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mpnet_ds.models.attention.triton_tiles import configuration

TOKEN_UNIT = tl.constexpr(64)
MASK_UNIT = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)
FACTORS = 1024  # a program of factors_kernel draws so many

# Numbers that may differ from batch to batch: nothing is compiled again for them.
VARYING = ["batch", "rows", "first_row", "layout_rows", "tokens", "keys", "token_units", "mask_units", "table_units"]


@triton.jit
def dropout_weights(row_factors, column_factors, DROPPED: tl.constexpr):
    """fp32, broadcast: 0 where an element is dropped, else 1 / (1 - DROPPED / 2**32).

    The product modulo 2**32 of two odd random numbers is uniform over the odd numbers, whichever of the two is held, and its
    leading bits depend on all bits of both: one multiplication an element.
    """
    return tl.where(row_factors * column_factors >= DROPPED - 2**31, 1.0 / (1.0 - DROPPED / 2**32), 0.0)


@triton.jit(do_not_specialize=["of_rows", "columns"])
def factors_kernel(seeds, row_factors, column_factors, of_rows, columns, BLOCK: tl.constexpr):
    """Odd int32 from a sequence's seed: [B, H * R] for its rows, [B, columns] for its columns."""
    b, number = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    factors = tl.randint(tl.load(seeds + b), number).to(tl.int32, bitcast=True) | 1
    tl.store(column_factors + b * columns + number, factors, mask=number < columns)
    of_row = number - columns
    tl.store(row_factors + b * of_rows + of_row, factors, mask=(of_row >= 0) & (of_row < of_rows))


@triton.jit
def tile_and_head(num_tiles):
    """Return the tile and the (b, h) of a program; tiles of one (b, h) run side by side and share the L2 cache."""
    program = tl.program_id(0)
    return program % num_tiles, program // num_tiles


@triton.jit
def head_tile(pointer, numbers, stride, count, HEAD_WIDTH: tl.constexpr, HEAD_TILE: tl.constexpr):
    """[numbers, HEAD_TILE]: those rows of a matrix [count, D], zero beyond it."""
    d = tl.arange(0, HEAD_TILE)
    mask = (numbers < count)[:, None]
    if HEAD_WIDTH != HEAD_TILE:
        mask = mask & (d < HEAD_WIDTH)[None, :]
    return tl.load(pointer + numbers[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def store_head_tile(pointer, numbers, stride, count, value, HEAD_WIDTH: tl.constexpr, HEAD_TILE: tl.constexpr):
    """Store what ``head_tile`` loads."""
    d = tl.arange(0, HEAD_TILE)
    mask = (numbers < count)[:, None]
    if HEAD_WIDTH != HEAD_TILE:
        mask = mask & (d < HEAD_WIDTH)[None, :]
    tl.store(pointer + numbers[:, None] * stride + d[None, :], value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def keys_of_tile(start, columns, token_columns, tokens, keys):
    """Return whether a tile of columns is of mask keys, the numbers of its keys, and where keys of its kind end."""
    of_mask = start >= token_columns
    return of_mask, tl.where(of_mask, columns - (token_columns - tokens), columns), tl.where(of_mask, keys, tokens)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    query, key, value, bias, mask_bias, row_indices, row_levels, column_from, column_until, row_factors, column_factors,
    out, lse,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    batch, heads, rows, first_row, layout_rows, tokens, keys, token_units, mask_units, table_units, scale,
    HEAD_WIDTH: tl.constexpr, HEAD_TILE: tl.constexpr,
    ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O [B, R, H, D] and log2 of the sum of exponentials [B, H, R] of one tile of rows, one (b, h)."""
    row_tile, bh = tile_and_head(tl.cdiv(rows, ROW_TILE))
    b, h = bh // heads, bh % heads
    token_columns, columns_end = token_units * TOKEN_UNIT, token_units * TOKEN_UNIT + mask_units * MASK_UNIT
    r = row_tile * ROW_TILE + tl.arange(0, ROW_TILE)
    safe = tl.minimum(r, rows - 1)
    layout_row = b * layout_rows + first_row + safe
    levels = tl.load(row_levels + layout_row)
    token_bias = bias + (h * tokens + tl.load(row_indices + layout_row)) * token_columns
    mask_bias += (h * batch * layout_rows + layout_row).to(tl.int64) * (mask_units * MASK_UNIT) - token_columns
    column_from += b * table_units * TOKEN_UNIT
    column_until += b * table_units * TOKEN_UNIT
    key += b.to(tl.int64) * key_batch + h * key_head
    value += b.to(tl.int64) * value_batch + h * value_head
    q = head_tile(query + b.to(tl.int64) * query_batch + h * query_head, r, query_row, rows, HEAD_WIDTH, HEAD_TILE)
    if DROPPED > 0:
        row_factor = tl.load(row_factors + bh * rows + safe)
        column_factors += b * table_units * TOKEN_UNIT

    highest = tl.full([ROW_TILE], float("-inf"), tl.float32)
    total = tl.zeros([ROW_TILE], tl.float32)
    acc = tl.zeros([ROW_TILE, HEAD_TILE], tl.float32)
    for start in range(0, columns_end, KEY_TILE):
        columns = start + tl.arange(0, KEY_TILE)
        of_mask, k_numbers, k_end = keys_of_tile(start, columns, token_columns, tokens, keys)
        k = head_tile(key, k_numbers, key_row, k_end, HEAD_WIDTH, HEAD_TILE)
        exists = columns < columns_end
        row_bias = tl.where(of_mask, mask_bias, token_bias)
        tile_bias = tl.load(row_bias[:, None] + columns[None, :], mask=exists[None, :], other=0.0)
        since, until = tl.load(column_from + columns), tl.load(column_until + columns)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + tile_bias.to(tl.float32)
        scores = tl.where((since[None, :] <= levels[:, None]) & (levels[:, None] < until[None, :]), scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        shift = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # rows that have seen nothing so far
        probabilities = tl.exp2(scores * LOG2E - (shift * LOG2E)[:, None])
        shrink = tl.exp2((highest - shift) * LOG2E)
        total = total * shrink + tl.sum(probabilities, 1)
        if DROPPED > 0:
            probabilities *= dropout_weights(row_factor[:, None], tl.load(column_factors + columns)[None, :], DROPPED)
        v = head_tile(value, k_numbers, value_row, k_end, HEAD_WIDTH, HEAD_TILE)
        product = tl.dot(probabilities.to(v.dtype), v, input_precision=PRECISION)
        acc = tl.fma(acc, tl.broadcast_to(shrink[:, None], acc.shape), product)
        highest = new_highest

    sees = total > 0
    acc = acc * tl.where(sees, 1.0 / tl.where(sees, total, 1.0), 0.0)[:, None]
    out += (b.to(tl.int64) * rows * heads + h) * HEAD_WIDTH
    store_head_tile(out, r, heads * HEAD_WIDTH, rows, acc, HEAD_WIDTH, HEAD_TILE)
    # Plus infinity for rows that see nothing: their probabilities come out as 0 in backward.
    row_lse = tl.where(sees, highest * LOG2E + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    tl.store(lse + bh * rows + r, row_lse, mask=r < rows)


@triton.jit(do_not_specialize=VARYING)
def delta_kernel(
    out, grad_out, delta, grad_batch, grad_head, grad_row, heads, rows,
    HEAD_WIDTH: tl.constexpr, HEAD_TILE: tl.constexpr, ROW_TILE: tl.constexpr,
):  # fmt: skip
    """[B, H, R] fp32: sum over D of dO * O."""
    row_tile, bh = tile_and_head(tl.cdiv(rows, ROW_TILE))
    b, h = bh // heads, bh % heads
    r = row_tile * ROW_TILE + tl.arange(0, ROW_TILE)
    out += (b.to(tl.int64) * rows * heads + h) * HEAD_WIDTH
    o = head_tile(out, r, heads * HEAD_WIDTH, rows, HEAD_WIDTH, HEAD_TILE)
    do = head_tile(grad_out + b.to(tl.int64) * grad_batch + h * grad_head, r, grad_row, rows, HEAD_WIDTH, HEAD_TILE)
    tl.store(delta + bh * rows + r, tl.sum(o.to(tl.float32) * do.to(tl.float32), 1), mask=r < rows)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    query, key, value, bias, mask_bias, row_indices, row_levels, column_from, column_until, row_factors, column_factors,
    lse, delta, grad_out, grad_key, grad_value, grad_scores,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    grad_batch, grad_head, grad_row, to_batch, to_row,
    batch, heads, rows, first_row, layout_rows, tokens, keys, token_units, mask_units, table_units, scale,
    HEAD_WIDTH: tl.constexpr, HEAD_TILE: tl.constexpr,
    ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK, dV [B, K, H, D] of one tile of columns, and its columns of dS [B, H, R, T + M]; one (b, h).

    Tiles are [columns, rows], so that the left factors of dV and dK are where the scores were computed.
    """
    token_columns, columns_end = token_units * TOKEN_UNIT, token_units * TOKEN_UNIT + mask_units * MASK_UNIT
    key_tile, bh = tile_and_head(tl.cdiv(columns_end, KEY_TILE))
    b, h = bh // heads, bh % heads
    start = key_tile * KEY_TILE
    columns = start + tl.arange(0, KEY_TILE)
    exists = columns < columns_end
    of_mask, k_numbers, k_end = keys_of_tile(start, columns, token_columns, tokens, keys)
    k = head_tile(key + b.to(tl.int64) * key_batch + h * key_head, k_numbers, key_row, k_end, HEAD_WIDTH, HEAD_TILE)
    v = head_tile(value + b.to(tl.int64) * value_batch + h * value_head, k_numbers, value_row, k_end, HEAD_WIDTH, HEAD_TILE)
    since = tl.load(column_from + b * table_units * TOKEN_UNIT + columns)
    until = tl.load(column_until + b * table_units * TOKEN_UNIT + columns)
    query += b.to(tl.int64) * query_batch + h * query_head
    grad_out += b.to(tl.int64) * grad_batch + h * grad_head
    lse += bh * rows
    delta += bh * rows
    grad_scores += bh.to(tl.int64) * rows * columns_end
    row_indices += b * layout_rows + first_row
    row_levels += b * layout_rows + first_row
    bias += h * tokens * token_columns
    mask_bias += ((h * batch + b) * layout_rows + first_row).to(tl.int64) * (mask_units * MASK_UNIT) - token_columns
    if DROPPED > 0:
        column_factor = tl.load(column_factors + b * table_units * TOKEN_UNIT + columns)
        row_factors += bh * rows

    dk = tl.zeros([KEY_TILE, HEAD_TILE], tl.float32)
    dv = tl.zeros([KEY_TILE, HEAD_TILE], tl.float32)
    for first in range(0, rows, ROW_TILE):
        r = first + tl.arange(0, ROW_TILE)
        in_rows = r < rows
        safe = tl.minimum(r, rows - 1)
        indices = tl.load(row_indices + safe)
        levels = tl.where(in_rows, tl.load(row_levels + safe), -1)  # beyond the rows nothing is seen
        q = head_tile(query, r, query_row, rows, HEAD_WIDTH, HEAD_TILE)
        do = head_tile(grad_out, r, grad_row, rows, HEAD_WIDTH, HEAD_TILE)
        row_bias = tl.where(of_mask, mask_bias + safe * (mask_units * MASK_UNIT), bias + indices * token_columns)
        tile_bias = tl.load(row_bias[None, :] + columns[:, None], mask=exists[:, None], other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale + tile_bias.to(tl.float32)
        visible = (since[:, None] <= levels[None, :]) & (levels[None, :] < until[:, None])
        row_lse = tl.load(lse + safe)
        row_delta = tl.load(delta + safe)
        probabilities = tl.where(visible, tl.exp2(scores * LOG2E - row_lse[None, :]), 0.0)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        if DROPPED > 0:
            row_factor = tl.load(row_factors + safe)
            weights = dropout_weights(row_factor[None, :], column_factor[:, None], DROPPED)
            dv += tl.dot((probabilities * weights).to(do.dtype), do, input_precision=PRECISION)
            dp *= weights
        else:
            dv += tl.dot(probabilities.to(do.dtype), do, input_precision=PRECISION)
        ds = (probabilities * (dp - row_delta[None, :])).to(q.dtype)
        dk = tl.fma(tl.dot(ds, q, input_precision=PRECISION), tl.full(dk.shape, 1.0, tl.float32) * scale, dk)
        to = grad_scores + r[None, :] * columns_end + columns[:, None]
        tl.store(to, ds, mask=exists[:, None] & in_rows[None, :])

    gradient = b.to(tl.int64) * to_batch + h * HEAD_WIDTH
    store_head_tile(grad_key + gradient, k_numbers, to_row, k_end, dk, HEAD_WIDTH, HEAD_TILE)
    store_head_tile(grad_value + gradient, k_numbers, to_row, k_end, dv, HEAD_WIDTH, HEAD_TILE)


@triton.jit(do_not_specialize=VARYING)
def query_kernel(
    grad_scores, key, grad_query, key_batch, key_head, key_row, to_batch, to_row,
    heads, rows, tokens, keys, token_units, mask_units, scale,
    HEAD_WIDTH: tl.constexpr, HEAD_TILE: tl.constexpr,
    ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ [B, R, H, D] of one tile of rows, one (b, h)."""
    row_tile, bh = tile_and_head(tl.cdiv(rows, ROW_TILE))
    b, h = bh // heads, bh % heads
    token_columns, columns_end = token_units * TOKEN_UNIT, token_units * TOKEN_UNIT + mask_units * MASK_UNIT
    r = row_tile * ROW_TILE + tl.arange(0, ROW_TILE)
    grad_scores += bh.to(tl.int64) * rows * columns_end
    key += b.to(tl.int64) * key_batch + h * key_head
    acc = tl.zeros([ROW_TILE, HEAD_TILE], tl.float32)
    for start in range(0, columns_end, KEY_TILE):
        columns = start + tl.arange(0, KEY_TILE)
        _, k_numbers, k_end = keys_of_tile(start, columns, token_columns, tokens, keys)
        k = head_tile(key, k_numbers, key_row, k_end, HEAD_WIDTH, HEAD_TILE)
        at = grad_scores + r[:, None] * columns_end + columns[None, :]
        ds = tl.load(at, mask=(r < rows)[:, None] & (columns < columns_end)[None, :], other=0.0)
        acc += tl.dot(ds, k, input_precision=PRECISION)
    grad_query += b.to(tl.int64) * to_batch + h * HEAD_WIDTH
    store_head_tile(grad_query, r, to_row, rows, acc * scale, HEAD_WIDTH, HEAD_TILE)


@triton.jit
def bias_of_rows(acc, grad_scores, b, h, r, exists, key_prediction, columns, heads, rows, token_columns, columns_end,
                 HAS_MASK_KEYS: tl.constexpr):  # fmt: skip
    """Add to [BATCH_TILE, KEY_TILE] the dS of one row of each sequence b that exists: of tokens, and of their mask keys."""
    row = grad_scores + ((b * heads + h).to(tl.int64) * rows + r) * columns_end
    seen = exists[:, None] & (columns < token_columns)[None, :]
    acc += tl.load(row[:, None] + columns[None, :], mask=seen, other=0.0).to(tl.float32)
    if HAS_MASK_KEYS:
        seen = exists[:, None] & (key_prediction >= 0)
        acc += tl.load(row[:, None] + (token_columns + key_prediction), mask=seen, other=0.0).to(tl.float32)
    return acc


@triton.jit(do_not_specialize=VARYING)
def bias_kernel(
    grad_scores, predictions, predicting, grad_bias, batch, heads, rows, first_row, tokens, keys, token_units, mask_units,
    HAS_MASK_KEYS: tl.constexpr,
    BATCH_TILE: tl.constexpr, KEY_TILE: tl.constexpr,
):  # fmt: skip
    """dF [H, n, T] of one index, one head and a tile of token columns.

    Rows of an index: its token and, in the sequences that predict it, a mask row and a query row. Keys: the token and the
    mask row.
    """
    index, h = tl.program_id(0), tl.program_id(1)
    token_columns, columns_end = token_units * TOKEN_UNIT, token_units * TOKEN_UNIT + mask_units * MASK_UNIT
    columns = tl.program_id(2) * KEY_TILE + tl.arange(0, KEY_TILE)
    key_predictions = predictions + columns[None, :]
    in_tokens = (columns < tokens)[None, :]
    acc = tl.zeros([BATCH_TILE, KEY_TILE], tl.float32)
    key_prediction = tl.full([BATCH_TILE, KEY_TILE], -1, tl.int32)
    if first_row == 0:
        for start in range(0, batch, BATCH_TILE):
            b = start + tl.arange(0, BATCH_TILE)
            exists = b < batch
            if HAS_MASK_KEYS:
                wanted = exists[:, None] & in_tokens
                key_prediction = tl.load(key_predictions + (b * tokens)[:, None], mask=wanted, other=-1)
            acc = bias_of_rows(acc, grad_scores, b, h, index, exists, key_prediction, columns, heads, rows, token_columns,
                               columns_end, HAS_MASK_KEYS)  # fmt: skip
    predicting += index * (batch + 1)
    count = tl.load(predicting + batch)
    for start in range(0, count, BATCH_TILE):
        number = start + tl.arange(0, BATCH_TILE)
        exists = number < count
        b = tl.load(predicting + number, mask=exists, other=0)
        prediction = tl.load(predictions + b * tokens + index, mask=exists, other=0)
        if HAS_MASK_KEYS:
            wanted = exists[:, None] & in_tokens
            key_prediction = tl.load(key_predictions + (b * tokens)[:, None], mask=wanted, other=-1)
            if first_row == 0:
                acc = bias_of_rows(acc, grad_scores, b, h, tokens + prediction, exists, key_prediction, columns, heads, rows,
                                   token_columns, columns_end, HAS_MASK_KEYS)  # fmt: skip
        acc = bias_of_rows(acc, grad_scores, b, h, keys + prediction - first_row, exists, key_prediction, columns, heads,
                           rows, token_columns, columns_end, HAS_MASK_KEYS)  # fmt: skip
    to = grad_bias + (h * tokens + index) * token_columns + columns
    tl.store(to, tl.sum(acc, 0).to(grad_bias.dtype.element_ty), mask=columns < token_columns)


def capability_of(tensor: Tensor) -> int:
    """Return the compute capability of the tensor's device as one number; on a CPU, where Triton interprets, 90."""
    if tensor.device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def varying(
    query: Tensor, key: Tensor, bias: Tensor, mask_bias: Tensor, row_indices: Tensor, column_from: Tensor, first_row: int
):
    """Collect the kernels' numbers that may differ from batch to batch."""
    return {
        "batch": query.shape[0],
        "rows": query.shape[2],
        "first_row": first_row,
        "layout_rows": row_indices.shape[1],
        "tokens": bias.shape[1],
        "keys": key.shape[2],
        "token_units": bias.shape[2] // TOKEN_UNIT.value,
        "mask_units": mask_bias.shape[3] // MASK_UNIT.value,
        "table_units": column_from.shape[1] // TOKEN_UNIT.value,
    }


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """Name the strides of [B, H, rows, D] as the kernels do."""
    return {
        f"{name}_{dimension}": stride for dimension, stride in zip(("batch", "head", "row"), tensor.stride(), strict=False)
    }


def to_rows(gradient: Tensor) -> dict[str, int]:
    """Name the strides of a gradient [B, H, rows, D] as the kernels do that store it."""
    return {"to_batch": gradient.stride(0), "to_row": gradient.stride(2)}


def dropout_factors(seeds: Tensor | None, heads: int, rows: int, columns: int) -> tuple[Tensor | None, Tensor | None]:
    """Draw the numbers of rows and columns, odd int32 [B, H, R] and [B, columns]; none without seeds."""
    if seeds is None:
        return None, None
    of_rows, of_columns = (seeds.new_empty(len(seeds), *shape, dtype=torch.int32) for shape in ((heads, rows), (columns,)))
    grid = (triton.cdiv(heads * rows + columns, FACTORS), len(seeds))
    factors_kernel[grid](seeds, of_rows, of_columns, heads * rows, columns, BLOCK=FACTORS)
    return of_rows, of_columns


def forward(query, key, value, bias, mask_bias, row_indices, row_levels, column_from, column_until, seeds, out, lse,
            dropped: int, first_row: int) -> None:  # fmt: skip
    """Fill ``out`` and ``lse``; arguments as in ``triton.attention``."""
    batch, heads, rows, width = query.shape
    settings = configuration("forward", width, query.dtype, capability_of(query))
    grid = (triton.cdiv(rows, settings["ROW_TILE"]) * batch * heads,)
    with torch.cuda.device_of(query):
        factors = dropout_factors(seeds if dropped else None, heads, rows, column_from.shape[1])
        forward_kernel[grid](
            query, key, value, bias, mask_bias, row_indices, row_levels, column_from, column_until, *factors, out, lse,
            **strides("query", query), **strides("key", key), **strides("value", value), heads=heads,
            **varying(query, key, bias, mask_bias, row_indices, column_from, first_row),
            scale=width**-0.5, DROPPED=dropped, **settings,
        )  # fmt: skip


def backward(query, key, value, bias, mask_bias, row_indices, row_levels, column_from, column_until, predictions,
             predicting, seeds, out, lse, grad_out, grad_query, grad_key, grad_value, grad_bias,
             dropped: int, first_row: int) -> None:  # fmt: skip
    """Fill the four gradients, except that of an empty ``grad_bias``; heads of a row follow each other in memory."""
    batch, heads, rows, width = query.shape
    kind = (width, query.dtype, capability_of(query))
    numbers = varying(query, key, bias, mask_bias, row_indices, column_from, first_row)
    columns = bias.shape[2] + mask_bias.shape[3]
    delta = torch.empty_like(lse)
    grad_scores = query.new_empty(batch, heads, rows, columns)
    some = {name: numbers[name] for name in ("rows", "tokens", "keys", "token_units", "mask_units")}
    of_key, of_grad = strides("key", key), strides("grad", grad_out)
    with torch.cuda.device_of(query):
        factors = dropout_factors(seeds if dropped else None, heads, rows, column_from.shape[1])
        settings = configuration("delta", *kind)
        grid = (triton.cdiv(rows, settings["ROW_TILE"]) * batch * heads,)
        delta_kernel[grid](out, grad_out, delta, **of_grad, heads=heads, rows=rows, **settings)

        settings = configuration("backward", *kind)
        grid = (triton.cdiv(columns, settings["KEY_TILE"]) * batch * heads,)
        backward_kernel[grid](
            query, key, value, bias, mask_bias, row_indices, row_levels, column_from, column_until, *factors, lse,
            delta, grad_out, grad_key, grad_value, grad_scores,
            **strides("query", query), **of_key, **strides("value", value), **of_grad, **to_rows(grad_key), heads=heads,
            **numbers, scale=width**-0.5, DROPPED=dropped, **settings,
        )  # fmt: skip

        settings = configuration("query", *kind)
        grid = (triton.cdiv(rows, settings["ROW_TILE"]) * batch * heads,)
        query_kernel[grid](
            grad_scores, key, grad_query, **of_key, **to_rows(grad_query), heads=heads, **some, scale=width**-0.5, **settings
        )  # fmt: skip

        if grad_bias.numel():
            settings = configuration("bias", *kind)
            grid = (bias.shape[1], heads, triton.cdiv(bias.shape[2], settings["KEY_TILE"]))
            bias_kernel[grid](
                grad_scores, predictions, predicting, grad_bias, batch, heads=heads, first_row=first_row, **some,
                HAS_MASK_KEYS=mask_bias.shape[3] > 0, **settings,
            )  # fmt: skip
