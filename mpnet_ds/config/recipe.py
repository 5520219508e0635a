"""Recipes: one JSON file says what a run trains, on how much, how fast. DeepSpeed's JSON says how the engine does it.

A recipe is a file of four sections, ``model``, ``data``, ``optimization`` and ``run``, and the name of the objective.
What it leaves out has the default below. Shipped recipes lie in ``mpnet_ds/recipes`` and go by their name.
"""

import json
import types
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from transformers import MPNetConfig

from mpnet_ds.data.samples.dataset import check_sample_mode
from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.objectives import get_objective
from mpnet_ds.objectives.masking import MaskingConfig
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PAD_ID

RECIPES = Path(__file__).parent.parent / "recipes"
DEMO_RECIPE = "mpnet-tiny"
DEFAULT_RECIPE = "mpnet-base"
POSITIVE = {"learning_rate", "eps", "layer_norm_eps"}
POSITIVE |= {"max_steps", "warmup_steps", "global_batch_size", "micro_batch_size"}
POSITIVE |= {"log_interval", "eval_interval", "eval_samples", "save_interval", "keep", "max_skipped"}
NOT_NEGATIVE = {"weight_decay", "gradient_clipping", "hang_timeout", "lost_timeout", "spike_factor"}


@dataclass(frozen=True)
class ModelRecipe:
    """Sizes of the encoder; the vocabulary's comes from the data."""

    @classmethod
    def of(cls, config: MPNetConfig) -> "ModelRecipe":
        """The section of a recipe for a model that there is."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    num_hidden_layers: int = 12
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    max_position_embeddings: int = 514
    """Rows of the position table: the longest row plus 2."""
    layer_norm_eps: float = 1e-5
    """That of the published models; a start of another one (--init_from) needs its own."""


@dataclass(frozen=True)
class DataRecipe:
    """How rows are made of a dataset; see ``PretrainingDataset``."""

    seq_length: int = 512
    """Tokens in a row, ``<s>`` included."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    sample_mode: str = "stream"
    """``stream``: full rows across documents. ``document``, ``line``: whole ones, longer ones cut, and padding."""
    packing: bool = True
    """With ``document`` and ``line``: several share a row while they fit; false gives each a row of its own."""
    isolate_documents: bool = False
    """Documents (and lines) of a row do not see each other, and positions begin anew in each."""

    def __post_init__(self):
        check_sample_mode(self.sample_mode)


@dataclass(frozen=True)
class OptimizationRecipe:
    """How fast, how long, with how many rows at once."""

    learning_rate: float = 5e-4
    """The highest, reached after the warm-up."""
    warmup_steps: int = 10_000
    max_steps: int = 125_000
    global_batch_size: int = 256
    """Rows of one update, over all ranks and accumulation steps."""
    micro_batch_size: int = 32
    """Rows that a rank takes through the model at once, at most: lowered to fit the number of ranks."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    """On matrices only: biases and LayerNorm have none."""
    gradient_clipping: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    precision: str = "auto"
    """``bf16`` or ``fp32``, where DeepSpeed's JSON says "auto". ``auto`` is bf16 on GPUs that compute in it, else fp32."""


@dataclass(frozen=True)
class RunRecipe:
    """When a run says, tries and saves something; intervals are in updates."""

    seed: int = 0
    log_interval: int = 100
    eval_interval: int = 2_500
    eval_samples: int = 2_048
    """Rows of the evaluation dataset that are used, at most."""
    save_interval: int = 2_500
    keep: int = 2
    """Newest checkpoints that are kept, besides the best by evaluation loss."""
    hang_timeout: float = 1_800.0
    """Seconds without progress after which a run says which rank hangs, and ends; 0 waits for ever."""
    lost_timeout: float = 120.0
    """Seconds without a sign of a rank (it is dead, stopped or cut off) after which a run names it and ends; 0 waits for
    ever."""
    max_skipped: int = 10
    """Updates in a row with a NaN or infinite loss or gradient, all skipped, after which a run ends."""
    spike_factor: float = 2.0
    """A loss above this multiple of its running mean is reported; 0 reports none."""


