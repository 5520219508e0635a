"""The keys that DeepSpeed's JSON may hold, at every level.

Many sections are pydantic models in DeepSpeed: their keys, aliases included, are asked of them. DeepSpeed reads the other
sections with ``dict.get``, which passes over a misspelt key in silence: their keys are written down below, and a test
compares them with what DeepSpeed reads.

A *tree* of keys is a dict: a key that holds a section leads to that section's tree, any other to None.
"""

import inspect
from functools import cache
from typing import get_args

MICRO, ACCUMULATION, GLOBAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"
MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")

VALUES = f"""
    {MICRO} {ACCUMULATION} {GLOBAL} zero_allow_untested_optimizer zero_force_ds_cpu_optimizer gradient_clipping
    prescale_gradients gradient_predivide_factor gradient_allreduce_op communication_data_type
    seq_parallel_communication_data_type steps_per_print wall_clock_breakdown memory_breakdown dump_state
    disable_allgather disable_python_gc managed_gradient_accumulation dataloader_drop_last log_level vocabulary_size
    use_data_before_expert_parallelism
""".split()
"""Keys of the top level that hold a number, a word or a truth value."""

REMOVED = ["nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue"]
REMOVED += ["sparse_attention", "elasticity", "graph_harvesting", "curriculum_learning", "progressive_layer_drop"]
"""Keys that DeepSpeed once had: it names what became of each, so they pass here."""

OPEN_SECTIONS = ("scheduler", "data_efficiency", "expert_parallel", "datastates_ckpt")
"""Sections that are not looked into: refused as a whole, or of no use to this program."""

READ_BY_GET = {
    "activation_checkpointing": """
        partition_activations contiguous_memory_optimization cpu_checkpointing number_checkpoints
        synchronize_checkpoint_boundary profile
    """,
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "autotuning": """
        enabled fast results_dir exps_dir overwrite start_profile_step end_profile_step metric metric_path tuner_type
        tuner_early_stopping tuner_num_trials arg_mappings model_info model_info_path mp_size max_train_batch_size
        min_train_batch_size max_train_micro_batch_size_per_gpu min_train_micro_batch_size_per_gpu
        num_tuning_micro_batch_sizes
    """,
    "checkpoint": "tag_validation checkpoint_serialization load_universal use_node_local_storage writer parallel_write",
    "checkpoint.writer": "type io_buffer_size io_buffer_double show_statistics data_parallel decoupled io_multiplier",
    "checkpoint.parallel_write": "pipeline_stage",
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file",
    "optimizer": "type params legacy_fusion",
    "timers": "throughput",
    "torch_autocast": "enabled dtype lower_precision_safe_modules",
    "pipeline": "stages partition seed_layers activation_checkpoint_interval pipe_partitioned grad_partitioned",
}
"""Sections without a pydantic model, by their place."""


def models() -> dict[str, type]:
    """Place → DeepSpeed's pydantic model of the section."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.inference.config import WeightQuantConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.config import HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "bfloat16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "wandb": WandbConfig,
        "comet": CometConfig,
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "hybrid_engine": HybridEngineConfig,
        "tensor_parallel": TPTrainingConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "weight_quantization": WeightQuantConfig,
    }


@cache
def key_tree() -> dict:
    """The tree of all keys of the JSON; ``optimizer.params`` is not in it (see ``optimizer_parameters``)."""
    tree = dict.fromkeys([*VALUES, *REMOVED, *OPEN_SECTIONS])
    for place, keys in READ_BY_GET.items():
        _put(tree, place, dict.fromkeys(keys.split()))
    for place, model in models().items():
        _put(tree, place, _tree_of(model))
    return tree


def deprecated_keys(section: dict, place: str) -> dict[str, str]:
    """Of the keys of the section at ``place``, those that DeepSpeed calls deprecated, and the one it takes instead."""
    fields = models()[place].model_fields if place in models() else {}
    extras = {name: field.json_schema_extra or {} for name, field in fields.items() if name in section}
    return {name: extra.get("new_param", "") for name, extra in extras.items() if extra.get("deprecated")}


def optimizer_parameters(kind: str, parameters: dict, on_host: bool) -> set[str]:
    """Keys that ``optimizer.params`` may hold.

    Args:
        kind: ``optimizer.type``.
        parameters: the section itself: ``torch_adam`` decides between PyTorch's optimizer and DeepSpeed's.
        on_host: the optimizer works in the host's memory (``offload_optimizer``).
    Returns:
        The keys; an empty set where there is no such optimizer.
    """
    import torch

    if kind.lower() in ("adam", "adamw"):
        own = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}
        return own | (_arguments(torch.optim.AdamW) if parameters.get("torch_adam", True) else _adam_of_deepspeed(on_host))
    if kind.lower() == "muon":  # see muon.py: of DeepSpeed's, those that one learning rate leaves
        return {"lr", "momentum", "betas", "eps", "weight_decay"}
    return _other_optimizer(kind, on_host)


def optimizer_names() -> list[str]:
    """What DeepSpeed takes for ``optimizer.type``."""
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    return sorted({"Adam", "AdamW", *DEEPSPEED_OPTIMIZERS, *_torch_optimizers()})


def _adam_of_deepspeed(on_host: bool) -> set[str]:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    # The engine passes adamw_mode itself; a second one in the file is an error.
    return _arguments(DeepSpeedCPUAdam if on_host else FusedAdam) - {"adamw_mode"}


def _other_optimizer(kind: str, on_host: bool) -> set[str]:
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion

    if kind.lower() == "lamb":
        return _arguments(FusedLamb) - {"max_grad_norm"}
    if kind.lower() == "lion":
        return _arguments(DeepSpeedCPULion if on_host else FusedLion)
    if kind.lower() == "adagrad":
        return _arguments(DeepSpeedCPUAdagrad if on_host else _torch_optimizers()["Adagrad"])
    return _arguments(_torch_optimizers()[kind]) if kind in _torch_optimizers() else set()


def _torch_optimizers() -> dict[str, type]:
    """DeepSpeed looks up any other name here, and minds the case of letters."""
    from torch import optim

    classes = {name: value for name, value in vars(optim).items() if inspect.isclass(value)}
    return {
        name: kind for name, kind in classes.items() if issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
    }


def _arguments(optimizer: type) -> set[str]:
    return set(inspect.signature(optimizer.__init__).parameters) - {"self", "params", "model_params"}


def _tree_of(model: type) -> dict:
    """Names and aliases of a pydantic model's fields; a field that is a model itself leads to that one's tree."""
    tree = {}
    for name, field in model.model_fields.items():
        inner = next(
            (kind for kind in (field.annotation, *get_args(field.annotation)) if hasattr(kind, "model_fields")), None
        )
        for key in filter(None, (name, field.alias)):
            tree[key] = _tree_of(inner) if inner else None
    return tree


def _put(tree: dict, place: str, section: dict) -> None:
    *parents, last = place.split(".")
    for key in parents:
        tree = tree[key]
    tree[last] = section
