"""How large a model is and how much arithmetic a sequence costs, from shapes alone.

A matrix product of [a, b] by [b, c] counts 2 a b c floating-point operations. Backward costs twice the forward.
Counted is what this implementation executes: the last layer computes its query rows only, and only the rows of
the p predicted tokens meet the vocabulary. Softmax, LayerNorm, gelu and embeddings are left out, as is usual.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mpnet_ds.models.module import ComputeSetting, ModulePlan
from mpnet_ds.models.mpnet.activations import Work, activation_bytes, host_bytes
from mpnet_ds.models.mpnet.relative_position import NUM_BUCKETS
from mpnet_ds.models.mpnet.streams import streams_of
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PAD_ID

if TYPE_CHECKING:
    from transformers import MPNetConfig


@dataclass(frozen=True)
class NetworkSizes:
    """What the network reads of transformers' ``MPNetConfig``, by the same names: that one takes a second to load."""

    vocab_size: int
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float
    max_position_embeddings: int
    layer_norm_eps: float
    hidden_act: str = "gelu"
    relative_attention_num_buckets: int = NUM_BUCKETS

    def config(self) -> "MPNetConfig":
        """Convert the sizes to transformers' configuration."""
        from transformers import MPNetConfig

        return MPNetConfig(**asdict(self), bos_token_id=BOS_ID, pad_token_id=PAD_ID, eos_token_id=EOS_ID)


def parameter_count(config: "NetworkSizes | MPNetConfig") -> int:
    """Count the trainable numbers, tied ones once: 109,518,527 for MPNet-base with its vocabulary of 30,527."""
    d, inner = config.hidden_size, config.intermediate_size
    layer_norm = 2 * d
    layer = 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 2 * layer_norm
    tables = (config.vocab_size + config.max_position_embeddings) * d
    bias_table = config.relative_attention_num_buckets * config.num_attention_heads
    head = d * d + d + layer_norm + config.vocab_size
    return tables + layer_norm + bias_table + config.num_hidden_layers * layer + head


def hidden_matrix_numbers(config: "NetworkSizes | MPNetConfig") -> int:
    """Count the weights of all linear maps except the projection to the vocabulary: 85,524,480 for MPNet-base."""
    d, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (4 * d * d + 2 * d * inner) + d * d


def flops_per_sequence(
    config: "NetworkSizes | MPNetConfig", seq_length: int, num_predicted: int, objective: str = "mpnet"
) -> int:
    """Count the operations of forward and backward for one sequence of ``seq_length`` tokens, p of them predicted.

    With n = ``seq_length``, L layers of width d and inner width f, a vocabulary of V, c content rows and q query rows:

        layer(r, c) = 4 d² (r + c)      q and o of r rows, k and v of c
                    + 4 r c d           scores, and their product with the values
                    + 4 r d f           feed-forward
        head        = 2 p d (d + V)
        result      = 3 ((L - 1) layer(c + q, c) + layer(l, c) + head)

    ``mpnet``: c = n + p, q = p, and the last layer has l = p rows; ``plm``: c = n, q = l = p; ``mlm``: c = l = n, q = 0.
    The 3 is forward, and twice as much in backward. Layers that are recomputed in backward count once, keys and values of
    query rows, which nobody sees (projections.py), not at all.
    """
    kind = streams_of(objective)
    content = seq_length + (num_predicted if kind.has_mask_rows else 0)
    query = num_predicted if kind.has_query_stream else 0
    last_layer_rows = query or content
    layers = config.num_hidden_layers
    forward = (layers - 1) * _layer_flops(config, content + query, content) + _layer_flops(config, last_layer_rows, content)
    head = 2 * num_predicted * config.hidden_size * (config.hidden_size + config.vocab_size)
    return 3 * (forward + head)


def _layer_flops(config: "NetworkSizes | MPNetConfig", num_rows: int, num_keys: int) -> int:
    d = config.hidden_size
    projections = 2 * (num_rows * 2 * d * d + num_keys * 2 * d * d)  # q and o of the rows, k and v of the keys
    attention = 2 * (2 * num_rows * num_keys * d)
    feed_forward = 2 * (2 * num_rows * d * config.intermediate_size)
    return projections + attention + feed_forward


def plan_of(
    config: "NetworkSizes | MPNetConfig",
    objective: str,
    seq_length: int,
    num_predicted: int,
    micro_batch_size: int,
    setting: ComputeSetting | None = None,
) -> ModulePlan:
    """Compute all sizes of a model and of the micro-batches that it is trained on."""
    setting = setting or ComputeSetting()
    setting = setting._replace(checkpointed_layers=min(setting.checkpointed_layers, config.num_hidden_layers))
    work = Work(config, objective, seq_length, num_predicted, micro_batch_size, setting)
    return ModulePlan(
        parameters=parameter_count(config),
        hidden_numbers=hidden_matrix_numbers(config),
        flops_per_sequence=flops_per_sequence(config, seq_length, num_predicted, objective),
        activation_bytes=activation_bytes(work),
        host_bytes=host_bytes(work),
    )
