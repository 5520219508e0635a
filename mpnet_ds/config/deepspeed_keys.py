"""What becomes of each key that DeepSpeed's JSON may hold: served, harmless or refused.

DeepSpeed passes over unknown keys of its top level in silence, and over known ones that a program does not drive. So every
key of DeepSpeed is decided here. A test compares these tables with what the installed DeepSpeed knows: a key of a later
release fails it until somebody decides.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

MICRO, ACCUMULATION, GLOBAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"
MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")


def _whole(value: Any) -> Any:
    """A number without a fraction as an integer: JSON writes 5e8, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Flag, Text = bool, str
Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=2**63 - 1)]
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0, le=2**63 - 1)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Device = Literal["none", "cpu"]
Level = Literal["debug", "info", "warning", "error", "critical"]


def keys_by_kind(*kinds: tuple[Any, str]) -> dict[str, Any]:
    """Key → what its value must be, from pairs of that and keys, divided by blanks."""
    return {name: kind for kind, names in kinds for name in names.split()}


_FILES = keys_by_kind((Flag, "enabled"), (Text, "output_path job_name"))
_OFFLOAD = keys_by_kind((Device, "device"), (Flag, "pin_memory"))

SERVED: Mapping[str, Mapping[str, Any]] = {
    "": keys_by_kind(
        (Count, f"{MICRO} {ACCUMULATION} {GLOBAL}"),
        (Number, "gradient_clipping"),
        (Literal["fp32", "bf16", "fp16"] | None, "communication_data_type"),
        (Flag, "wall_clock_breakdown"),
        (Level, "log_level"),
    ),
    "optimizer": keys_by_kind((Text, "type"), (dict, "params")),
    "bf16": keys_by_kind((Flag, "enabled")),
    "fp16": keys_by_kind(
        (Flag, "enabled consecutive_hysteresis"),
        (Number, "loss_scale"),
        (Annotated[Whole, Field(le=126)], "initial_scale_power"),
        (Count, "loss_scale_window hysteresis min_loss_scale"),
    ),
    "data_types": keys_by_kind((Literal["fp32", "bf16", "fp16"] | None, "grad_accum_dtype")),
    "zero_optimization": keys_by_kind(
        (Annotated[Whole, Field(le=3)], "stage"),
        (Count, "reduce_bucket_size sub_group_size"),
        (Annotated[Whole, Field(multiple_of=2)], "allgather_bucket_size"),
        (Whole, "stage3_prefetch_bucket_size stage3_param_persistence_threshold"),
        (Whole, "stage3_model_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance"),
        (Flag, "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce round_robin_gradients"),
        (Flag, "parameter_alignment stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential"),
        (Flag, "log_trace_cache_warnings enable_sanity_checks"),
        (Flag | None, "overlap_comm cpu_offload cpu_offload_param"),
    ),
    "zero_optimization.offload_param": _OFFLOAD,
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "activation_checkpointing": keys_by_kind(
        (Flag, "partition_activations contiguous_memory_optimization cpu_checkpointing synchronize_checkpoint_boundary"),
        (Flag, "profile"),
        (Count | None, "number_checkpoints"),
    ),
    "flops_profiler": keys_by_kind(
        (Flag, "enabled detailed"),
        (Number, "recompute_fwd_factor"),
        (Count, "profile_step top_modules"),
        (Annotated[int, BeforeValidator(_whole), Field(ge=-1)], "module_depth"),
    ),
    **{place: {} for place in ("aio", "checkpoint", "timers", "timers.throughput")},  # harmless or refused ones
    "tensorboard": _FILES,
    "csv_monitor": _FILES,
    "wandb": keys_by_kind((Flag, "enabled"), (Text, "project"), (Text | None, "group team")),
    "comet": keys_by_kind(
        (Flag, "enabled"),
        (Count, "samples_log_interval"),
        (Flag | None, "online"),
        (Text | None, "project workspace api_key experiment_name experiment_key"),
        (Literal["get", "create", "get_or_create"] | None, "mode"),
    ),
}
"""Section → its keys that do here what DeepSpeed says of them, each with what its value must be: nothing is made of another
kind of value. ``""`` is the top level; None is allowed where DeepSpeed has it as default."""
OPTIONAL = ("zero_optimization.offload_param", "zero_optimization.offload_optimizer")
"""Sections that may be null, as if they were left out."""

