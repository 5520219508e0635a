"""How much memory a run takes on each device, from shapes alone, before a model is built.

With N parameters, W ranks and e bytes a number (4 in fp32, 2 in bf16 and fp16), each rank holds, in bytes:

    ZeRO   parameters           gradients      optimizer states
    0      e N                  e N            8 N in fp32; 12 N in bf16 and fp16
    1      e N                  e N + bucket   12 N / W
    2      e N                  e N/W + bucket 12 N / W
    3      e N/W + gathered     e N/W + bucket 12 N / W

8 are Adam's two moments in fp32; 4 more are the parameters in fp32, which ZeRO keeps even where it computes in fp32. Muon
has one momentum: 4 less for each number of a hidden matrix. *Gathered* are parameters that a stage-3 rank holds whole for
a while, at most ``stage3_max_live_parameters`` of them; the *bucket* is the buffer in which gradients are sent, of
``reduce_bucket_size`` numbers. The fp32 copy of the gradients that an update makes needs less than the activations, which
are gone by then.

Activations are the tensors that autograd keeps from forward to backward, counted for the shapes of
``model/two_stream.py``, and what is needed beside them at the worst moment: for a stretch of logits, or in backward of a
layer.

Shape legend: B rows of a micro batch, p predicted slots, R rows of the network, K keys, H heads, d width, f inner width,
V vocabulary.
"""

from dataclasses import dataclass, fields

from transformers import MPNetConfig

from mpnet_ds.models.layers.cross_entropy import LOGITS_AT_ONCE
from mpnet_ds.models.mpnet.sizes import hidden_matrix_numbers, parameter_count
from mpnet_ds.models.mpnet.streams import streams_of

BUCKET, MAX_LIVE = int(5e8), int(1e9)  # DeepSpeed's defaults, numbers


