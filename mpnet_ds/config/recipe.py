"""Recipes: one JSON file says what a run trains, on how much, how fast. DeepSpeed's JSON says how the engine does it.

A recipe is a file of five sections: ``objective`` (or just its name), ``model``, ``data``, ``optimization`` and ``run``.
What it leaves out has the default below. Shipped recipes are in ``mpnet_ds/recipes`` and go by their name. The docstring
below a field is its documentation (see ``docs/configuration.md``).
"""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, InstanceOf, field_validator
from pydantic.dataclasses import dataclass

from mpnet_ds.config.foreign_names import our_name
from mpnet_ds.config.overrides import Override, with_overrides
from mpnet_ds.data.samples.dataset import MIN_SEQ_LENGTH, SampleMode
from mpnet_ds.errors import UNKNOWN, UserError, did_you_mean
from mpnet_ds.objectives import OBJECTIVES, Objective, examine_objective
from mpnet_ds.objectives.masking import MAX_SEQ_LENGTH
from mpnet_ds.objectives.model_section import ModelSection, MPNetSection, examine_model
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.validation import SECTION, Origin, examine, examine_json_object, keys_of

RECIPES = Path(__file__).parent.parent / "recipes"
DEMO_RECIPE = "mpnet-tiny"
DEFAULT_RECIPE = "mpnet-base"

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _as_tuple(value):
    """One text, or a list of them, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, config=SECTION)
class DataRecipe:
    """How sequences are made of a dataset; see ``PretrainingDataset``."""

    seq_length: Annotated[int, Field(ge=MIN_SEQ_LENGTH, le=MAX_SEQ_LENGTH)] = 512
    """Tokens of a sequence, ``<s>`` included."""
    sample_mode: SampleMode = "stream"
    """What a sequence holds. ``stream``: full blocks across documents. ``document``, ``line``: whole ones, longer ones cut,
    and padding."""
    packing: bool = True
    """With ``document`` and ``line``: several share a sequence while they fit; false gives each a sequence of its own."""
    isolate_documents: bool = False
    """Keep the documents (and lines) of a sequence from seeing each other; positions restart in each."""
    license: str | None = None
    """Licence of the texts, for the model card; by default the datasets' own (``build_dataset --license``)."""


@dataclass(frozen=True, config=SECTION)
class OptimizationRecipe:
    """How fast, how long, with how many sequences at once."""

    learning_rate: Positive = 5e-4
    """Highest learning rate, reached after the warm-up."""
    warmup_steps: Count = 10_000
    """Steps in which the learning rate rises from 0."""
    max_steps: Count = 125_000
    """Steps of the run."""
    global_batch_size: Count = 256
    """Sequences of one step, over all ranks and accumulation steps."""
    micro_batch_size: Count = 32
    """Sequences that a rank takes through the model at once, at most: lowered to fit the number of ranks."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Decay rates of Adam's two moments."""
    eps: Positive = 1e-6
    """Term that keeps Adam from dividing by 0."""
    weight_decay: NotNegative = 0.01
    """Weight decay of matrices; biases and LayerNorm have none."""
    gradient_clipping: NotNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the computation, where DeepSpeed's JSON says "auto". ``auto`` is bf16 on GPUs that compute in it,
    else fp32."""

    @field_validator("precision", mode="before")
    @classmethod
    def _name_the_file_for_fp16(cls, value):
        if value == "fp16":
            raise ValueError("optimization.precision takes auto, bf16 or fp32. For fp16 use ds_configs/fp16.json.")
        return value


@dataclass(frozen=True, config=SECTION)
class RunRecipe:
    """When a run logs, evaluates and saves; intervals are in steps."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of initial weights, order of samples, masking and dropout."""
    log_interval: Count = 100
    """Steps between lines of ``metrics.jsonl``."""
    eval_interval: Count = 2_500
    """Steps between evaluations."""
    eval_samples: Count = 2_048
    """Sequences of the evaluation dataset that are used, at most."""
    save_interval: Count = 2_500
    """Steps between checkpoints."""
    keep: Count = 2
    """Newest checkpoints that are kept, besides the best by validation loss."""
    hang_timeout: NotNegative = 1_800.0
    """Seconds without progress after which a run says which rank hangs, and ends; 0 waits for ever."""
    lost_timeout: NotNegative = 120.0
    """Seconds without a heartbeat of a rank (it is dead, stopped or cut off) after which a run names it and ends; 0 waits
    for ever."""
    max_skipped: Count = 10
    """Steps in a row with a NaN or infinite loss or gradient, or without a predicted token, all skipped, after which a run
    ends."""
    spike_factor: NotNegative = 2.0
    """Multiple of its running mean above which a loss is reported; 0 reports none."""
    plugins: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """Python module, or a list of modules, imported before anything else is read: they may ``register()`` objectives."""


