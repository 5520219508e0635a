"""Names of other programs for what a recipe or flag calls otherwise: transformers' Trainer first, fairseq and Megatron-LM.

They are answered with our name, and never taken: several mean something slightly different.
"""

from mpnet_ds.config.overrides import FLAGS

RECIPE_KEYS = {
    "per_device_train_batch_size": "optimization.micro_batch_size",
    "per_device_eval_batch_size": "optimization.micro_batch_size",
    "per_gpu_train_batch_size": "optimization.micro_batch_size",
    "gradient_accumulation_steps": "optimization.global_batch_size",
    "update_freq": "optimization.global_batch_size",
    "train_batch_size": "optimization.global_batch_size",
    "num_train_epochs": "optimization.max_steps",
    "max_update": "optimization.max_steps",
    "train_iters": "optimization.max_steps",
    "warmup_ratio": "optimization.warmup_steps",
    "warmup_updates": "optimization.warmup_steps",
    "lr": "optimization.learning_rate",
    "adam_beta1": "optimization.betas",
    "adam_beta2": "optimization.betas",
    "adam_betas": "optimization.betas",
    "adam_epsilon": "optimization.eps",
    "adam_eps": "optimization.eps",
    "max_grad_norm": "optimization.gradient_clipping",
    "clip_norm": "optimization.gradient_clipping",
    "bf16": "optimization.precision",
    "logging_steps": "run.log_interval",
    "eval_steps": "run.eval_interval",
    "save_steps": "run.save_interval",
    "save_total_limit": "run.keep",
    "data_seed": "run.seed",
    "max_seq_length": "data.seq_length",
    "block_size": "data.seq_length",
    "tokens_per_sample": "data.seq_length",
    "mlm_probability": "objective.masking.predicted_fraction",
    "mask_prob": "objective.masking.predicted_fraction",
    "mask_replace_prob": "objective.masking.mask_probability",
    "random_replace_prob": "objective.masking.random_probability",
}
"""Their name → our key of a recipe."""
PROGRAM_FLAGS = {
    "resume_from_checkpoint": "--resume",
    "model_name_or_path": "--init_from",
    "train_file": "--data",
    "dataset_name": "--data",
    "validation_file": "--eval_data",
    "torch_compile": "--compile",
    "attn_implementation": "--attention",
}
"""Their name → our flag, for what a recipe does not say."""
OTHERWISE = {
    "lr_scheduler_type": "the learning rate rises over optimization.warmup_steps and falls linearly until max_steps",
    "lr_scheduler": "the learning rate rises over optimization.warmup_steps and falls linearly until max_steps",
    "fp16": 'take DeepSpeed\'s JSON with "fp16": {"enabled": true}, such as ds_configs/fp16.json',
    "optim": "DeepSpeed's JSON chooses the optimizer, by optimizer.type",
    "gradient_checkpointing": "take ds_configs/activation_checkpointing.json",
    "report_to": "sections of DeepSpeed's JSON (tensorboard, wandb, csv_monitor, comet) say where metrics go",
    "overwrite_output_dir": "a run is never overwritten; take another --output_dir, or continue it with --resume auto",
}
"""Their name → what does it here."""
OF_LAUNCHERS = (
    *("num_gpus", "num_accelerators", "num_nodes", "include", "exclude", "hostfile", "master_addr", "master_port"),
    *("ssh_port", "launcher", "launcher_args", "nproc_per_node", "nnodes", "node_rank", "max_restarts", "standalone"),
    *("rdzv_id", "rdzv_backend", "rdzv_endpoint"),
)
"""Flags of ``deepspeed`` and ``torchrun``."""
MEANING = {
    "gradient_accumulation_steps": "the sequences of a step: micro batch × accumulation steps × ranks",
    "update_freq": "the sequences of a step: micro batch × accumulation steps × ranks",
    "num_train_epochs": "a number of steps; --dry_run says how many make an epoch",
    "warmup_ratio": "a number of steps",
}
"""Their name → what ours counts, where it is not the same."""


def our_name(name: str) -> str | None:
    """What to write instead of another program's ``name``, as the end of a message; None where it is not known."""
    name = name.lstrip("-").replace("-", "_")
    if name in OTHERWISE:
        text = OTHERWISE[name]
        return f"{text[0].upper()}{text[1:]}."
    if name in PROGRAM_FLAGS:
        return f"Use {PROGRAM_FLAGS[name]}."
    if name not in RECIPE_KEYS:
        return None
    key = RECIPE_KEYS[name]
    flag = f" (flag {FLAGS[key]})" if key in FLAGS else ""
    meaning = f", {MEANING[name]}" if name in MEANING else ""
    return f"Use {key}{flag}{meaning}."