_GATHERS = "it is for save_16bit_model; exports are made of the shards"
_NVME = "only read where states are offloaded to nvme, which is refused"
_NVME_KEYS = {
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "zero_optimization.offload_param": "nvme_path buffer_count buffer_size max_in_cpu",
    "zero_optimization.offload_optimizer": "nvme_path buffer_count pipeline_read pipeline_write fast_init",
}
HARMLESS = {
    "steps_per_print": "metrics.jsonl and the terminal report every run.log_interval steps",
    "timers.throughput.enabled": "metrics.jsonl has the throughput",
    "timers.throughput.synchronized": "metrics.jsonl has the throughput",
    "vocabulary_size": "DeepSpeed only warns by it",
    "zero_allow_untested_optimizer": "every optimizer that is served here is tested with ZeRO",
    "zero_force_ds_cpu_optimizer": "only asked for where a program brings an optimizer of its own",
    **{f"{place}.{key}": _NVME for place, keys in _NVME_KEYS.items() for key in keys.split()},
    "checkpoint.tag_validation": "all ranks save under one tag, the step",
    "bf16.immediate_grad_update": "only read by an optimizer that is not used here",
    "fp16.auto_cast": "batches hold no floating-point numbers",
    "zero_optimization.allgather_partitions": "DeepSpeed no longer reads it",
    "zero_optimization.memory_efficient_linear": "only read while a model is built inside zero.Init",
    "zero_optimization.override_module_apply": "only read while a model is built inside zero.Init",
    "zero_optimization.gather_16bit_weights_on_model_save": _GATHERS,
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": _GATHERS,
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": _GATHERS,
}
"""Keys that files elsewhere have, and that are left out: key → why that changes nothing."""

