"""Masked and causal language modelling of any family of transformers.

The hidden states come from the family's own modules; only the rows of targets pass the head, and the map to the vocabulary
and the cross-entropy are one (layers/cross_entropy.py). What differs between families is in the table of families.py.

Documents are kept apart by additive masks [B, 1, n, n] and positions that begin anew: a mask of another type or shape is
accepted by some families, and leaks. Without documents a mask [B, 1, 1, n] hides padding; no mask at all lets SDPA choose
its fastest way. Padding is on the right, so what is causal never sees it.

Shapes: B sequences, n tokens, p predicted tokens, d width, V vocabulary.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_fake_tensor

from mpnet_ds.counter_rng import make_key
from mpnet_ds.errors import UserError
from mpnet_ds.models.documents import causal_tokens, positions_in_documents, visible_tokens
from mpnet_ds.models.families import Family
from mpnet_ds.models.initial_values import look_near_by_sinusoids
from mpnet_ds.models.layers.cross_entropy import Decoder, linear_cross_entropy
from mpnet_ds.models.module import Part, PretrainingModule, Scores
from mpnet_ds.models.targets import corrupt, count_masked, labels_at, rows_at

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTIONS = ("auto", "eager", "sdpa")
OFFSETS, CAUSAL_OFFSETS = (-1, 1, -3, 3), (-1, -2, -3, -4)
"""Neighbours at which heads begin to look, with ``model.start`` ``near``."""


class Inputs(NamedTuple):
    """What a model reads, and what each token may see; all [B, n] but ``language``."""

    ids: Tensor
    """int64."""
    attention_mask: Tensor | None = None
    """bool, False on padding, which is on the right; None: there is none."""
    document_ids: Tensor | None = None
    """int64, 0, 1, 2 … along each sequence; None: a sequence is one text."""
    language: Tensor | None = None
    """int64 [B]."""

    @property
    def real(self) -> Tensor:
        """bool: the mask, all True by default."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.attention_mask is None else self.attention_mask

    @property
    def positions(self) -> Tensor:
        """int64: from 0 in each sequence, or in each document."""
        documents = torch.zeros_like(self.ids) if self.document_ids is None else self.document_ids
        return positions_in_documents(documents)


