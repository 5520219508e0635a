"""MPNet with two streams, in natural order: tokens stay where they are, and one pass per layer serves both streams.

A layer's rows are the content rows (n tokens and, for ``mpnet``, p mask rows) followed by p query rows; keys and values
come from the content rows only. All weights are shared by the streams. The last layer computes the query rows alone,
since nobody reads its content rows.

Parameters have the names of ``transformers.MPNetForMaskedLM``, so that export and import are copies; ``encode`` computes
what ``transformers.MPNetModel`` does.

Dropout happens at the embeddings and at three places of each layer, with a seed for each place and sequence
(layers/dropout_seeds.py).

Shape legend: B sequences, n tokens, p predicted tokens, R rows of the network, K keys, H heads, d width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpnet_ds.attention_backends import check_backend
from mpnet_ds.errors import UserError
from mpnet_ds.models.attention.backend import Backend, choose_backend
from mpnet_ds.models.initial_values import near_bias
from mpnet_ds.models.layers.cross_entropy import Decoder
from mpnet_ds.models.layers.dropout import Dropout
from mpnet_ds.models.layers.dropout_seeds import drawn_seeds, dropout_seeds
from mpnet_ds.models.layers.gelu import GeluLinear
from mpnet_ds.models.layers.projections import project
from mpnet_ds.models.layers.residual_norm import ResidualNorm
from mpnet_ds.models.module import Part, PretrainingModule, Scores
from mpnet_ds.models.mpnet.relative_position import NUM_BUCKETS, middle_of_buckets
from mpnet_ds.models.mpnet.sizes import NetworkSizes
from mpnet_ds.models.mpnet.streams import streams_of
from mpnet_ds.models.mpnet.visibility import Layout, plain_layout, two_stream_layout
from mpnet_ds.models.targets import corrupt, count_masked, labels_at, rows_at
from mpnet_ds.tokenizer import PAD_ID

if TYPE_CHECKING:
    from transformers import MPNetConfig

FIRST_POSITION = PAD_ID + 1  # row of the position table of the first token
PLACES = 3
"""Where a layer drops: attention's probabilities, what attention adds, what the inner network adds."""


@dataclass
class PretrainingOutput(Scores):
    """Scores of the only term, and what callers of the model alone want to see."""

    loss: Tensor | None = None
    """Mean cross-entropy of the predicted tokens, nats, fp32, scalar."""
    logits: Tensor | None = None
    """[B, p, V]; those of unused entries mean nothing. None unless ``keep_logits``."""
    num_targets: Tensor | None = None
    """Predicted tokens, int64 scalar."""
    num_correct: Tensor | None = None
    """Predicted tokens whose highest logit is the true token's, int64 scalar."""


class Embeddings(nn.Module):
    """Token plus position, normalised; the table of positions has two rows more than there are positions."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=PAD_ID)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=PAD_ID)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor, seeds: Tensor | None) -> Tensor:
        """[B, R, d] from ids [B, R] and positions in the text [B, R], counted from 0; seeds of dropout [B]."""
        embedded = self.word_embeddings(ids) + self.position_embeddings(positions + FIRST_POSITION)
        return self.dropout(self.LayerNorm(embedded), seeds)


class SelfAttention(nn.Module):
    """Rows attend to the content rows; one set of weights for both streams."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.num_heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.q, self.k, self.v, self.o = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4))

    def forward(
        self, hidden: Tensor, backend: Backend, num_content: int, first_row: int, seeds: Tensor | None, *prepared: Tensor
    ) -> Tensor:
        """What ``o`` maps, [B, rows, d]: values seen by the rows of hidden [B, R, d] from ``first_row`` on.

        The first ``num_content`` rows are seen. Keys of dropout are [B], or None where nothing is dropped.
        """
        if first_row == 0:
            projected = project(hidden, num_content, self.q, self.k, self.v)
        else:
            content = hidden[:, :num_content]
            projected = self.q(hidden[:, first_row:]), self.k(content), self.v(content)
        query, key, value = map(self._split, projected)
        dropout = self.dropout if self.training else 0.0
        attended = backend.attend(query, key, value, dropout, seeds, first_row, *prepared)
        return attended.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, H, rows, D)


