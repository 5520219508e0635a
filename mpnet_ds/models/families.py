"""Families of transformers that can be pre-trained, one entry each: classes, where their parts are, what they cannot do.

The table is data: names and texts. ``transformers_model.py`` computes by it, ``build_config`` turns a recipe's keys into
the configuration of transformers. Neither torch nor transformers is imported before a configuration is asked for.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mpnet_ds.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from mpnet_ds.tokenizer import PretrainingTokenizer


class OnlyValue(NamedTuple):
    """The one value of a key that can be trained."""

    value: object
    why: str
    """What is wrong with the others, as the end of a sentence."""


class Near(NamedTuple):
    """Where a model has what ``initial_values.look_near_by_sinusoids`` changes."""

    positions: str
    """Path of the position table, from the model without its head."""
    words: tuple[str, ...]
    """Paths of the tables that are added to it."""
    query: str
    """Path of the map to queries, from a block."""
    key: str
    """Path of the map to keys."""


@dataclass(frozen=True)
class Family:
    """One model type of transformers.

    Paths are dotted: ``head``, ``output`` and ``output_bias`` start at the model with its head, ``layers`` at the model
    without.
    """

    model_type: str
    """As transformers' configuration calls it."""
    masked: str = ""
    """Class under masked language modelling; empty if there is none."""
    causal: str = ""
    """Class under causal language modelling; empty if there is none."""
    layouts: tuple[str, ...] = ()
    """Layouts of special tokens that the family's released tokenizers have, the usual first."""
    layers: tuple[str, ...] = ("encoder.layer",)
    """Lists of blocks, in order; ``*`` in a path stands for every number."""
    layers_alternate: bool = False
    """Whether a block is one module of each list."""
    body: str = "plain"
    """Function of transformers_model.py that computes the hidden states."""
    head: tuple[str, ...] = ()
    """What hidden states pass before the map to the vocabulary, in order: modules, or ``gelu``."""
    output: str = ""
    """Module whose ``weight`` [V, d] maps to the vocabulary."""
    output_bias: str = ""
    """Parameter with that map's bias [V]; empty if it has none."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """What pre-training sets in the configuration."""
    fixed_if_causal: Mapping[str, object] = field(default_factory=dict)
    """The same under causal language modelling alone."""
    only: Mapping[str, OnlyValue] = field(default_factory=dict)
    """Keys of which one value can be trained."""
    undeclared: tuple[str, ...] = ()
    """Keys that the model reads though the configuration's class does not declare them."""
    heads_divide_width: bool = True
    """Whether num_attention_heads must divide hidden_size."""
    positions: str = "max_position_embeddings"
    """Key with the size of the table of positions; empty if there is none."""
    positions_after_padding: bool = False
    """Whether the first token's position is the row after that of padding's id."""
    pad_id: int | None = None
    """Id of padding that the family's code cannot do without."""
    length_faults: Callable[["PreTrainedConfig", int], list[str]] = lambda config, seq_length: []
    """What is wrong with a length of sequences, beyond the table of positions."""
    not_isolated: str = ""
    """Why documents in one sequence cannot be kept apart, as a sentence's end; empty if they can."""
    not_isolated_with: Mapping[str, str] = field(default_factory=dict)
    """The same for configurations that have a key."""
    not_recomputed: str = ""
    """Why layers cannot be recomputed in backward; empty if they can, with gradients equal to the last bit."""
    not_counted: str = ""
    """Why sizes cannot be counted on fake tensors; empty if they can."""
    not_compiled: str = ""
    """Why layers cannot be compiled; empty if they can, each as one graph."""
    near: Near | None = None
    """For ``model.start`` ``near``; None where no such start is known."""

    def why_not_isolated(self, config: "PreTrainedConfig") -> str:
        """Say why documents in one sequence cannot be kept apart, as a sentence's end; empty if they can."""
        return self.not_isolated or next((why for key, why in self.not_isolated_with.items() if getattr(config, key, 0)), "")

    def class_name(self, causal: bool) -> str:
        """Class of transformers under an objective; ``UserError`` if there is none."""
        if name := self.causal if causal else self.masked:
            return name
        kind = "causal" if causal else "masked"
        others = ", ".join(sorted(name for name, other in FAMILIES.items() if (other.causal if causal else other.masked)))
        raise UserError(
            f"model.model_type '{self.model_type}' has no class for {kind} language modelling. With one: {others}."
        )