class TransformersModule(PretrainingModule):
    """A model of transformers with its head, of which only the rows of targets are computed.

    Args:
        family: says where its parts are.
        config: from ``families.build_config``.
        attention: ``sdpa``, ``eager``, or ``auto``: the former where the family has it.
    """

    is_causal = False
    checkpoints_with_torch = True

    def __init__(self, family: Family, config: "PreTrainedConfig", attention: str = "auto"):
        super().__init__()
        model_class = getattr(transformers, family.class_name(self.is_causal))
        self.family, self.config = family, config
        config = copy.deepcopy(config)  # what the export says is left as it is
        config._attn_implementation, config.use_cache = attention_of(family, attention), False
        is_counted = is_fake_tensor(torch.empty(0))  # then values do not exist, and some draws would look at them
        with no_init_weights() if is_counted else nullcontext():
            self.model = model_class(config)
        if is_counted:
            self.model.tie_weights()
        (output,) = found_at(self.model, family.output)
        if isinstance(output, nn.Linear):
            output.__class__ = Decoder  # a linear map as before, that can be given labels
        if hasattr(self.layers()[0], "_init_attention_seed"):
            _seed_repeatably(self.layers())
        self.register_load_state_dict_pre_hook(_fill_tied_weights)

    def begin_near(self, strength: float) -> None:
        """Let each head begin by looking at a neighbour (see initial_values.py), if the weights have values."""
        body, near = self.model.base_model, self.family.near
        (positions,) = found_at(body, near.positions)
        if positions.weight.is_meta or is_fake_tensor(positions.weight):
            return
        words = [found_at(body, path)[0].weight for path in near.words]
        attention = [tuple(found_at(layer, path)[0].weight for path in (near.query, near.key)) for layer in self.layers()]
        offsets = CAUSAL_OFFSETS if self.is_causal else OFFSETS
        look_near_by_sinusoids(positions.weight, words, attention, self.config.num_attention_heads, strength, offsets)

    def parts(self) -> dict[str, Part]:
        """The only part: the family's class, whose names the parameters have."""
        return {"": Part("model.", type(self.model), self.config)}

    def layers(self) -> list[nn.Module]:
        """Return the family's blocks, in order."""
        lists = [found for path in self.family.layers for found in found_at(self.model.base_model, path)]
        return [layer for group in (zip(*lists, strict=True) if self.family.layers_alternate else lists) for layer in group]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of linear maps below the head.

        Those of a ``Conv1D`` are [in, out]. Muon's step does not depend on it: that of a transposed matrix is the step
        transposed.
        """
        body = self.model.base_model
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        maps = [module.weight for module in body.modules() if isinstance(module, nn.Linear | Conv1D)]
        return [weight for weight in maps if weight.requires_grad and id(weight) not in tables]

    def hidden_states(self, inputs: Inputs) -> Tensor:
        """Compute the last hidden states, [B, n, d]."""
        if inputs.document_ids is not None and (why := self.family.why_not_isolated(self.model.config)):
            raise UserError(f"{self.family.model_type} cannot keep documents apart: {why}.")
        return self.run_body(inputs)

    def run_body(self, inputs: Inputs) -> Tensor:
        """Compute the last hidden states, [B, n, d], as the family does."""
        return BODIES[self.family.body](self, inputs)

    def score(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``linear_cross_entropy`` of hidden [B, k, d] at labels int64 [B, k]; losses and hits are [B, k]."""
        for step in self.family.head:
            hidden = F.gelu(hidden) if step == "gelu" else self.model.get_submodule(step)(hidden)
        # Read outside their modules, which ZeRO 3 notices and gathers them.
        (output,), bias = found_at(self.model, self.family.output), None
        if isinstance(output, Decoder):
            return output(hidden, labels)
        if self.family.output_bias:
            (bias,) = found_at(self.model, self.family.output_bias)
        total, losses, hits = linear_cross_entropy(hidden.flatten(0, 1), output.weight, bias, labels.flatten())
        return total, losses.view_as(labels), hits.view_as(labels)

    def external_parameters(self) -> list[nn.Parameter]:
        """Return the table of tokens and the bias where no module maps to the vocabulary with them."""
        (output,) = found_at(self.model, self.family.output)
        return [] if isinstance(output, Decoder) else [output.weight, *found_at(self.model, self.family.output_bias)]


class MaskedLanguageModel(TransformersModule):
    """Predicts tokens from what is left of the sequence; ``mask_id`` tells targets that are read as ``<mask>`` apart."""

    def __init__(self, family: Family, config: "PreTrainedConfig", mask_id: int | None = None, attention: str = "auto"):
        super().__init__(family, config, attention)
        self.mask_id = mask_id

    def forward(
        self,
        *,
        input_ids: Tensor,
        predicted_positions: Tensor,
        predicted_inputs: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        language: Tensor | None = None,
        sequence_numbers: Tensor | None = None,
        step: Tensor | None = None,
        carried: tuple[Tensor, ...] | None = None,
    ) -> Scores:
        """Compute the losses of one batch.

        Args:
            input_ids: int64 [B, n], the true tokens.
            predicted_positions: int64 [B, p], in any order; -1 in unused entries.
            predicted_inputs: int64 [B, p], what is read instead of each of them.
            attention_mask: bool [B, n], False on padding; all True by default.
            document_ids: int64 [B, n], 0, 1, 2 … along each sequence: attention and positions do not leave a document. By
                default a sequence is one text.
            language: int64 [B], for XLM with several languages.
            sequence_numbers, step, carried: as every module gets them; not used.
        """
        ids = corrupt(input_ids, predicted_positions, predicted_inputs)
        hidden = rows_at(self.hidden_states(Inputs(ids, attention_mask, document_ids, language)), predicted_positions)
        labels = labels_at(input_ids, predicted_positions)
        total, losses, hits = self.score(hidden, labels)
        counts = count_masked(labels, predicted_inputs, losses, hits, self.mask_id)
        return Scores(sums=total[None], correct=hits.sum()[None], counts=counts)