@dataclass(frozen=True)
class Workload:
    """What the memory of a rank depends on."""

    model_config: MPNetConfig
    objective: str
    seq_length: int
    num_predicted: int
    """Slots of a row."""
    micro_batch_size: int
    precision: str = "fp32"
    zero_stage: int = 0
    world_size: int = 1
    parameters_on_host: bool = False
    """``offload_param``."""
    optimizer_on_host: bool = False
    """``offload_optimizer``."""
    checkpointed_layers: int = 0
    """Layers that are computed again in backward."""
    checkpoints_on_host: bool = False
    """``cpu_checkpointing``: the inputs of those layers lie in the host's memory."""
    reduce_bucket_size: int = BUCKET
    max_live_parameters: int = MAX_LIVE
    uses_muon: bool = False
    """At ZeRO 0."""
    on_gpu: bool = True
    """Decides how attention is computed, and what a dropout mask takes."""

    @property
    def bytes_per_number(self) -> int:
        """e: 4 or 2."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank on its device, and what it keeps in the host's memory instead."""

    parameters: int
    gradients: int
    optimizer_states: int
    activations: int
    host: int = 0

    @property
    def states(self) -> int:
        """What is there whatever the batch: parameters, gradients, optimizer states."""
        return self.parameters + self.gradients + self.optimizer_states

    @property
    def total(self) -> int:
        """On the device."""
        return self.states + self.activations

    def joined(self) -> "MemoryEstimate":
        """Where the device is the host: what was offloaded lies in the same memory."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return MemoryEstimate(**values | {"optimizer_states": self.optimizer_states + self.host, "host": 0})


def estimate(work: Workload) -> MemoryEstimate:
    """The memory of one rank; see the top of the file."""
    parameters, gradients, states = _states(work)
    activations = activation_bytes(work)
    host = 0
    if work.parameters_on_host and work.zero_stage == 3:
        host += work.bytes_per_number * _share(work)
        parameters -= work.bytes_per_number * _share(work)
    if work.optimizer_on_host and work.zero_stage:
        # DeepSpeed keeps gradients in fp32 beside the states, where the update is computed.
        host += states + 4 * _share(work)
        states = 0
    if work.checkpoints_on_host:
        host += work.checkpointed_layers * _layer_input(work)
    return MemoryEstimate(parameters, gradients, states, activations, host)


def checkpoint_bytes(work: Workload, ranks: int | None = None) -> int:
    """Size of a checkpoint on a disk that so many ranks share; None: all ranks' files together.

    The module's weights in e bytes (at stage 3 they are left to the fp32 copy) and the optimizer's states: 12 bytes a
    parameter, 8 where nothing keeps a copy of the parameters (stage 0 in fp32).
    """
    count = parameter_count(work.model_config)
    weights = 0 if work.zero_stage == 3 else work.bytes_per_number * count
    if work.zero_stage == 0:
        return weights + _states_of_stage_0(work)
    return weights + 12 * count * (ranks or work.world_size) // work.world_size


def _share(work: Workload) -> int:
    """N / W, rounded up."""
    return -(-parameter_count(work.model_config) // work.world_size)


def _states(work: Workload) -> tuple[int, int, int]:
    """Parameters, gradients and optimizer states, nothing offloaded."""
    e, count, share = work.bytes_per_number, parameter_count(work.model_config), _share(work)
    if work.zero_stage == 0:
        return e * count, e * count, _states_of_stage_0(work)
    # On a GPU the whole bucket is taken; on a processor only what is written to.
    bucket = e * (work.reduce_bucket_size if work.on_gpu else min(work.reduce_bucket_size, count))
    if work.world_size == 1 and not work.on_gpu:
        bucket = 0
    if work.zero_stage == 3:
        gathered = e * min(count, work.max_live_parameters) if work.world_size > 1 or work.parameters_on_host else 0
        return e * share + gathered, e * share + bucket, 12 * share
    return e * count, e * (count if work.zero_stage == 1 else share) + bucket, 12 * share


def _states_of_stage_0(work: Workload) -> int:
    """What optimizer and fp32 copy take where nothing is divided."""
    states = parameter_count(work.model_config) * (8 if work.precision == "fp32" else 12)
    return states - (4 * hidden_matrix_numbers(work.model_config) if work.uses_muon else 0)


# Activations


def activation_bytes(work: Workload) -> int:
    """At the worst moment of forward or backward, on the device."""
    saved, layers = saved_bytes(work), work.model_config.num_hidden_layers
    with_logits = saved + _logits(work)
    in_a_layer = saved - _head(work) + _table_gradient(work) + _gradients_in_a_layer(work)
    if work.checkpointed_layers:
        in_a_layer += _layer(work, is_last=layers == 1)
    on_host = work.checkpointed_layers * _layer_input(work) if work.checkpoints_on_host else 0
    return max(with_logits, in_a_layer) - on_host


def saved_bytes(work: Workload) -> int:
    """Of all tensors that autograd keeps from forward to backward, parameters apart."""
    layers = work.model_config.num_hidden_layers
    # Which layers are computed again hardly matters, but the last one is much smaller than the others.
    kept_whole = max(0, layers - work.checkpointed_layers - 1)
    last = _layer(work, is_last=True) if work.checkpointed_layers < layers else 0
    inputs = work.checkpointed_layers * _layer_input(work)
    return _embeddings(work) + _bias(work) + kept_whole * _layer(work) + last + inputs + _head(work)


def _rows_and_keys(work: Workload) -> tuple[int, int, int]:
    """R, K, and the rows that the last layer computes."""
    kind = streams_of(work.objective)
    keys = work.seq_length + (work.num_predicted if kind.has_mask_rows else 0)
    query = work.num_predicted if kind.has_query_stream else 0
    return keys + query, keys, query or keys


def _mask_bytes(work: Workload, probability: float) -> int:
    """Bytes of a dropout mask for each number: on a processor it is of the numbers' own type."""
    return 0 if probability == 0 else 1 if work.on_gpu else work.bytes_per_number


