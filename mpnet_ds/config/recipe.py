"""Recipes: one JSON file says what a run trains, on how much, how fast. DeepSpeed's JSON says how the engine does it.

A recipe is a file of four sections, ``model``, ``data``, ``optimization`` and ``run``, and the name of the objective.
What it leaves out has the default below. Shipped recipes lie in ``mpnet_ds/recipes`` and go by their name.
"""

import json
from dataclasses import asdict, field, fields, replace
from pathlib import Path

from pydantic import ConfigDict, InstanceOf
from pydantic.dataclasses import dataclass

from mpnet_ds.data.samples.dataset import check_sample_mode
from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.objectives import Objective, objective_of
from mpnet_ds.objectives.model_section import ModelSection
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.validation import construct

RECIPES = Path(__file__).parent.parent / "recipes"
DEMO_RECIPE = "mpnet-tiny"
DEFAULT_RECIPE = "mpnet-base"
SECTION = ConfigDict(extra="forbid", use_attribute_docstrings=True)
POSITIVE = {"learning_rate", "eps", "layer_norm_eps"}
POSITIVE |= {"max_steps", "warmup_steps", "global_batch_size", "micro_batch_size"}
POSITIVE |= {"log_interval", "eval_interval", "eval_samples", "save_interval", "keep", "max_skipped"}
NOT_NEGATIVE = {"weight_decay", "gradient_clipping", "hang_timeout", "lost_timeout", "spike_factor"}


@dataclass(frozen=True, config=SECTION)
class DataRecipe:
    """How rows are made of a dataset; see ``PretrainingDataset``."""

    seq_length: int = 512
    """Tokens in a row, ``<s>`` included."""
    sample_mode: str = "stream"
    """``stream``: full rows across documents. ``document``, ``line``: whole ones, longer ones cut, and padding."""
    packing: bool = True
    """With ``document`` and ``line``: several share a row while they fit; false gives each a row of its own."""
    isolate_documents: bool = False
    """Documents (and lines) of a row do not see each other, and positions begin anew in each."""

    def __post_init__(self):
        check_sample_mode(self.sample_mode)


@dataclass(frozen=True, config=SECTION)
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


@dataclass(frozen=True, config=SECTION)
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


@dataclass(frozen=True, config=SECTION)
class Recipe:
    """Everything that one run trains; DeepSpeed's JSON says how."""

    name: str
    description: str = ""
    objective: InstanceOf[Objective] = field(default_factory=MPNet)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimization: OptimizationRecipe = field(default_factory=OptimizationRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self):
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

    def as_json(self) -> dict:
        """The recipe with nothing left out, as its file would say it."""
        return asdict(self) | {"objective": self.objective.section()}


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
    content = dict(content)
    if isinstance(data := content.get("data"), dict) and "masking" in data:
        raise UserError(f"{origin}: masking belongs to the objective: write it as objective.masking, not data.masking.")
    objective = objective_of(content.pop("objective", "mpnet"), origin)
    return replace(construct(Recipe, content, origin), objective=objective)