_REMOVED = "DeepSpeed no longer has it"
_EXPERTS = "no model here has experts"
_WRITER = "this program writes the files of checkpoints itself"
_MASTER = "checkpoints hold fp32 master weights and optimizer states, from which a run resumes in any precision"
_DTYPES = "bf16.enabled and fp16.enabled are the precision"
_KERNELS = "DeepSpeed would compile kernels for it at the first step"
_PLUS = "checkpoints and exact resume are not tested with ZeRO++"
_ONE_NAME = (
    "prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance "
    "module_granularity_threshold use_all_reduce_for_fetch_params allgather_sequential"
)
REFUSED = {
    "scheduler": "the recipe's optimization.warmup_steps and max_steps are the schedule",
    "data_efficiency": "the recipe's data section says which samples are drawn",
    "dataloader_drop_last": "the recipe's data section says which samples are drawn",
    "compile": "nothing calls DeepSpeed's compiler; --compile compiles the layers with torch.compile",
    "autotuning": "no autotuner is run; --dry_run says what a micro-batch takes of the memory",
    "tensor_parallel": "models here are not split inside their layers; ZeRO 3 splits weights among ranks",
    "pipeline": "models here are not pipelines; ZeRO 3 splits weights among ranks",
    "seq_parallel_communication_data_type": "sequences are not split among ranks",
    "expert_parallel": _EXPERTS,
    "use_data_before_expert_parallelism": _EXPERTS,
    "hybrid_engine": "it is for reinforcement learning",
    "weight_quantization": "it is for inference",
    "prescale_gradients": "gradients are divided by the number of ranks once, when they are summed",
    "gradient_predivide_factor": "gradients are divided by the number of ranks once, when they are summed",
    "torch_autocast": _DTYPES,
    "data_types.param_dtype": _DTYPES,
    "data_types.buffer_dtype": _DTYPES,
    "data_types.keep_in_fp32_modules": _DTYPES,
    "optimizer.legacy_fusion": "it is for DeepSpeed's own Adam; PyTorch's is used here",
    "bfloat16": "the section is called bf16",
    "bf16.check_grad_overflow": "a step whose gradient is not finite is skipped",
    "bf16.bf16_master_weights_and_grads": _MASTER,
    "bf16.bf16_optimizer_states": _MASTER,
    "fp16.fp16_master_weights_and_grads": _MASTER,
    "flops_profiler.output_file": "the profile is printed",
    "gradient_allreduce_op": "losses are divided by the targets of the global batch, which needs the mean",
    "managed_gradient_accumulation": "steps are counted by DeepSpeed's accumulation",
    "disable_allgather": "DeepSpeed does not read it",
    "disable_python_gc": "the trainer keeps garbage collection out of the steps already",
    "comms_logger": "nothing prints its summary; --profile traces communication",
    "memory_breakdown": "it would print nothing; metrics.jsonl has the memory in use",
    "dump_state": "it would print nothing; --dry_run prints the resolved configuration",
    "datastates_ckpt": _WRITER,
    "checkpoint.checkpoint_serialization": _WRITER,
    "checkpoint.writer": _WRITER,
    "checkpoint.parallel_write": _WRITER,
    "checkpoint.use_node_local_storage": "ranks find out by themselves whether their hosts share a disk",
    "checkpoint.load_universal": "a run resumes with other ranks, stages and precisions without it",
    "zero_optimization.compute_grad_norm": "a step is skipped by the norm of its gradient",
    "zero_optimization.elastic_checkpoint": "a run resumes with another number of ranks without it",
    "zero_optimization.load_from_fp32_weights": "a run resumes from its fp32 master weights",
    "zero_optimization.ignore_unused_parameters": "a step may leave parameters without a gradient",
    "zero_optimization.pipeline_loading_checkpoint": "a run resumes from files that each rank reads itself",
    "zero_optimization.leaf_module": _EXPERTS,
    "zero_optimization.stage3_module_granularity_threshold": _EXPERTS,
    "zero_optimization.zero_hpz_partition_size": _PLUS,
    "zero_optimization.zero_quantized_weights": _PLUS,
    "zero_optimization.zero_quantized_nontrainable_weights": _PLUS,
    "zero_optimization.zero_quantized_gradients": _PLUS,
    "zero_optimization.offload_optimizer.ratio": _KERNELS,
    "zero_optimization.offload_optimizer.super_offload": _KERNELS,
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": _KERNELS,
    "zero_optimization.legacy_stage1": _REMOVED,
    **{f"zero_optimization.{name}": f"the key is called stage3_{name}" for name in _ONE_NAME.split()},
    "zero_optimization.cpu_offload_use_pin_memory": "write pin_memory inside offload_optimizer",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "Muon runs at ZeRO 0 here, with its momentum on the device",
    "zero_optimization.zenflow": "it delays parts of a step, for which skipped steps and exact resume are not made",
    **dict.fromkeys(
        ("nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue"), _REMOVED
    ),
    **dict.fromkeys(("sparse_attention", "elasticity", "graph_harvesting", "curriculum_learning"), _REMOVED),
    "progressive_layer_drop": _REMOVED,
}
"""Keys, whole sections among them, that would have no effect or one that breaks something: key → why."""
USUAL = {
    "gradient_allreduce_op": "mean",
    "gradient_predivide_factor": 1,
    "managed_gradient_accumulation": True,
    "checkpoint.checkpoint_serialization": True,
    "bf16.check_grad_overflow": True,
    "zero_optimization.compute_grad_norm": True,
    "zero_optimization.load_from_fp32_weights": True,
    "zero_optimization.ignore_unused_parameters": True,
    "zero_optimization.zero_hpz_partition_size": 1,
    "zero_optimization.stage3_module_granularity_threshold": 0,
    "zero_optimization.offload_optimizer.ratio": 1,
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": 0.8,
}
"""Of these, the value that asks for nothing, where it is not false."""


def is_off(key: str, value: Any) -> bool:
    """Whether the value of a refused key asks for nothing: such a key is left out rather than refused."""
    if isinstance(value, dict):
        switches = [value[name] for name in ("enabled", "deepcompile") if name in value]
        return not value or (bool(switches) and all(switch is False for switch in switches))
    usual = USUAL.get(key, False)
    return value is None or (isinstance(value, bool) is isinstance(usual, bool) and value == usual)


def keys_of_section(place: str) -> set[str]:
    """Keys that a section of ``SERVED`` may hold: served, harmless or refused ones, and the sections inside it."""
    others = (key.rpartition(".") for key in (*SERVED, *HARMLESS, *REFUSED) if key)
    return {*SERVED[place], *(name for parent, _, name in others if parent == place)}