def _layer_input(work: Workload) -> int:
    return work.micro_batch_size * _rows_and_keys(work)[0] * work.model_config.hidden_size * work.bytes_per_number


def _embeddings(work: Workload) -> int:
    """Sum of the tables (for LayerNorm), dropout mask, ids and positions (int64)."""
    config, rows = work.model_config, work.micro_batch_size * _rows_and_keys(work)[0]
    width = work.bytes_per_number + _mask_bytes(work, config.hidden_dropout_prob)
    return rows * config.hidden_size * width + rows * 2 * 8


def _bias(work: Workload) -> int:
    """The bias [B, H, R, K] that all layers share, and what its gradient is summed by.

    That is the buckets and the mask (int64 and bool [B, R, K]), on a processor both in a byte. There a layer only adds the
    bias to its scores: none keeps it, unless it is to be computed again.
    """
    rows, keys, _ = _rows_and_keys(work)
    is_kept = work.on_gpu or work.checkpointed_layers
    heads = work.model_config.num_attention_heads if is_kept else 0
    return work.micro_batch_size * rows * keys * (heads * work.bytes_per_number + (8 + 1 if work.on_gpu else 1))


def _layer(work: Workload, is_last: bool = False) -> int:
    """One block: what attention and the inner network keep."""
    config, e = work.model_config, work.bytes_per_number
    all_rows, keys, last_rows = _rows_and_keys(work)
    rows = last_rows if is_last else all_rows
    hidden_mask = _mask_bytes(work, config.hidden_dropout_prob)
    # Input; query, attended, residual sum, its LayerNorm, second residual sum; key and value, and the content rows that
    # they are computed from, which are copied where they are not all rows.
    content_copies = keys if all_rows != keys else 0
    row_copy = rows if rows != all_rows else 0
    wide = all_rows + 5 * rows + 2 * keys + content_copies + row_copy
    numbers = wide * config.hidden_size + 2 * rows * config.intermediate_size
    masks = 2 * rows * config.hidden_size * hidden_mask
    return work.micro_batch_size * (numbers * e + masks + _scores(work, rows, keys))


def _scores(work: Workload, rows: int, keys: int) -> int:
    """What attention keeps of its probabilities, for one row of the batch."""
    config, e = work.model_config, work.bytes_per_number
    if work.on_gpu:
        # The kernel keeps no probabilities, but a copy of the bias if its rows are not a multiple of 16 bytes.
        padded = -(-keys * e // 16) * 16
        return config.num_attention_heads * rows * padded if padded != keys * e else 0
    return config.num_attention_heads * rows * keys * e


def _head(work: Workload) -> int:
    """Hidden rows, their dense map, gelu, and the gradients that are computed with the loss."""
    slots = work.micro_batch_size * work.num_predicted
    return slots * 4 * work.model_config.hidden_size * work.bytes_per_number + _table_gradient(work)


def _table_gradient(work: Workload) -> int:
    """Of the token table and the vocabulary's biases; it waits for that of the embeddings until the end of backward."""
    return work.model_config.vocab_size * (work.model_config.hidden_size + 1) * work.bytes_per_number


def _logits(work: Workload) -> int:
    """A stretch of logits, and their gradients, where they are computed in 16 bits and scored in fp32."""
    numbers = min(LOGITS_AT_ONCE, work.micro_batch_size * work.num_predicted * work.model_config.vocab_size)
    return numbers * (4 if work.bytes_per_number == 4 else 6)


def _gradients_in_a_layer(work: Workload) -> int:
    """Gradients of the shared bias, summed over layers, and of the scores (or the inner width) of one layer."""
    rows, keys, _ = _rows_and_keys(work)
    config, e = work.model_config, work.bytes_per_number
    bias = config.num_attention_heads * rows * keys * e
    inner = 2 * rows * config.intermediate_size * e
    return work.micro_batch_size * (bias + max(bias if work.on_gpu else 2 * bias, inner))
