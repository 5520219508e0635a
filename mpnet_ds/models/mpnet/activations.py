"""Memory of the two-stream network's activations, from shapes alone.

Counted are the tensors that autograd keeps from forward to backward for the shapes of ``model.py``, and what is needed
beside them at the worst moment: for a chunk of logits, or in backward of a layer.

Shape legend: B sequences of a micro-batch, p predicted tokens, R rows of the network, K keys, H heads, d width, f inner
width, V vocabulary.
"""

from typing import TYPE_CHECKING, NamedTuple

from mpnet_ds.models.layers.cross_entropy import LOGITS_AT_ONCE, LOGITS_AT_ONCE_IN_A_KERNEL
from mpnet_ds.models.module import ComputeSetting
from mpnet_ds.models.mpnet.streams import streams_of

if TYPE_CHECKING:
    from transformers import MPNetConfig


class Work(NamedTuple):
    """What the activations of a micro-batch depend on."""

    config: "MPNetConfig"
    objective: str
    seq_length: int
    num_predicted: int
    """Tokens predicted in a sequence."""
    micro_batch_size: int
    setting: ComputeSetting


def activation_bytes(work: Work) -> int:
    """Compute the bytes at the worst moment of forward or backward, on the device."""
    saved, layers = saved_bytes(work), work.config.num_hidden_layers
    with_logits = saved + _logits(work)
    in_a_layer = saved - _head(work) + _table_gradient(work) + _gradients_in_a_layer(work)
    if work.setting.checkpointed_layers:
        in_a_layer += _layer(work, is_last=layers == 1)
    return max(with_logits, in_a_layer) - host_bytes(work)


def host_bytes(work: Work) -> int:
    """Compute the bytes of recomputed layers' inputs that wait in host memory."""
    return work.setting.checkpointed_layers * _layer_input(work) if work.setting.checkpoints_on_host else 0


def saved_bytes(work: Work) -> int:
    """Compute the bytes of all tensors that autograd keeps from forward to backward, parameters excluded."""
    layers = work.config.num_hidden_layers
    # Which layers are recomputed hardly matters, but the last one is much smaller than the others.
    kept_whole = max(0, layers - work.setting.checkpointed_layers - 1)
    last = _layer(work, is_last=True) if work.setting.checkpointed_layers < layers else 0
    inputs = work.setting.checkpointed_layers * _layer_input(work)
    return _embeddings(work) + _bias(work) + kept_whole * _layer(work) + last + inputs + _head(work)


def _count_rows_and_keys(work: Work) -> tuple[int, int, int]:
    """Count R, K, and the rows that the last layer computes."""
    kind = streams_of(work.objective)
    num_keys = work.seq_length + (work.num_predicted if kind.has_mask_rows else 0)
    query = work.num_predicted if kind.has_query_stream else 0
    return num_keys + query, num_keys, query or num_keys


def _mask_bytes(work: Work, probability: float) -> int:
    """Bytes of a dropout mask per number; on a CPU the mask has the numbers' own type."""
    return 0 if probability == 0 else 1 if work.setting.on_gpu else work.setting.bytes_per_number


def _layer_input(work: Work) -> int:
    return work.micro_batch_size * _count_rows_and_keys(work)[0] * work.config.hidden_size * work.setting.bytes_per_number


def _embeddings(work: Work) -> int:
    """Sum of the tables (for LayerNorm), dropout mask, ids and positions (int64)."""
    config, num_rows = work.config, work.micro_batch_size * _count_rows_and_keys(work)[0]
    width = work.setting.bytes_per_number + _mask_bytes(work, config.hidden_dropout_prob)
    return num_rows * config.hidden_size * width + num_rows * 2 * 8


def _bias(work: Work) -> int:
    """The bias [B, H, R, K] that all layers share, and what its gradient is summed by.

    That is the buckets and the mask (int64 and bool [B, R, K]), on a CPU both in a byte. There a layer only adds the
    bias to its scores: none keeps it, unless it is to be recomputed.
    """
    num_rows, num_keys, _ = _count_rows_and_keys(work)
    is_kept = work.setting.on_gpu or work.setting.checkpointed_layers
    heads = work.config.num_attention_heads if is_kept else 0
    width = heads * work.setting.bytes_per_number + (8 + 1 if work.setting.on_gpu else 1)
    return work.micro_batch_size * num_rows * num_keys * width


def _layer(work: Work, is_last: bool = False) -> int:
    """One block: what attention and the inner network keep."""
    config, e = work.config, work.setting.bytes_per_number
    all_rows, num_keys, last_rows = _count_rows_and_keys(work)
    num_rows = last_rows if is_last else all_rows
    hidden_mask = _mask_bytes(work, config.hidden_dropout_prob)
    # Input; attended, residual sum, its LayerNorm, second residual sum; query, key and value. Where one product makes these
    # three, it keeps its matrix; else they have keys of the content rows only, and copies of the rows that they are made of.
    wide, matrix = all_rows + 4 * num_rows, 0
    if num_rows == all_rows:
        wide, matrix = wide + 3 * all_rows, 3 * config.hidden_size**2
    else:
        wide += 2 * num_rows + 2 * num_keys + (num_keys if all_rows != num_keys else 0)
    numbers = wide * config.hidden_size + 2 * num_rows * config.intermediate_size
    masks = 2 * num_rows * config.hidden_size * hidden_mask
    return work.micro_batch_size * (numbers * e + masks + _scores(work, num_rows, num_keys)) + matrix * e


def _scores(work: Work, num_rows: int, num_keys: int) -> int:
    """What attention keeps of its probabilities, for one sequence."""
    config, e = work.config, work.setting.bytes_per_number
    if work.setting.on_gpu:
        # The kernel keeps no probabilities, but a copy of the bias if its rows are not a multiple of 16 bytes.
        padded = -(-num_keys * e // 16) * 16
        return config.num_attention_heads * num_rows * padded if padded != num_keys * e else 0
    return config.num_attention_heads * num_rows * num_keys * e


def _head(work: Work) -> int:
    """Hidden rows, their dense map, gelu, and the gradients that are computed with the loss."""
    targets = work.micro_batch_size * work.num_predicted
    return targets * 4 * work.config.hidden_size * work.setting.bytes_per_number + _table_gradient(work)


def _table_gradient(work: Work) -> int:
    """Gradients of the token table and the vocabulary's biases, which wait for the embeddings' until backward ends."""
    return work.config.vocab_size * (work.config.hidden_size + 1) * work.setting.bytes_per_number


def _logits(work: Work) -> int:
    """A chunk of logits, which a kernel replaces by their gradients; on a CPU 16-bit logits are scored in fp32."""
    numbers, e = work.micro_batch_size * work.num_predicted * work.config.vocab_size, work.setting.bytes_per_number
    if work.setting.on_gpu:
        return min(LOGITS_AT_ONCE_IN_A_KERNEL, numbers) * e
    return min(LOGITS_AT_ONCE, numbers) * (4 if e == 4 else 6)


def _gradients_in_a_layer(work: Work) -> int:
    """Gradients of the shared bias, summed over layers, and of the scores (or the inner width) of one layer."""
    num_rows, num_keys, _ = _count_rows_and_keys(work)
    config, e = work.config, work.setting.bytes_per_number
    bias = config.num_attention_heads * num_rows * num_keys * e
    inner = 2 * num_rows * config.intermediate_size * e
    return work.micro_batch_size * (bias + max(bias if work.setting.on_gpu else 2 * bias, inner))
