"""The recipe's section ``model``: which family, its sizes and its initial values. The vocabulary's size comes from the data.

Without ``model_type`` it describes the two-stream MPNet. For any other family of transformers the section has the keys of
that family's configuration, with its defaults.
"""

import copy
import json
from dataclasses import MISSING, asdict, field, fields, make_dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from mpnet_ds.errors import UNKNOWN, UserError, did_you_mean
from mpnet_ds.validation import SECTION, Origin, examine

if TYPE_CHECKING:
    import torch
    from transformers import MPNetConfig, PreTrainedConfig

    from mpnet_ds.models.families import Family
    from mpnet_ds.models.mpnet.sizes import NetworkSizes
    from mpnet_ds.tokenizer import PretrainingTokenizer

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MPNET, TWO_STREAM, TRANSFORMERS = "mpnet", "two_stream", "transformers"
USUAL, NEAR = "usual", "near"
DEFAULT_STRENGTH = 2.0
OWN_KEYS = ("model_type", "implementation", "start", "start_strength")
"""Keys that no configuration of transformers has."""


class ModelSection:
    """Base class of the sections; subclasses are frozen dataclasses with ``OWN_KEYS`` and the family's keys."""

    def configuration(self) -> dict[str, Any]:
        """Return the keys that transformers' configuration has too."""
        return {key: value for key, value in asdict(self).items() if key not in OWN_KEYS}

    def settle_start(self) -> None:
        """Give the strength of a near start its default; ``UserError`` for the strength of a usual one."""
        if self.start == NEAR and self.start_strength is None:
            object.__setattr__(self, "start_strength", DEFAULT_STRENGTH)
        if self.start == USUAL and self.start_strength is not None:
            raise UserError("model.start_strength is for model.start 'near': set that too, or leave it out.")

    def choose_attention(self, name: str, device: "torch.device") -> str:
        """Return what ``auto`` is on a device, or the name itself; ``UserError`` for what the model does not have."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Return what makes another run of it; without what older versions did not have, where it has its default."""
        return {key: value for key, value in asdict(self).items() if key not in OWN_KEYS or value != _DEFAULTS[key]}

    longest_sequence: int | None = None
    """Tokens of the longest sequence that the model has positions for, if that is known before the tokenizer is."""

    def is_of(self, model_type: str, implementation: str) -> bool:
        """Whether it describes this family in this implementation."""
        return (self.model_type, self.implementation) == (model_type, implementation)


@dataclass(frozen=True, config=SECTION)
class MPNetSection(ModelSection):
    """Sizes of the encoder, and its initial values. With another ``model_type``, the keys of that family's configuration in
    transformers stand in the place of those here."""

    model_type: Literal["mpnet"] = MPNET
    """Family of transformers: mpnet, bert, roberta … ([models](models.md))."""
    implementation: Literal["two_stream"] = TWO_STREAM
    """Whose code computes the model: ``two_stream``, this project's MPNet, or ``transformers``, all other families and MPNet
    with objective mlm."""
    num_hidden_layers: Positive = 12
    """Layers."""
    hidden_size: Positive = 768
    """Width of the hidden states."""
    num_attention_heads: Positive = 12
    """Attention heads of a layer; they divide hidden_size."""
    intermediate_size: Positive = 3072
    """Inner width of the feed-forward network."""
    hidden_dropout_prob: Probability = 0.1
    """Dropout of hidden states."""
    attention_probs_dropout_prob: Probability = 0.1
    """Dropout of attention probabilities."""
    initializer_range: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of the initial weights."""
    max_position_embeddings: Positive = 514
    """Rows of the position table: the longest sequence plus 2."""
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of LayerNorm, by default that of the published models; --init_from needs the folder's own."""
    start: Literal["usual", "near"] = USUAL
    """Initial values. ``usual``: every matrix is drawn from N(0, initializer_range), as in the original. ``near``: attention
    begins with what is near, and small models learn sooner; the model is the same otherwise."""
    start_strength: Strength | None = None
    """How near, if ``start`` is ``near``, by default 2: a head begins with weights proportional to
    (1 + distance)^-strength, on one side."""

    def __post_init__(self):
        self.settle_start()

    @classmethod
    def of(cls, config: "MPNetConfig") -> "MPNetSection":
        """Describe an existing model as a section."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls) if field.name not in OWN_KEYS})

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that the model has positions for: two rows of the table are for padding."""
        return self.max_position_embeddings - 2

    def choose_attention(self, name: str, device: "torch.device") -> str:
        """Return the name of one of this project's back-ends."""
        from mpnet_ds.models.attention.backend import choose_backend

        return choose_backend(name, device).name

    def sizes(self, vocab_size: int) -> "NetworkSizes":
        """Everything that the network is built from."""
        from mpnet_ds.models.mpnet.sizes import NetworkSizes

        return NetworkSizes(vocab_size, **self.configuration())

    def config(self, vocab_size: int) -> "MPNetConfig":
        """Convert the section to transformers' configuration."""
        return self.sizes(vocab_size).config()