class CausalLanguageModel(TransformersModule):
    """Predicts each token from those before it."""

    is_causal = True

    def forward(
        self,
        *,
        input_ids: Tensor,
        next_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        language: Tensor | None = None,
        sequence_numbers: Tensor | None = None,
        step: Tensor | None = None,
        carried: tuple[Tensor, ...] | None = None,
    ) -> Scores:
        """Compute the losses of one batch.

        Args:
            input_ids: int64 [B, n].
            next_ids: int64 [B, n], what follows each token; -1 where nothing is predicted.
            attention_mask, document_ids, language, sequence_numbers, step, carried: as in ``MaskedLanguageModel.forward``.
        """
        hidden = self.hidden_states(Inputs(input_ids, attention_mask, document_ids, language))
        total, _, hits = self.score(hidden, next_ids)
        return Scores(sums=total[None], correct=hits.sum()[None])


def attention_of(family: Family, name: str) -> str:
    """Return the family's implementation of attention of that name, ``sdpa`` or ``eager``; ``UserError`` if it has none."""
    has_sdpa = getattr(transformers, family.masked or family.causal)._supports_sdpa
    if name not in ATTENTIONS:
        raise UserError(f"--attention {name} is MPNet's own; {family.model_type} has {', '.join(ATTENTIONS)}.")
    if name == "sdpa" and not has_sdpa:
        raise UserError(f"{family.model_type} of transformers has no attention sdpa: --attention eager or auto.")
    return "sdpa" if name != "eager" and has_sdpa else "eager"