class Attention(nn.Module):
    """Attention with its residual connection and LayerNorm."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.attn = SelfAttention(config)
        self.LayerNorm = ResidualNorm(config.hidden_size, config.layer_norm_eps, config.hidden_dropout_prob)

    def forward(
        self, hidden: Tensor, backend: Backend, num_content: int, first_row: int, seeds: Tensor | None, *prepared: Tensor
    ) -> Tensor:
        """[B, rows, d]; seeds of dropout are [2, B], other arguments as in ``SelfAttention.forward``."""
        of_probabilities, of_attended = (None, None) if seeds is None else seeds
        attended = self.attn(hidden, backend, num_content, first_row, of_probabilities, *prepared)
        return self.LayerNorm(self.attn.o, attended, hidden[:, first_row:], of_attended)


class Intermediate(nn.Module):
    """The way to the inner width, under the name ``dense``, as ``transformers`` nests it."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.dense = GeluLinear(config.hidden_size, config.intermediate_size)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, R, intermediate_size] from rows [B, R, d]."""
        return self.dense(rows)


class Output(nn.Module):
    """The way back from the inner width, with residual connection and LayerNorm."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = ResidualNorm(config.hidden_size, config.layer_norm_eps, config.hidden_dropout_prob)

    def forward(self, inner: Tensor, residual: Tensor, seeds: Tensor | None) -> Tensor:
        """[B, R, d] from inner [B, R, intermediate_size] and residual [B, R, d]; seeds of dropout [B]."""
        return self.LayerNorm(self.dense, inner, residual, seeds)


class Layer(nn.Module):
    """One post-LN block."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config)

    def forward(
        self, hidden: Tensor, backend: Backend, num_content: int, first_row: int, seeds: Tensor | None, *prepared: Tensor
    ) -> Tensor:
        """Compute the new values of the rows from ``first_row`` on.

        Args:
            hidden: [B, R, d], the content rows first.
            backend: computes attention.
            num_content: K, rows that are keys and values.
            first_row: 0, or the first query row.
            seeds: of dropout, int64 [PLACES, B]; None where nothing is dropped.
            prepared: by the back-end, for this batch.
        """
        of_attention, of_output = (None, None) if seeds is None else (seeds[:2], seeds[2])
        rows = self.attention(hidden, backend, num_content, first_row, of_attention, *prepared)
        return self.output(self.intermediate(rows), rows, of_output)


class Encoder(nn.Module):
    """All layers, and the table of relative positions that they share."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.relative_attention_bias = nn.Embedding(NUM_BUCKETS, config.num_attention_heads)


class MPNet(nn.Module):
    """Embeddings and encoder: ``transformers.MPNetModel`` without its pooler."""

    def __init__(self, config: "MPNetConfig"):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)


class LMHead(nn.Module):
    """``LN(gelu(W x))`` times the token table, plus a bias."""

    def __init__(self, config: "MPNetConfig", token_table: nn.Parameter):
        super().__init__()
        self.dense = GeluLinear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = Decoder(config.hidden_size, config.vocab_size, device="meta")  # tied below: no memory of its own
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder.weight, self.decoder.bias = token_table, self.bias

    def forward(
        self, hidden: Tensor, labels: Tensor | None = None, keep_logits: bool = True
    ) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits [..., V] of hidden [..., d].

        With labels int64 [...]: ``linear_cross_entropy``'s sum, losses and hits [...], and the logits (None if not wanted).
        """
        hidden = self.layer_norm(self.dense(hidden))
        if labels is None:
            return self.decoder(hidden)
        return *self.decoder(hidden, labels), self.decoder(hidden) if keep_logits else None