IS_DECODER = {"is_decoder": True}
NEAR_OF_BERT = Near(
    "embeddings.position_embeddings",
    ("embeddings.word_embeddings", "embeddings.token_type_embeddings"),
    "attention.self.query",
    "attention.self.key",
)
BERT_LIKE = {
    "layouts": ("bert",),
    "near": NEAR_OF_BERT,
    "head": ("cls.predictions.transform",),
    "output": "cls.predictions.decoder",
    "output_bias": "cls.predictions.bias",
    "fixed_if_causal": IS_DECODER,
}
ROBERTA_LIKE = {
    "head": ("lm_head.dense", "gelu", "lm_head.layer_norm"),
    "output": "lm_head.decoder",
    "output_bias": "lm_head.bias",
    "positions_after_padding": True,
}
ELECTRA_LIKE = {
    "layouts": ("bert",),
    "head": ("generator_predictions",),
    "output": "generator_lm_head",
    "output_bias": "generator_lm_head.bias",
}
GPT_LIKE = {"layouts": ("gpt2",), "layers": ("h",), "output": "lm_head"}
XLM_LIKE = {
    "layouts": ("roberta", "xlm-roberta"),  # their own tokenizers are slow and take no other vocabulary
    "layers": ("attentions", "ffns"),
    "layers_alternate": True,
    "body": "xlm",
    "output": "pred_layer.proj",
    "output_bias": "pred_layer.proj.bias",
    "fixed_if_causal": {"causal": True},
}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("bert", masked="BertForMaskedLM", causal="BertLMHeadModel", **BERT_LIKE),
        Family(
            "convbert",
            masked="ConvBertForMaskedLM",
            body="convbert",
            heads_divide_width=False,  # half of the heads are convolutions: the class checks it
            not_isolated="its convolutions cross their borders",
            **ELECTRA_LIKE,
        ),
        Family("ctrl", causal="CTRLLMHeadModel", output_bias="lm_head.bias", positions="n_positions", **GPT_LIKE),
        Family(
            "deberta-v2",
            masked="DebertaV2ForMaskedLM",
            layouts=("deberta",),
            body="deberta",
            head=tuple(f"lm_predictions.lm_head.{name}" for name in ("dense", "transform_act_fn", "LayerNorm")),
            output="deberta.embeddings.word_embeddings",
            output_bias="lm_predictions.lm_head.bias",
            fixed={"legacy": False},  # else the head has other names than the released models'
            undeclared=(
                *("position_buckets", "share_att_key", "norm_rel_ebd", "embedding_size", "attention_head_size"),
                *("conv_kernel_size", "conv_act", "conv_groups"),
            ),
            not_isolated_with={"conv_kernel_size": "its convolution crosses their borders"},
        ),
        Family(
            "distilbert",
            masked="DistilBertForMaskedLM",
            layouts=("bert",),
            layers=("transformer.layer",),
            head=("vocab_transform", "activation", "vocab_layer_norm"),
            output="vocab_projector",
            output_bias="vocab_projector.bias",
        ),
        Family(
            "electra", masked="ElectraForMaskedLM", causal="ElectraForCausalLM", fixed_if_causal=IS_DECODER, **ELECTRA_LIKE
        ),
        Family("ernie", masked="ErnieForMaskedLM", causal="ErnieForCausalLM", **BERT_LIKE),
        Family(
            "flaubert",
            masked="FlaubertWithLMHeadModel",
            causal="FlaubertWithLMHeadModel",
            only={
                "pre_norm": OnlyValue(False, "transformers cannot compute pre-norm (its forward fails in FlaubertModel)."),
                "layerdrop": OnlyValue(0.0, "every rank would skip other layers."),
            },
            **XLM_LIKE,
        ),
        Family(
            "funnel",
            masked="FunnelForMaskedLM",
            layouts=("bert",),
            layers=("encoder.blocks.*", "decoder.layers"),
            body="flat",
            output="lm_head",
            output_bias="lm_head.bias",
            heads_divide_width=False,  # d_head is a key of its own
            positions="",
            not_isolated="its pooling joins neighbouring tokens",
        ),
        Family("gpt2", causal="GPT2LMHeadModel", positions="n_positions", **GPT_LIKE),
        Family(
            "longformer",
            masked="LongformerForMaskedLM",
            layouts=("roberta",),
            body="longformer",
            not_isolated="its window has no mask for pairs of tokens",
            not_counted="it looks up where attention is global",
            not_compiled="they look up where attention is global",
            **ROBERTA_LIKE,
        ),
        Family(
            "modernbert",
            masked="ModernBertForMaskedLM",
            layouts=("bert",),
            layers=("layers",),
            body="modernbert",
            head=("head",),
            output="decoder",
            output_bias="decoder.bias",
            undeclared=("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"),
        ),
        Family(
            "mpnet",
            masked="MPNetForMaskedLM",
            layouts=("mpnet",),
            only={"relative_attention_num_buckets": OnlyValue(32, "transformers computes with 32 whatever it says.")},
            pad_id=1,
            **ROBERTA_LIKE,
        ),
        Family("openai-gpt", causal="OpenAIGPTLMHeadModel", body="gpt", positions="n_positions", **GPT_LIKE),
        Family(
            "reformer",
            masked="ReformerForMaskedLM",
            causal="ReformerModelWithLMHead",
            layouts=("gpt2",),
            layers=("encoder.layers",),
            body="flat",
            output="lm_head.decoder",
            fixed_if_causal=IS_DECODER,
            heads_divide_width=False,  # attention_head_size is a key of its own
            length_faults=lambda config, seq_length: _faults_of_reformers_length(config, seq_length),
            not_isolated="its chunks and buckets have no mask for pairs of tokens",
            not_recomputed="its layers are reversible, and recompute themselves",
            not_counted="its own backward looks at numbers",
            not_compiled="they seed the generator of random numbers",
        ),
        Family(
            "roberta",
            masked="RobertaForMaskedLM",
            causal="RobertaForCausalLM",
            layouts=("roberta",),
            fixed_if_causal=IS_DECODER,
            **ROBERTA_LIKE,
        ),
        Family("xlm", masked="XLMWithLMHeadModel", causal="XLMWithLMHeadModel", **XLM_LIKE),
        Family(
            "xlm-roberta",
            masked="XLMRobertaForMaskedLM",
            causal="XLMRobertaForCausalLM",
            layouts=("xlm-roberta",),
            fixed_if_causal=IS_DECODER,
            **ROBERTA_LIKE,
        ),
    )
}
"""All families, by their model type."""

