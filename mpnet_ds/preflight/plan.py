"""The plan of a run: everything that is decided before a model is built, as one value.

``training/pretrain.py`` fills it in step by step with ``replace``: what the command line and files say, then what needs the
connected ranks, last, under the output folder's lock, where the run begins. Fields are None until they are known.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mpnet_ds.checkpoint.store import read_info
from mpnet_ds.config.deepspeed_config import EngineConfig
from mpnet_ds.config.execution import Execution
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.data.samples.mixture import MixtureDataset
from mpnet_ds.data.samples.unigram import Unigram
from mpnet_ds.models.module import ComputeSetting, ModulePlan
from mpnet_ds.preflight.memory_estimate import Workload

Data = PretrainingDataset | MixtureDataset


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins."""

    output: Path
    checkpoint: Path | None
    """Whole and verified; None at the beginning."""
    identity: dict
    """Of this run, see ``run_folder.identity``."""
    conversion: str = ""
    """What was otherwise when the checkpoint was saved (ranks, ZeRO stage, precision, optimizer), in words; empty if
    nothing was."""
    damaged: tuple[tuple[Path, str], ...] = ()
    """Newer checkpoints that cannot be used, and why."""
    found: tuple[tuple[str, ...], ...] = ()
    """Names of the checkpoints in ``output`` when this was decided, of each disk, usable or not."""

    @property
    def step(self) -> int:
        """Steps that are done already."""
        return read_info(self.checkpoint).step if self.checkpoint else 0


@dataclass(frozen=True)
class RunPlan:
    """What a run trains, on what, how and from where."""

    recipe: Recipe | None = None
    engine: EngineConfig | None = None
    """DeepSpeed's JSON, resolved."""
    execution: Execution | None = None
    data: Data | None = None
    eval_data: Data | None = None
    """None where there is nothing to evaluate on, too."""
    sizes: ModulePlan | None = None
    """Of the module, for the engine's micro-batch."""
    init_from: str | None = None
    """Folder of weights to start from."""
    start: StartingPoint | None = None
    changes: dict[str, list] | None = None
    """Settings that differ from those of the start that this one continues, see ``run/history.py``: before and now."""

    @property
    def is_complete(self) -> bool:
        """Whether all is known that the ranks need to decide together where the run begins."""
        return None not in (self.recipe, self.engine, self.data)

    @cached_property
    def unigram(self) -> Unigram | None:
        """Loss of word frequencies alone; None where it is unknown."""
        return Unigram.of(self.data, self.recipe.objective)

    @property
    def datasets(self) -> list[PretrainingDataset]:
        """All datasets, of training and of evaluation."""
        return datasets_of(self.data) + datasets_of(self.eval_data)


def datasets_of(data: Data | None) -> Sequence[PretrainingDataset]:
    """The datasets of a mixture, or the one that ``data`` is."""
    return getattr(data, "datasets", [data] if data else [])


def sizes_of(plan: RunPlan, device: torch.device, micro_batch_size: int | None = None) -> ModulePlan:
    """Sizes of the plan's module on a device; ``micro_batch_size`` is the engine's by default."""
    section = plan.engine.engine.get("activation_checkpointing")
    setting = ComputeSetting(
        bytes_per_number=4 if plan.engine.precision == "fp32" else 2,
        checkpointed_layers=0 if section is None else section.get("number_checkpoints") or sys.maxsize,
        checkpoints_on_host=bool(section and section.get("cpu_checkpointing")),
        on_gpu=device.type != "cpu",
    )
    recipe, rows = plan.recipe, micro_batch_size or plan.engine.batch.micro_batch_size
    return recipe.objective.sizes(recipe.model, plan.data.tokenizer, recipe.data.seq_length, rows, setting)


def workload_of(plan: RunPlan, world_size: int, device: torch.device, sizes: ModulePlan | None = None) -> Workload:
    """What the memory of a rank depends on; ``sizes`` are the plan's by default."""
    zero = plan.engine.engine.get("zero_optimization", {})
    keys = {"reduce_bucket_size": "reduce_bucket_size", "max_live_parameters": "stage3_max_live_parameters"}
    return Workload(
        sizes or plan.sizes,
        plan.engine.precision,
        plan.engine.zero_stage,
        world_size,
        parameters_on_host=plan.engine.offload("offload_param") != "none",
        optimizer_on_host=plan.engine.offload("offload_optimizer") != "none",
        uses_muon=plan.engine.uses_muon,
        on_gpu=device.type != "cpu",
        **{name: int(zero[key]) for name, key in keys.items() if key in zero},
    )