def _seed_repeatably(layers: list[nn.Module]) -> None:
    """Let Reformer's layers derive each seed from the one before it; transformers draws them so that no run repeats them."""

    def seed(layer: nn.Module, name: str, number: int) -> None:
        setattr(layer, name, int(make_key(torch.initial_seed(), number)) // 2)
        torch.manual_seed(getattr(layer, name))

    for number, layer in enumerate(layers):
        layer._init_attention_seed = partial(seed, layer, "attention_seed", 2 * number)
        layer._init_feed_forward_seed = partial(seed, layer, "feed_forward_seed", 2 * number + 1)


def _fill_tied_weights(module: TransformersModule, state_dict: dict, prefix: str, *_) -> None:
    """Let ``load_state_dict`` take files without the tied copies, as safetensors files are."""
    for copied, source in module.model.all_tied_weights_keys.items():
        if f"{prefix}model.{source}" in state_dict:
            state_dict.setdefault(f"{prefix}model.{copied}", state_dict[f"{prefix}model.{source}"])


def found_at(root: nn.Module, path: str) -> list:
    """Find modules or parameters at a dotted path, in which ``*`` stands for every number."""
    found = [root]
    for name in path.split("."):
        found = [child for module in found for child in (module if name == "*" else [getattr(module, name)])]
    return found


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn what each token sees, bool [B, 1 or n, n], into a mask to add to attention scores, [B, 1, 1 or n, n]."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def _plain(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run a model whose ``forward`` takes additive masks and positions."""
    body, options = module.model.base_model, {}
    visible = visible_tokens(None if module.is_causal else inputs.attention_mask, inputs.document_ids)
    if visible is not None:
        visible = visible & causal_tokens(inputs.ids) if module.is_causal else visible
        options["attention_mask"] = additive(visible, body.dtype)
    if inputs.document_ids is not None:
        first = body.config.pad_token_id + 1 if module.family.positions_after_padding else 0
        options["position_ids"] = inputs.positions + first
    return body(input_ids=inputs.ids, **options)[0]


def _flat(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run a model that takes masks [B, n] alone."""
    return module.model.base_model(input_ids=inputs.ids, attention_mask=inputs.attention_mask)[0]


def _convbert(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run ConvBERT always with a mask: it makes one itself, after it has searched the ids for padding."""
    body = module.model.base_model
    return body(input_ids=inputs.ids, attention_mask=additive(inputs.real[:, None, :], body.dtype))[0]


def _deberta(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run DeBERTa-v2's embeddings and encoder with a mask of their own each."""
    embedded, mask = embed_deberta(module, inputs)
    return module.model.base_model.encoder(embedded, mask, output_hidden_states=False).last_hidden_state


def embed_deberta(module: TransformersModule, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Compute what DeBERTa-v2's encoder reads: embeddings [B, n, d], which are multiplied by the mask [B, n] of padding, and
    the encoder's own mask, int64 [B, n], or [B, n, n] with documents."""
    real = inputs.real
    embedded = module.model.base_model.embeddings(input_ids=inputs.ids, position_ids=inputs.positions, mask=real)
    visible = real if inputs.document_ids is None else visible_tokens(real, inputs.document_ids)
    return embedded, visible.long()


def _gpt(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run GPT's blocks, which are causal by themselves; its own ``forward`` takes masks [B, n] alone."""
    body = module.model.base_model
    hidden = body.drop(body.tokens_embed(inputs.ids) + body.positions_embed(inputs.positions))
    visible = visible_tokens(None, inputs.document_ids)
    mask = None if visible is None else additive(visible, hidden.dtype)
    for block in body.h:
        (hidden,) = block(hidden, mask)
    return hidden


def _longformer(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run Longformer with global attention on the first token."""
    first = torch.zeros_like(inputs.ids)
    first[:, 0] = 1
    mask = inputs.real.long()
    return module.model.base_model(input_ids=inputs.ids, attention_mask=mask, global_attention_mask=first)[0]


def _modernbert(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run ModernBERT with masks for both kinds of its layers."""
    body = module.model.base_model
    visible = visible_tokens(inputs.attention_mask, inputs.document_ids)
    if visible is None:
        return body(input_ids=inputs.ids)[0]
    index = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
    near = (index[:, None] - index).abs() <= body.config.sliding_window
    masks = {
        "full_attention": additive(visible, body.dtype),
        "sliding_attention": additive(visible & near, body.dtype),
    }
    return body(input_ids=inputs.ids, attention_mask=masks, position_ids=inputs.positions)[0]


def _xlm(module: TransformersModule, inputs: Inputs) -> Tensor:
    """Run the modules of XLM or FlauBERT.

    Their own ``forward`` keeps all keys and values, takes masks [B, n] alone, and zeroes padding, which nobody sees.
    """
    body = module.model.base_model

    def drop(hidden: Tensor) -> Tensor:
        return F.dropout(hidden, body.dropout, body.training)

    hidden = body.embeddings(inputs.ids) + body.position_embeddings(inputs.positions)
    if inputs.language is not None and body.use_lang_emb and body.n_langs > 1:
        hidden = hidden + body.lang_embeddings(inputs.language)[:, None, :]
    hidden = drop(body.layer_norm_emb(hidden))
    visible = visible_tokens(None if module.is_causal else inputs.real, inputs.document_ids)
    if module.is_causal:
        visible = causal_tokens(inputs.ids) if visible is None else visible & causal_tokens(inputs.ids)
    visible = visible.expand(len(inputs.ids), inputs.ids.shape[1], -1)
    for attention, norm1, feed_forward, norm2 in zip(
        body.attentions, body.layer_norm1, body.ffns, body.layer_norm2, strict=True
    ):
        hidden = norm1(hidden + drop(attention(hidden, visible)[0]))
        hidden = norm2(hidden + feed_forward(hidden))
    return hidden


BODIES: dict[str, Callable[[TransformersModule, Inputs], Tensor]] = {
    "plain": _plain,
    "flat": _flat,
    "convbert": _convbert,
    "deberta": _deberta,
    "gpt": _gpt,
    "longformer": _longformer,
    "modernbert": _modernbert,
    "xlm": _xlm,
}
"""By name: compute the last hidden states [B, n, d]."""
