"""DeepSpeed's JSON: reading, checking the top level, and filling in "auto".

The file keeps DeepSpeed's own schema. Where it says "auto" the recipe's or the command line's value goes; where it gives
a number that contradicts them, that is an error which names both. DeepSpeed itself accepts any key at the top level in
silence, so unknown ones are refused here; sections it checks itself.

Batch arithmetic: global batch = micro batch * accumulation steps * ranks.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.training.recipe import OptimizationRecipe

MICRO, ACCUMULATION, GLOBAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"
MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")

TOP_LEVEL_KEYS = frozenset(
    f"""
    {MICRO} {ACCUMULATION} {GLOBAL} {" ".join(MONITORS)} optimizer scheduler fp16 bf16 bfloat16 amp torch_autocast
    zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer gradient_clipping prescale_gradients
    gradient_predivide_factor gradient_allreduce_op communication_data_type seq_parallel_communication_data_type
    sparse_gradients activation_checkpointing steps_per_print wall_clock_breakdown memory_breakdown dump_state
    disable_allgather disable_python_gc managed_gradient_accumulation dataloader_drop_last data_types checkpoint nebula
    checkpoint_writer aio flops_profiler comms_logger timers autotuning elasticity compression_training
    data_efficiency curriculum_learning eigenvalue progressive_layer_drop hybrid_engine compile pipeline
    weight_quantization log_level use_data_before_expert_parallelism graph_harvesting
    """.split()
)


@dataclass(frozen=True)
class BatchSizes:
    """Rows of an update: global = micro × accumulation steps × ranks."""

    micro_batch_size: int
    accumulation_steps: int
    global_batch_size: int


@dataclass(frozen=True)
class EngineConfig:
    """A resolved configuration."""

    engine: dict
    """What ``deepspeed.initialize`` gets: no "auto" left, no monitor sections."""
    monitors: dict
    """The monitor sections, which the trainer drives itself, so that nothing but logging waits for the device."""
    batch: BatchSizes
    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""

    @property
    def zero_stage(self) -> int:
        """0 to 3."""
        return self.engine.get("zero_optimization", {}).get("stage", 0)


def load_deepspeed_config(path: str | Path) -> dict:
    """Reads the file and checks its top level."""
    if not Path(path).is_file():
        raise UserError(f"no DeepSpeed configuration {path}. Shipped ones lie in ds_configs/, zero2.json for example.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    for key in content:
        if key not in TOP_LEVEL_KEYS and not key.startswith("_"):
            raise UserError(f"{path}: unknown key '{key}'. {did_you_mean(key, TOP_LEVEL_KEYS)}")
    for key in ("bf16", "fp16", "zero_optimization", "optimizer", "activation_checkpointing"):
        if key in content and not isinstance(content[key], dict):
            raise UserError(f"{path}: '{key}' must be an object, not {json.dumps(content[key])}.")
    for key in (MICRO, ACCUMULATION, GLOBAL):
        value = content.get(key, "auto")
        if value != "auto" and not (type(value) is int and value > 0):
            raise UserError(f"{path}: '{key}' is {json.dumps(value)}; it must be \"auto\" or a whole number above 0.")
    if "scheduler" in content:
        raise UserError(
            f"{path}: remove 'scheduler': the recipe's optimization.warmup_steps and max_steps are the schedule."
        )
    return content


def resolve(
    raw: dict,
    optimization: OptimizationRecipe,
    world_size: int,
    supported: set[str],
    origin: str,
    exact_micro_batch: bool = False,
) -> EngineConfig:
    """Fills in "auto" and checks what must agree.

    Args:
        raw: from ``load_deepspeed_config``.
        optimization: the recipe's values, the command line's already in them.
        supported: precisions that the device computes in.
        origin: the file's name, for messages.
        exact_micro_batch: the command line asked for this micro batch size; do not lower it to fit.
    """
    config = {key: value for key, value in copy.deepcopy(raw).items() if not key.startswith("_") and key not in MONITORS}
    precision = _resolve_precision(config, optimization.precision, supported, origin)
    batch = _resolve_batch(config, optimization, world_size, exact_micro_batch, origin)
    _settle(config, "gradient_clipping", optimization.gradient_clipping, "gradient_clipping", origin)
    optimizer = config.setdefault("optimizer", {"type": "AdamW", "params": {"torch_adam": True, "fused": True}})
    parameters = optimizer.setdefault("params", {})
    for name, value in (
        ("lr", optimization.learning_rate),
        ("betas", list(optimization.betas)),
        ("eps", optimization.eps),
        ("weight_decay", optimization.weight_decay),
    ):
        _settle(parameters, name, value, f"optimizer.params.{name}", origin)
    if optimizer.get("type", "").lower() in ("adam", "adamw") and "offload_optimizer" not in config.get(
        "zero_optimization", {}
    ):
        # DeepSpeed's own Adam compiles for minutes, without a word, at its first use.
        parameters.setdefault("torch_adam", True)
        parameters.setdefault("fused", True)
    config.setdefault("steps_per_print", 2**31)
    config["zero_allow_untested_optimizer"] = config.get("zero_allow_untested_optimizer", True)
    _refuse_leftover_auto(config, "", origin)
    return EngineConfig(config, {name: raw[name] for name in MONITORS if name in raw}, batch, precision)


def check_accepted(engine: dict, origin: str) -> None:
    """Lets DeepSpeed itself check a resolved configuration; raises ``UserError`` with its first objection."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(engine)
    except Exception as error:  # pydantic's, assertions, ValueError: whatever kind each section raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{origin}: DeepSpeed does not accept it: {' '.join(lines[:3])}") from error


