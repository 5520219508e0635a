"""What becomes of each key that DeepSpeed's JSON may hold: served, harmless or refused.

DeepSpeed passes over unknown keys of its top level in silence, and over known ones that a program does not drive. So every
key of DeepSpeed is decided here. A test compares these tables with what the installed DeepSpeed knows: a key of a later
release fails it until somebody decides.
"""

MICRO, ACCUMULATION, GLOBAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"
MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")
_BF16 = "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"
_WRITES = "enabled output_path job_name"

SERVED = {
    "": f"""
        {MICRO} {ACCUMULATION} {GLOBAL} gradient_clipping prescale_gradients gradient_predivide_factor
        communication_data_type zero_allow_untested_optimizer wall_clock_breakdown log_level
    """,
    "optimizer": "type params legacy_fusion",
    "bf16": _BF16,
    "bfloat16": _BF16,
    "fp16": """
        enabled loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis min_loss_scale
        fp16_master_weights_and_grads
    """,
    "torch_autocast": "enabled dtype lower_precision_safe_modules",
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "zero_optimization": """
        stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce allgather_bucket_size
        overlap_comm load_from_fp32_weights sub_group_size cpu_offload cpu_offload_param prefetch_bucket_size
        stage3_prefetch_bucket_size param_persistence_threshold stage3_param_persistence_threshold
        model_persistence_threshold stage3_model_persistence_threshold max_live_parameters stage3_max_live_parameters
        max_reuse_distance stage3_max_reuse_distance module_granularity_threshold stage3_module_granularity_threshold
        use_all_reduce_for_fetch_params stage3_use_all_reduce_for_fetch_params allgather_sequential
        stage3_allgather_sequential ignore_unused_parameters round_robin_gradients parameter_alignment
        zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients
        pipeline_loading_checkpoint log_trace_cache_warnings enable_sanity_checks
    """,
    "zero_optimization.offload_param": "device nvme_path buffer_count buffer_size max_in_cpu pin_memory",
    "zero_optimization.offload_optimizer": """
        device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio super_offload
        cpuadam_cores_perc
    """,
    "zero_optimization.leaf_module": "classes names name_suffixes",
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "activation_checkpointing": """
        partition_activations contiguous_memory_optimization cpu_checkpointing number_checkpoints
        synchronize_checkpoint_boundary profile
    """,
    "checkpoint": "tag_validation",
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file",
    "timers": "",
    "timers.throughput": "enabled synchronized",
    "tensorboard": _WRITES,
    "csv_monitor": _WRITES,
    "wandb": "enabled group team project",
    "comet": "enabled samples_log_interval project workspace api_key experiment_name experiment_key online mode",
}
"""Section → its keys that do here what DeepSpeed says of them; ``""`` is the top level."""

_GATHERS = "it is for save_16bit_model; exports are made of the shards"
HARMLESS = {
    "steps_per_print": "metrics.jsonl and the terminal report every run.log_interval steps",
    "vocabulary_size": "DeepSpeed only warns by it",
    "zero_force_ds_cpu_optimizer": "only asked for where a program brings an optimizer of its own",
    "fp16.auto_cast": "batches hold no floating-point numbers",
    "zero_optimization.allgather_partitions": "DeepSpeed no longer reads it",
    "zero_optimization.memory_efficient_linear": "only read while a model is built inside zero.Init",
    "zero_optimization.override_module_apply": "only read while a model is built inside zero.Init",
    "zero_optimization.gather_16bit_weights_on_model_save": _GATHERS,
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": _GATHERS,
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": _GATHERS,
}
"""Keys that are taken and change nothing: key → why that misleads nobody. Files that are common elsewhere have them."""

_REMOVED = "DeepSpeed no longer has it"
_EXPERTS = "no model here has experts"
_WRITER = "this program writes the files of checkpoints itself"
REFUSED = {
    "scheduler": "the recipe's optimization.warmup_steps and max_steps are the schedule",
    "data_efficiency": "the recipe's data section says which samples are drawn",
    "dataloader_drop_last": "the recipe's data section says which samples are drawn",
    "compile": "nothing calls DeepSpeed's compiler; --compile compiles the layers with torch.compile",
    "autotuning": "no autotuner is run; --dry_run says what a micro-batch takes of the memory",
    "tensor_parallel": "models here are not split inside their layers; ZeRO 3 splits weights among ranks",
    "pipeline": "models here are no pipelines; ZeRO 3 splits weights among ranks",
    "seq_parallel_communication_data_type": "sequences are not split among ranks",
    "expert_parallel": _EXPERTS,
    "use_data_before_expert_parallelism": _EXPERTS,
    "hybrid_engine": "it is for reinforcement learning",
    "weight_quantization": "it is for inference",
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
    "zero_optimization.legacy_stage1": _REMOVED,
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
SWITCHED_ON = ("managed_gradient_accumulation", "checkpoint.checkpoint_serialization", "zero_optimization.compute_grad_norm")
"""Of these, keys whose ordinary value is true."""


def is_off(key: str, value) -> bool:
    """Whether the value of a refused key asks for nothing: such a key is left out rather than refused."""
    if isinstance(value, dict):
        switches = {name: value[name] for name in ("enabled", "deepcompile") if name in value}
        return not value or (bool(switches) and not any(switches.values()))
    return value is (key in SWITCHED_ON) or value is None or (key == "gradient_allreduce_op" and value == "mean")


def keys_of_section(place: str) -> set[str]:
    """Keys that a section of ``SERVED`` may hold: served, harmless or refused ones, and the sections inside it."""
    others = (key.rpartition(".") for key in (*SERVED, *HARMLESS, *REFUSED) if key)
    return {*SERVED[place].split(), *(name for parent, _, name in others if parent == place)}
