"""The recipe's section ``model``: which family, and its sizes. The vocabulary's size comes from the data."""

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from mpnet_ds.errors import UserError
from mpnet_ds.validation import SECTION

if TYPE_CHECKING:
    from transformers import MPNetConfig

    from mpnet_ds.models.mpnet.sizes import NetworkSizes

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


USUAL, NEAR = "usual", "near"
DEFAULT_STRENGTH = 2.0
START = ("start", "start_strength")
"""Keys that no configuration of transformers has."""


@dataclass(frozen=True, config=SECTION)
class ModelSection:
    """Sizes of the encoder, and its initial values."""

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
    start_strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How near, if ``start`` is ``near``, by default 2: a head begins with weights proportional to
    (1 + distance)^-strength, on one side."""

    def __post_init__(self):
        if self.start == NEAR and self.start_strength is None:
            object.__setattr__(self, "start_strength", DEFAULT_STRENGTH)
        if self.start == USUAL and self.start_strength is not None:
            raise UserError("model.start_strength is for model.start 'near': set that too, or leave it out.")

    @classmethod
    def of(cls, config: "MPNetConfig") -> "ModelSection":
        """Describe an existing model as a section."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls) if field.name not in START})

    def sizes(self, vocab_size: int) -> "NetworkSizes":
        """Everything that the network is built from."""
        from mpnet_ds.models.mpnet.sizes import NetworkSizes

        return NetworkSizes(vocab_size, **self.configuration())

    def configuration(self) -> dict:
        """The keys that transformers' configurations have, too."""
        return {key: value for key, value in asdict(self).items() if key not in START}

    def identity(self) -> dict:
        """Of the section, what makes another run of it; a usual start is left out, as older versions had no other."""
        return self.configuration() if self.start == USUAL else asdict(self)

    def config(self, vocab_size: int) -> "MPNetConfig":
        """Convert the section to transformers' configuration."""
        return self.sizes(vocab_size).config()