def _settle(section: dict, key: str, value, place: str, origin: str) -> None:
    """Puts ``value`` where the file is silent or says "auto"; another value is a contradiction."""
    found = section.get(key, "auto")
    if found == "auto":
        section[key] = value
    elif found != value:
        cure = 'write "auto" there, or change the recipe'
        raise UserError(
            f"{origin}: {place} is {json.dumps(found)}, the recipe or command line says {json.dumps(value)}: {cure}."
        )


def _resolve_precision(config: dict, wanted: str, supported: set[str], origin: str) -> str:
    if "bfloat16" in config:
        config["bf16"] = config.pop("bfloat16")
    enabled = {name: config.get(name, {}).get("enabled", False) for name in ("bf16", "fp16")}
    if enabled["fp16"] is True and enabled["bf16"] is True:
        raise UserError(f"{origin}: fp16 and bf16 are both enabled; keep one.")
    if enabled["fp16"] is True:
        precision = "fp16"
    elif enabled["bf16"] is True:
        precision = "bf16"
    elif "auto" in enabled.values():
        precision = wanted if wanted != "auto" else ("bf16" if "fast-bf16" in supported else "fp32")
    else:
        precision = "fp32"
    if wanted not in ("auto", precision):
        raise UserError(f"{origin} enables {precision}, the recipe's optimization.precision is {wanted}: make them agree.")
    if precision not in supported:
        cure = (
            "take ds_configs/bf16.json or ds_configs/zero2.json"
            if precision == "fp16"
            else "set optimization.precision to fp32"
        )
        raise UserError(f"{origin}: {precision} is enabled, but this device does not support it: {cure}.")
    for name in ("bf16", "fp16"):
        if name in config:
            config[name]["enabled"] = name == precision
    if precision == "bf16":
        config.setdefault("bf16", {})["enabled"] = True
    return precision


def _resolve_batch(config: dict, optimization: OptimizationRecipe, world_size: int, exact: bool, origin: str) -> BatchSizes:
    _settle(config, GLOBAL, optimization.global_batch_size, GLOBAL, origin)
    total, micro = config[GLOBAL], optimization.micro_batch_size
    if isinstance(config.get(MICRO), int):
        if exact:
            _settle(config, MICRO, micro, MICRO, origin)
        micro, exact = config[MICRO], True
    per_rank = total // world_size
    if total % world_size == 0 and not exact:
        micro = max(size for size in range(1, min(micro, per_rank) + 1) if per_rank % size == 0)
    if total % world_size and not exact:
        micro = 1
    at_once = micro * world_size
    if total % at_once:
        below = total // at_once * at_once
        nearest = " or ".join(str(size) for size in (below, below + at_once) if size)
        raise UserError(
            f"global_batch_size {total} is not a multiple of micro_batch_size {micro} × {world_size} ranks = {at_once}: "
            f"take {nearest}, or another micro batch size."
        )
    accumulation = total // at_once
    config[MICRO] = micro
    found = config.get(ACCUMULATION, "auto")
    if found not in ("auto", accumulation):
        arithmetic = f"{total} rows / (micro batch {micro} × {world_size} ranks) = {accumulation}"
        raise UserError(
            f'{origin}: {ACCUMULATION} is {found}, but {arithmetic}: write "auto" there, or change the batch sizes.'
        )
    config[ACCUMULATION] = accumulation
    return BatchSizes(micro, accumulation, total)


def _refuse_leftover_auto(section, place: str, origin: str) -> None:
    items = section.items() if isinstance(section, dict) else enumerate(section) if isinstance(section, list) else ()
    for key, value in items:
        where = f"{place}.{key}" if place else str(key)
        if value == "auto":
            raise UserError(f"{origin}: '{where}' is \"auto\", but nothing else sets it: give a value, or leave it out.")
        _refuse_leftover_auto(value, where, origin)