NOT_OF_PRETRAINING = (
    *("vocab_size", "tie_word_embeddings", "use_cache", "is_decoder", "is_encoder", "causal", "add_cross_attention"),
    *("asm", "lang_id", "unk_index", "mask_index", "bos_index", "eos_index", "pad_index", "start_n_top", "end_n_top"),
    *("qa_dropout", "seq_classif_dropout", "pooler_dropout", "pooler_hidden_act", "onnx_export", "chunk_size_lm_head"),
    *("deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "hash_seed"),
)
"""Keys of configurations that come from elsewhere, or matter for other heads, decoders or generation alone."""
NOT_OF_PRETRAINING_BEGIN = ("classifier_", "summary_")
ROLES: dict[str, Callable[["PretrainingTokenizer"], int | None]] = {
    "pad_token_id": lambda tokenizer: tokenizer.pad_id,
    "bos_token_id": lambda tokenizer: tokenizer.end_id if tokenizer.begin_id is None else tokenizer.begin_id,
    "cls_token_id": lambda tokenizer: tokenizer.end_id if tokenizer.begin_id is None else tokenizer.begin_id,
    "eos_token_id": lambda tokenizer: tokenizer.end_id,
    "sep_token_id": lambda tokenizer: tokenizer.end_id,
    "mask_token_id": lambda tokenizer: tokenizer.mask_id,
    "mask_index": lambda tokenizer: tokenizer.mask_id,
    "unk_index": lambda tokenizer: tokenizer.unknown_id,
}
"""Ids of special tokens in a configuration → where a tokenizer has them."""


def family_of(model_type: str) -> Family:
    """Return a family by its model type."""
    if model_type not in FAMILIES:
        raise UserError(f"unknown model.model_type '{model_type}'. {did_you_mean(str(model_type), FAMILIES)}")
    return FAMILIES[model_type]


def configuration_keys(family: Family) -> list[str]:
    """List the keys that a recipe may give: those of the family's configuration that pre-training depends on."""
    from transformers import PreTrainedConfig

    classes = [cls for cls in type(default_config(family)).__mro__ if issubclass(cls, PreTrainedConfig)]
    declared = [key for cls in classes[: classes.index(PreTrainedConfig)] for key in inspect.get_annotations(cls)]
    return [key for key in dict.fromkeys([*declared, *family.undeclared]) if _is_of_pretraining(key, family)]


def _is_of_pretraining(key: str, family: Family) -> bool:
    taken = key in NOT_OF_PRETRAINING or key in ROLES or key in family.fixed or key in family.fixed_if_causal
    return not taken and not key.startswith(NOT_OF_PRETRAINING_BEGIN)


def build_config(
    family: Family, values: Mapping[str, object], tokenizer: "PretrainingTokenizer", seq_length: int, causal: bool = False
) -> "PreTrainedConfig":
    """Build the configuration of transformers from a recipe's keys; vocabulary and special ids are the tokenizer's.

    Raises ``UserError`` for keys and values that the family refuses, and where it has fewer than ``seq_length`` positions.
    """
    class_name, defaults = family.class_name(causal), default_config(family)
    if family.pad_id not in (None, tokenizer.pad_id):
        raise UserError(
            f"{family.model_type} of transformers pads with id {family.pad_id}, the tokenizer with {tokenizer.pad_id}."
        )
    _check_keys(family, values, defaults)
    fixed = {**family.fixed, **(family.fixed_if_causal if causal else {})}
    ids = {key: role(tokenizer) for key, role in ROLES.items() if getattr(defaults, key, None) is not None}
    config = _in_words(lambda: type(defaults)(**values, **fixed, **ids, vocab_size=tokenizer.vocab_size))
    _check_sizes(family, config, defaults)
    _check_length(family, config, seq_length)
    _in_words(lambda: _build_without_numbers(class_name, config))
    return config


def default_config(family: Family) -> "PreTrainedConfig":
    """Build the configuration that transformers has without any values."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family.model_type)


def _check_keys(family: Family, values: Mapping[str, object], defaults: "PreTrainedConfig") -> None:
    known = configuration_keys(family)
    findings = []
    for key in values:
        if key in known:
            continue
        own_name = defaults.attribute_map.get(key)
        hint = f"{family.model_type} calls it '{own_name}'." if own_name in known else did_you_mean(key, known)
        findings.append(f"unknown key 'model.{key}' for {family.model_type}. {hint}")
    for key, only in family.only.items():
        if values.get(key, only.value) != only.value:
            findings.append(
                f"model.{key} is {values[key]!r}; {family.model_type} can only be trained with {only.value!r}: {only.why}"
            )
    if findings:
        raise UserError(*findings)


def _check_sizes(family: Family, config: "PreTrainedConfig", defaults: "PreTrainedConfig") -> None:
    findings = []
    for key in configuration_keys(family):
        value, default = getattr(config, key, None), getattr(defaults, key, None)
        is_size = type(default) is int and default > 0 and type(value) is int
        if is_size and value < 1:
            findings.append(f"model.{key} is {value}; it must be at least 1.")
    if not findings and family.heads_divide_width and config.hidden_size % config.num_attention_heads:
        width, heads = (config.attribute_map.get(key, key) for key in ("hidden_size", "num_attention_heads"))
        findings.append(
            f"model.{width} {config.hidden_size} is not a multiple of model.{heads} {config.num_attention_heads}."
        )
    if findings:
        raise UserError(*findings)


def _check_length(family: Family, config: "PreTrainedConfig", seq_length: int) -> None:
    longest = longest_sequence(family, config)
    if longest is not None and seq_length > longest:
        size = f"model.{family.positions} {getattr(config, family.positions)}"
        why = f", of which {family.model_type} uses {longest}" if getattr(config, family.positions) != longest else ""
        raise UserError(f"data.seq_length {seq_length} is longer than {size} allows{why}: set one of them.")
    if faults := family.length_faults(config, seq_length):
        raise UserError(*faults)


def _faults_of_reformers_length(config: "PreTrainedConfig", seq_length: int) -> list[str]:
    faults, shape = [], list(config.axial_pos_shape)
    lengths = {kind: getattr(config, f"{kind}_attn_chunk_length") for kind in ("local", "lsh") if kind in config.attn_layers}
    if config.axial_pos_embds and math.prod(shape) != seq_length:
        faults.append(
            f"data.seq_length {seq_length} is not the product of model.axial_pos_shape {shape}, as reformer needs."
        )
    for kind, length in lengths.items():
        if seq_length > length and seq_length % length:
            faults.append(f"data.seq_length {seq_length} is not a multiple of model.{kind}_attn_chunk_length {length}.")
    return faults


def longest_sequence(family: Family, config: "PreTrainedConfig") -> int | None:
    """Count the positions that a model has for tokens; None if it has no table of positions."""
    if not family.positions:
        return None
    before = config.pad_token_id + 1 if family.positions_after_padding else 0
    return getattr(config, family.positions) - before


def _build_without_numbers(class_name: str, config: "PreTrainedConfig") -> None:
    """Build the model without allocating it, for what its classes refuse."""
    import copy

    import torch
    import transformers

    with torch.device("meta"):
        getattr(transformers, class_name)(copy.deepcopy(config))


REFUSALS = (ValueError, AssertionError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What transformers' classes raise at sizes that do not fit; NotImplementedError is a RuntimeError."""


def _in_words(build: Callable):
    """Return what ``build`` does; what transformers refuses is a ``UserError`` in its own words."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return build()
    except (StrictDataclassError, *REFUSALS) as error:
        words = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"model: transformers refuses these values: {words}") from error