@dataclass(frozen=True)
class Recipe:
    """Everything that one run trains; DeepSpeed's JSON says how."""

    name: str
    description: str = ""
    objective: str = "mpnet"
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimization: OptimizationRecipe = field(default_factory=OptimizationRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self):
        get_objective(self.objective)
        if self.data.seq_length + 2 > self.model.max_position_embeddings:
            longest = self.model.max_position_embeddings - 2
            cure = f"raise model.max_position_embeddings to {self.data.seq_length + 2}"
            raise UserError(f"data.seq_length is {self.data.seq_length}, the position table reaches {longest}: {cure}.")
        if self.optimization.precision not in ("auto", "bf16", "fp32"):
            raise UserError(
                f"optimization.precision is '{self.optimization.precision}'; it takes auto, bf16 or fp32. "
                "For fp16 use ds_configs/fp16.json."
            )
        for section in (self.model, self.optimization, self.run):
            for name in sorted(POSITIVE & {f.name for f in fields(section)}):
                if not getattr(section, name) > 0:
                    raise UserError(f"{name} is {getattr(section, name)}; it must be greater than 0.")
            for name in sorted(NOT_NEGATIVE & {f.name for f in fields(section)}):
                if not getattr(section, name) >= 0:
                    raise UserError(f"{name} is {getattr(section, name)}; it must be at least 0.")

    def model_config(self, vocab_size: int) -> MPNetConfig:
        """The configuration as ``transformers`` knows it."""
        return MPNetConfig(
            vocab_size=vocab_size,
            num_hidden_layers=self.model.num_hidden_layers,
            hidden_size=self.model.hidden_size,
            num_attention_heads=self.model.num_attention_heads,
            intermediate_size=self.model.intermediate_size,
            hidden_dropout_prob=self.model.hidden_dropout_prob,
            attention_probs_dropout_prob=self.model.attention_probs_dropout_prob,
            initializer_range=self.model.initializer_range,
            max_position_embeddings=self.model.max_position_embeddings,
            layer_norm_eps=self.model.layer_norm_eps,
            bos_token_id=BOS_ID,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
        )


def load_recipe(name_or_file: str) -> Recipe:
    """A shipped recipe by name, or any JSON file by path."""
    path = Path(name_or_file)
    if path.suffix != ".json":
        path = RECIPES / f"{name_or_file}.json"
    if not path.is_file():
        shipped = [file.stem for file in RECIPES.glob("*.json")]
        what = "no recipe file" if Path(name_or_file).suffix == ".json" else "unknown recipe"
        raise UserError(f"{what} '{name_or_file}'. {did_you_mean(name_or_file, shipped)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return recipe_from_dict({"name": path.stem} | content, str(path))


def recipe_from_dict(content: dict, origin: str) -> Recipe:
    """``origin`` names the source in errors; ``UserError`` for unknown keys and values of another type."""
    return _construct(Recipe, content, origin, "")


def _construct(cls: type, content: Any, origin: str, where: str):
    """A dataclass from a JSON object; unknown keys and wrong types are named with their place."""
    if not isinstance(content, dict):
        raise UserError(f"{origin}: '{where}' must be an object, not {json.dumps(content)}.")
    types_of = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    values = {}
    for key, value in content.items():
        place = f"{where}.{key}" if where else key
        if key not in known:
            raise UserError(f"{origin}: unknown key '{place}'. {did_you_mean(key, known)}")
        values[key] = _convert(types_of[key], value, origin, place)
    return cls(**values)


def _convert(expected: Any, value: Any, origin: str, place: str):
    if is_dataclass(expected):
        return _construct(expected, value, origin, place)
    if get_origin(expected) is tuple:
        inner = get_args(expected)
        if isinstance(value, list | tuple) and len(value) == len(inner):
            return tuple(_convert(kind, item, origin, place) for kind, item in zip(inner, value, strict=True))
    elif expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    name = (
        expected.__name__ if isinstance(expected, type) and not isinstance(expected, types.GenericAlias) else str(expected)
    )
    raise UserError(f"{origin}: '{place}' is {json.dumps(value)}; it must be of type {name}.")
