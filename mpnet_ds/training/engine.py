"""A DeepSpeed engine as the trainer uses it, the same for every ZeRO stage and precision.

DeepSpeed's ZeRO and 16-bit optimizers skip a step whose gradient norm is not finite. In fp32 at ZeRO 0
nothing does: the plain optimizer would write NaN into every weight. ``Engine`` closes that gap.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mpnet_ds import deepspeed_workarounds
from mpnet_ds.config.deepspeed_config import EngineConfig
from mpnet_ds.errors import UserError
from mpnet_ds.models.module import PretrainingModule, Scores
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.training.activation_checkpointing import checkpoint_layers
from mpnet_ds.training.compilation import compile_layers
from mpnet_ds.training.muon import make_muon
from mpnet_ds.zero.checkpoint_reader import ZeroCheckpoint
from mpnet_ds.zero.load_converted import load_optimizer

SCALE = "learning_rate_scale"
"""Key of an optimizer group: factor on the schedule's learning rate."""


class Engine:
    """A DeepSpeed engine around a model.

    Args:
        disks: where checkpoints go; None: one disk that all ranks share.
        compiled: compile the layers, see ``compilation.py``.

    Attributes:
        deepspeed: the engine itself.
        applied: whether the last step changed the weights; False if a gradient was NaN or infinite, or the step left out.
        grad_norm: of the last step's gradient over all ranks, before clipping; a float, a scalar tensor or None.
        learning_rate: of the next step, before the scale of a parameter group; 0 until it is set.
        span: ``with span("backward"):`` names a part of the work for a profiler; does nothing by default.
    """

    def __init__(
        self,
        module: PretrainingModule,
        config: EngineConfig,
        weight_decay: float,
        disks: Disks | None = None,
        compiled: bool = False,
    ):
        from mpnet_ds.checkpoint.shard_files import ShardFiles, save_on_each_disk

        self.deepspeed = build_engine(module, config, weight_decay, compiled)
        deepspeed_workarounds.replace_file_access(self.deepspeed, ShardFiles())
        if disks is not None:
            save_on_each_disk(self.deepspeed, disks)
        deepspeed_workarounds.undo_first_step(self.deepspeed.optimizer)
        deepspeed_workarounds.take_norms_at_once(self.deepspeed.optimizer)
        deepspeed_workarounds.step_at_once(self.deepspeed.optimizer)
        self.applied = True
        self.learning_rate = 0.0
        self.span: Callable[[str], AbstractContextManager] = lambda name: nullcontext()
        self.grad_norm: Tensor | float | None = None
        self._is_plain = isinstance(self.deepspeed.optimizer, torch.optim.Optimizer)
        if self._is_plain:
            deepspeed_workarounds.step_only_if(self.deepspeed.optimizer, lambda: self.applied)
            deepspeed_workarounds.clip_to_norm(self.deepspeed, lambda: self.grad_norm)

    def load(self, checkpoint: Path, convert: bool) -> None:
        """Resume from a checkpoint: weights, optimizer states, counters. The recipe's betas and weight decay stay.

        Args:
            convert: it was saved with another optimizer, ZeRO stage, precision or number of ranks; the model already has
                its weights.
        """
        settings = [dict(group) for group in self.deepspeed.optimizer.param_groups]
        if convert:
            load_optimizer(self.deepspeed, ZeroCheckpoint(checkpoint))
        else:
            path, _ = self.deepspeed.load_checkpoint(str(checkpoint.parent), checkpoint.name, load_lr_scheduler_states=False)
            if path is None:
                raise UserError(f"DeepSpeed could not load {checkpoint}.")
        for group, before in zip(self.deepspeed.optimizer.param_groups, settings, strict=True):
            group.update({name: value for name, value in before.items() if name != "params"})

    def forward(self, batch: dict[str, Tensor]) -> Scores:
        """Compute the module's scores of one micro-batch."""
        with self.span("forward"):
            return self.deepspeed(**batch)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; the one that completes the global batch updates the weights.

        If ``loss`` is not finite, the whole step is skipped.
        """
        with self.span("backward"):
            # Some infinite losses have finite gradients; none has after multiplication by NaN.
            self.deepspeed.backward(loss * torch.where(torch.isfinite(loss), 1.0, torch.nan))
        with self.span("optimizer"):
            self._step()

    def _step(self) -> None:
        """Update the weights if the last micro-batch completed the global batch."""
        completes = self.deepspeed.is_gradient_accumulation_boundary()
        if completes and self._is_plain:
            gradients = [parameter.grad for parameter in self.deepspeed.module.parameters() if parameter.grad is not None]
            self.grad_norm = nn.utils.get_total_norm(gradients)
            self.applied = bool(torch.isfinite(self.grad_norm))
        self.deepspeed.step()
        if completes and not self._is_plain:
            self.grad_norm = self.deepspeed.get_global_grad_norm()
            self.applied = self.deepspeed.was_step_applied()

    def skip(self) -> None:
        """Leave out a step: nothing is computed, no weight and no state of the optimizer changes."""
        self.applied, self.grad_norm = False, None

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the next step, for each parameter group times its scale."""
        self.learning_rate = rate
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate * group.get(SCALE, 1.0)

    @property
    def loss_scale(self) -> float:
        """Loss scale; 1 except in fp16."""
        return float(getattr(self.deepspeed.optimizer, "cur_scale", 1.0))


def build_engine(module: PretrainingModule, config: EngineConfig, weight_decay: float, compiled: bool = False):
    """Build DeepSpeed's engine around a module, with activation checkpointing where the JSON has that section."""
    import deepspeed

    if compiled:
        compile_layers(module, config.zero_stage)
    checkpoint_layers(module, config.engine)
    groups, engine_config, optimizer = parameter_groups(module, weight_decay), dict(config.engine), None
    if config.uses_muon:
        optimizer = partial(make_muon, module, engine_config.pop("optimizer")["params"])
    deepspeed_workarounds.leave_out_compiler()
    deepspeed_workarounds.leave_out_triton()
    for parameter in module.external_parameters():
        deepspeed.zero.register_external_parameter(module, parameter)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, model_parameters=groups, config=engine_config)
    return engine


def parameter_groups(module: PretrainingModule, weight_decay: float) -> list[dict]:
    """Split each of the module's groups in two: matrices with weight decay, biases and LayerNorm without."""
    groups = [
        {
            "params": [p for p in group.parameters if (p.ndim >= 2) is has_decay],
            "weight_decay": decay,
            SCALE: group.learning_rate_scale,
        }
        for group in module.groups()
        for has_decay, decay in ((True, weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]