@dataclass(frozen=True, config=SECTION)
class Recipe:
    """Everything that one run trains; DeepSpeed's JSON says how."""

    name: str
    """Name of the recipe; by default its file's."""
    description: str = ""
    """What the recipe is for, in a sentence."""
    objective: InstanceOf[Objective] = field(default_factory=MPNet)
    """What is corrupted and predicted: a name, or an object with ``name`` and the objective's own keys."""
    model: InstanceOf[ModelSection] = field(default_factory=MPNetSection)
    """Family and sizes of the model."""
    data: DataRecipe = field(default_factory=DataRecipe)
    """How sequences are made of a dataset."""
    optimization: OptimizationRecipe = field(default_factory=OptimizationRecipe)
    """How fast, how long, with how many sequences at once."""
    run: RunRecipe = field(default_factory=RunRecipe)
    """When a run logs, evaluates and saves."""

    def __post_init__(self):
        length, longest = self.data.seq_length, self.model.longest_sequence
        if longest is not None and length > longest:
            cure = f"raise model.max_position_embeddings to {length + 2}"
            if longest >= MIN_SEQ_LENGTH:
                cure += f", or lower data.seq_length to {longest}"
            raise UserError(f"data.seq_length is {length}, but model.max_position_embeddings is {longest + 2}: {cure}.")

    def as_json(self) -> dict:
        """The recipe with nothing left out, as its file would say it."""
        return asdict(self) | {"objective": self.objective.section()}


def load_recipe(name_or_file: str, overrides: Mapping[str, Override] = MappingProxyType({})) -> Recipe:
    """A shipped recipe by name, or any JSON file by path, with the command line's values in it; ``UserError`` for others."""
    recipe, findings = examine_recipe(name_or_file, overrides)
    if findings:
        raise UserError(*findings)
    return recipe


def examine_recipe(
    name_or_file: str, overrides: Mapping[str, Override] = MappingProxyType({}), is_complete: bool = True
) -> tuple[Recipe, list[str]]:
    """The valid part of a recipe with the command line's values in it, and what is wrong with the rest.

    ``is_complete``: false where values of the command line are missing in ``overrides`` since they are wrong.
    """
    path = Path(name_or_file)
    if path.suffix != ".json":
        path = RECIPES / f"{name_or_file}.json"
    if path.is_file():
        content, findings = examine_json_object(path)
    else:
        shipped = [file.stem for file in RECIPES.glob("*.json")]
        what = "no recipe file" if Path(name_or_file).suffix == ".json" else "unknown recipe"
        content, findings = None, [f"{what} '{name_or_file}'. {did_you_mean(name_or_file, shipped)}"]
    is_complete = is_complete and content is not None
    content, more = with_overrides({"name": path.stem} | (content or {}), overrides)
    sources = {key: override.source for key, override in overrides.items()}
    recipe, others = _examine_content(content, str(path), sources, is_complete and not more)
    return recipe, findings + more + others


def recipe_from_dict(content: dict, path: str) -> Recipe:
    """The recipe that a JSON object describes; the modules of ``run.plugins`` are imported first.

    Args:
        path: names the source in errors.
    Raises:
        UserError: one text for each unknown key and each value of another type or out of bounds.
    """
    recipe, findings = _examine_content(content, path, {}, is_complete=True)
    if findings:
        raise UserError(*findings)
    return recipe


def _examine_content(content: dict, path: str, sources: Mapping[str, str], is_complete: bool) -> tuple[Recipe, list[str]]:
    """The valid part of a recipe, and what is wrong; ``sources``: of values that are not the file's, by key."""
    origin = Origin(path, sources, (*keys_of(Recipe), *keys_of(MPNetSection, "model"), "objective.name"), our_name)
    findings, objective = import_plugins(content, origin), UNKNOWN
    section = content.get("objective", "mpnet")
    name = section.get("name") if isinstance(section, dict) else section
    of_plugin = bool(findings) and isinstance(name, str) and name not in OBJECTIVES  # perhaps, of one that is missing
    if ("objective" in content or is_complete) and not of_plugin:
        objective, more = examine_objective(section, origin)
        findings += more
    keys, model = () if objective is UNKNOWN else tuple(keys_of(type(objective), "objective")), UNKNOWN
    if "model" in content or is_complete:
        model, more = examine_model(content.get("model", {}), replace(origin, keys=origin.keys + keys), is_complete)
        findings += more
    keys += () if model is UNKNOWN else tuple(keys_of(type(model), "model"))
    made = {"objective": objective, "model": model}
    others = {key: value for key, value in content.items() if key not in made}
    recipe, more = examine(Recipe, others, replace(origin, keys=keys), "", is_complete, made)
    return recipe, findings + more


def import_plugins(content: dict, origin: Origin) -> list[str]:
    """Import what ``run.plugins`` of a recipe names: objectives register then. A text for each that does not exist."""
    run = content.get("run")
    plugins = _as_tuple(run.get("plugins", ())) if isinstance(run, dict) else ()
    names = [name for name in plugins if isinstance(name, str)] if isinstance(plugins, tuple) else []
    return import_modules(names, f"{origin.of('run.plugins')}: run.plugins")


def import_modules(names: Iterable[str], origin: str) -> list[str]:
    """Import modules from the current folder or the Python path; a text for each that does not exist."""
    findings = []
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # Python puts the program's folder there, not the current one
    for name in names:
        try:
            found = find_spec(name)
        except (ImportError, ValueError):  # a package above it is missing; "" or ".x"
            found = None
        if found is None:
            where = "Modules are looked for in the current folder and in PYTHONPATH."
            findings.append(f"{origin}: no module '{name}'. {where}")
        else:
            import_module(name)
    return findings