class MPNetForPretraining(PretrainingModule):
    """The encoder with its head and one of the pre-training objectives.

    Args:
        config: of transformers, or the sizes alone. 514 positions and eps 1e-5 are those of the published model;
            ``MPNetConfig()`` says otherwise.
        objective: ``mpnet``, ``plm`` or ``mlm`` (see ``streams.py``).
        attention: ``auto``, or a back-end by name (see ``attention/backend.py``).
    Raises:
        UserError: a configuration that ``transformers`` could not represent after export, or unknown names.
    """

    keep_logits = True
    """Whether outputs hold logits; without them the loss needs no memory for them (see cross_entropy.py)."""
    mask_id: int | None = None
    """Id of ``<mask>``; with it outputs count the targets that are read as ``<mask>`` apart."""

    def __init__(self, config: "MPNetConfig | NetworkSizes", objective: str = "mpnet", attention: str = "auto"):
        super().__init__()
        check_config(config)
        self.sizes, self.streams = config, streams_of(objective)
        self.attention = check_backend(attention)
        self.mpnet = MPNet(config)
        self.lm_head = LMHead(config, self.mpnet.embeddings.word_embeddings.weight)
        self.apply(self._initialise)
        self.register_load_state_dict_pre_hook(_fill_tied_weights)

    @property
    def config(self) -> "MPNetConfig":
        """The configuration of transformers."""
        return self.sizes.config() if isinstance(self.sizes, NetworkSizes) else self.sizes

    def forward(
        self,
        input_ids: Tensor,
        predicted_positions: Tensor,
        predicted_inputs: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        sequence_numbers: Tensor | None = None,
        step: Tensor | None = None,
        carried: tuple[Tensor, ...] | None = None,
    ) -> PretrainingOutput:
        """Compute the losses of one batch.

        Args:
            input_ids: int64 [B, n], the true tokens in order.
            predicted_positions: int64 [B, p], ``z_1 … z_p``; -1 in unused entries.
            predicted_inputs: int64 [B, p], what is read instead of each of them.
            attention_mask: bool [B, n], False on padding; all True by default.
            document_ids: int64 [B, n], 0, 1, 2 … along each sequence: attention and positions do not leave a document. By
                default a sequence is one text.
            sequence_numbers, step: as every module gets them; what dropout drops follows from them.
            carried: as every module gets it; not used here.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        attention_mask = attention_mask.bool()
        run_streams = self._two_streams if self.streams.has_query_stream else self._one_stream
        seeds = self._dropout_seeds(input_ids, sequence_numbers, step)
        hidden = run_streams(input_ids, predicted_positions, predicted_inputs, attention_mask, document_ids, seeds)
        labels = labels_at(input_ids, predicted_positions)
        total, losses, hits, logits = self.lm_head(hidden, labels, self.keep_logits)
        num_correct, num_targets = hits.sum(), (labels >= 0).sum()
        return PretrainingOutput(
            sums=total[None],
            correct=num_correct[None],
            counts=count_masked(labels, predicted_inputs, losses, hits, self.mask_id),
            loss=total / num_targets.clamp(min=1),
            logits=logits,
            num_targets=num_targets,
            num_correct=num_correct,
        )

    def parts(self) -> dict[str, Part]:
        """The only part: ``MPNetForMaskedLM``, whose names the parameters have."""
        from transformers import MPNetForMaskedLM  # here, so that training does not wait for it

        return {"": Part("", MPNetForMaskedLM, self.config)}

    def reference_outputs(self, name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute hidden states and logits of the plain encoder."""
        hidden = self.encode(**batch)
        return {"hidden_states": hidden, "logits": self.lm_head(hidden)}

    def layers(self) -> list[nn.Module]:
        """The encoder's layers."""
        return list(self.mpnet.encoder.layer)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, document_ids: Tensor | None = None) -> Tensor:
        """Compute the last hidden state [B, n, d] of the plain encoder, as ``transformers.MPNetModel`` does after export.

        Padding must be on the right.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        layout = plain_layout(attention_mask.bool(), document_ids)
        return self._run_layers(input_ids, layout, self._dropout_seeds(input_ids))

    def _dropout_seeds(self, ids: Tensor, numbers: Tensor | None = None, step: Tensor | None = None) -> Tensor | None:
        """Seeds of the embeddings and of each layer, int64 [1 + layers, PLACES, B]; None in evaluation."""
        if not self.training:
            return None
        shape = 1 + len(self.layers()), PLACES
        if numbers is None or step is None:
            return drawn_seeds(math.prod(shape), len(ids), ids.device).unflatten(0, shape)
        return dropout_seeds(self.dropout_seed, step, numbers, math.prod(shape)).unflatten(0, shape)

    def _two_streams(self, input_ids, predicted_positions, predicted_inputs, attention_mask, document_ids, seeds) -> Tensor:
        """Compute the query rows after the last layer, [B, p, d]."""
        has_mask_rows = self.streams.has_mask_rows
        layout = two_stream_layout(predicted_positions, attention_mask, has_mask_rows, document_ids)
        ids = torch.cat([input_ids, *([predicted_inputs] * (2 if has_mask_rows else 1))], dim=1)
        return self._run_layers(ids, layout, seeds, first_row_of_last_layer=layout.key_indices.shape[1])

    def _one_stream(self, input_ids, predicted_positions, predicted_inputs, attention_mask, document_ids, seeds) -> Tensor:
        """Compute the rows at the predicted positions after the last layer, [B, p, d]."""
        corrupted = corrupt(input_ids, predicted_positions, predicted_inputs)
        hidden = self._run_layers(corrupted, plain_layout(attention_mask, document_ids), seeds)
        return rows_at(hidden, predicted_positions)

    def _run_layers(self, ids: Tensor, layout: Layout, seeds: Tensor | None, first_row_of_last_layer: int = 0) -> Tensor:
        layers = self.mpnet.encoder.layer
        of_embeddings, *of_layers = [None] * (1 + len(layers)) if seeds is None else seeds
        hidden = self.mpnet.embeddings(ids, layout.row_positions, None if seeds is None else of_embeddings[0])
        backend = choose_backend(self.attention, ids.device)
        prepared = backend.prepare(self.mpnet.encoder.relative_attention_bias, layout)
        num_content = layout.key_indices.shape[1]
        for number, (layer, of_layer) in enumerate(zip(layers, of_layers, strict=True), 1):
            first_row = first_row_of_last_layer if number == len(layers) else 0
            hidden = layer(hidden, backend, num_content, first_row, of_layer, *prepared)
        return hidden

    @torch.no_grad()
    def begin_near(self, strength: float) -> None:
        """Let each head begin with what is near (see initial_values.py): only the table of relative positions changes."""
        table = self.mpnet.encoder.relative_attention_bias.weight
        table += near_bias(*middle_of_buckets(), table.shape[1], strength).to(table)

    @torch.no_grad()
    def _initialise(self, module: nn.Module) -> None:
        """Draw every matrix from N(0, initializer_range); zero the biases and padding rows."""
        if module is self.lm_head.decoder:
            return  # its weight is the token table
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, self.sizes.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def check_config(config: "MPNetConfig") -> None:
    """Raise ``UserError`` for what ``transformers`` could not represent after export, or what cannot be built."""
    if faults := find_faults(config):
        raise UserError(*faults)


def find_faults(config: "MPNetConfig") -> list[str]:
    """Describe the settings of a configuration that ``check_config`` refuses."""
    faults = []
    if config.relative_attention_num_buckets != NUM_BUCKETS:
        found = config.relative_attention_num_buckets
        faults.append(f"relative_attention_num_buckets is {found}; transformers always computes MPNet with {NUM_BUCKETS}.")
    if config.hidden_act != "gelu":
        faults.append(f"hidden_act is '{config.hidden_act}'; MPNet's head always uses (erf) 'gelu', so the layers must too.")
    return faults + find_undivided_heads(config)


def find_undivided_heads(config: "MPNetConfig") -> list[str]:
    """Say whether the attention heads do not divide the width of the hidden states."""
    size, heads = config.hidden_size, config.num_attention_heads
    return [f"hidden_size {size} is not a multiple of num_attention_heads {heads}."] if size % heads else []


def _fill_tied_weights(module: MPNetForPretraining, state_dict: dict, prefix: str, *_) -> None:
    """Let ``load_state_dict`` take files without the tied copies, as safetensors files are."""
    for copy, source in TIED_WEIGHTS.items():
        if prefix + source in state_dict:
            state_dict.setdefault(prefix + copy, state_dict[prefix + source])


TIED_WEIGHTS = {
    "lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
"""Names under which a parameter appears a second time in a state dict, as in ``transformers``."""
VOCABULARY_TABLES = tuple(TIED_WEIGHTS.values())
"""Weights with one row for each piece of the vocabulary."""
MODEL_KEYS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "initializer_range", "layer_norm_eps",
    "relative_attention_num_buckets", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings",
)  # fmt: skip
"""Keys of a config.json that say which model it is, rather than which head, file or version."""