_DEFAULTS = {field.name: field.default for field in fields(MPNetSection)}


class FamilySection(ModelSection):
    """Base class of the sections of transformers' families; ``section_class`` makes them."""

    def __post_init__(self):
        self.settle_start()

    @property
    def family(self) -> "Family":
        """What is known of the family."""
        from mpnet_ds.models.families import family_of

        return family_of(self.model_type)

    def configuration(self) -> dict[str, Any]:
        """Return the keys that are not the family's defaults: some of those follow from others, as ``layer_types`` do."""
        defaults = {one.name: one.default_factory() if one.default is MISSING else one.default for one in fields(self)}
        return {key: value for key, value in super().configuration().items() if value != defaults[key]}

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, whatever the family calls it; families that call it so have a field instead."""
        from mpnet_ds.models.families import default_config

        return getattr(self, default_config(self.family).attribute_map["hidden_size"])

    @property
    def layers_key(self) -> str:
        """Name of the key with the number of layers."""
        from mpnet_ds.models.families import default_config

        return default_config(self.family).attribute_map.get("num_hidden_layers", "num_hidden_layers")

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 where it follows from other keys."""
        return self.__dict__.get(self.layers_key, 0)

    def choose_attention(self, name: str, device: "torch.device") -> str:
        """Return the name of an implementation of transformers, ``sdpa`` or ``eager``."""
        from mpnet_ds.models.transformers_model import attention_of

        return attention_of(self.family, name)

    def config(self, tokenizer: "PretrainingTokenizer", seq_length: int, is_causal: bool) -> "PreTrainedConfig":
        """Convert the section to transformers' configuration; ``UserError`` for what the family refuses."""
        from mpnet_ds.models.families import build_config

        return build_config(self.family, self.configuration(), tokenizer, seq_length, is_causal)


@lru_cache
def section_class(model_type: str) -> type[FamilySection]:
    """Make the section of a family: its configuration's keys, with the types and defaults that they have there."""
    from mpnet_ds.models.families import configuration_keys, default_config, family_of

    family = family_of(model_type)
    own: list[tuple] = [
        ("model_type", Literal[model_type], model_type),
        ("implementation", Literal[TRANSFORMERS], TRANSFORMERS),
        ("start", Literal[USUAL, NEAR] if family.near else Literal[USUAL], USUAL),
        ("start_strength", Strength | None, None),
    ]
    defaults = default_config(family)
    types = {one.name: one.type for one in fields(type(defaults))}
    for key in configuration_keys(family):
        value = getattr(defaults, key, None)
        default = field(default_factory=partial(copy.copy, value)) if isinstance(value, list | dict) else value
        own.append((key, types.get(key, Any), default))
    plain = make_dataclass("FamilySection", own, bases=(FamilySection,), frozen=True)
    return dataclass(plain, frozen=True, config=SECTION)


def examine_model(section: Any, origin: Origin, is_complete: bool) -> tuple[ModelSection, list[str]]:
    """The valid part of a recipe's section ``model``, and what is wrong with the rest; see ``validation.examine``."""
    if not isinstance(section, dict):
        return UNKNOWN, [f"{origin.of('model')}: model is {json.dumps(section)}; it must be an object."]
    model_type = section.get("model_type", MPNET)
    implementation = section.get("implementation", TWO_STREAM if model_type == MPNET else TRANSFORMERS)
    if (model_type, implementation) == (MPNET, TWO_STREAM):
        return examine(MPNetSection, section, origin, "model", is_complete)
    from mpnet_ds.models.families import FAMILIES  # imports torch

    if not isinstance(model_type, str) or model_type not in FAMILIES:
        found = f"unknown model.model_type '{model_type}'. {did_you_mean(str(model_type), FAMILIES)}"
        return UNKNOWN, [f"{origin.of('model.model_type')}: {found}"]
    if implementation == TWO_STREAM:
        found = f"model.implementation '{TWO_STREAM}' is MPNet's; {model_type} has '{TRANSFORMERS}' only."
        return UNKNOWN, [f"{origin.of('model.implementation')}: {found}"]
    return examine(section_class(model_type), section, origin, "model", is_complete)
