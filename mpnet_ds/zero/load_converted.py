"""Resuming from a checkpoint of another ZeRO stage, precision or number of ranks.

DeepSpeed loads a ZeRO checkpoint only where all three are as they were. Here each rank reads the shards of all ranks, one
parameter at a time, and takes its own partition: fp32 master weights, optimizer states and the optimizer's step count.
Weights in training precision follow from the fp32 ones, as after any step. Only the loss scale of fp16 starts again. The
order of calls: ``load_weights``, ``deepspeed.initialize``, ``load_optimizer``.
"""

import math

import torch
from torch import Tensor, nn

from mpnet_ds.errors import UserError
from mpnet_ds.zero.checkpoint_reader import MASTER, ZeroCheckpoint


def load_weights(model: nn.Module, checkpoint: ZeroCheckpoint) -> None:
    """Fill a model that DeepSpeed has not seen yet."""
    model.load_state_dict(checkpoint.weights.load())


def load_optimizer(engine, checkpoint: ZeroCheckpoint) -> None:
    """Fill the optimizer of a new engine, around a model from ``load_weights``, with the checkpoint's states.

    Raises ``UserError`` where the optimizer keeps other states than the saved one.
    """
    stage = int(engine.zero_optimization_stage())
    if set(checkpoint.state_names) != {"exp_avg", "exp_avg_sq"}:
        found = ", ".join(checkpoint.state_names) or "none"
        raise UserError(f"{checkpoint.folder}: its optimizer is not AdamW (states: {found}): resume as it was saved.")
    _make_states(engine, stage, checkpoint)
    parameters = dict(engine.module.named_parameters())
    masters = _plain_master_weights(engine) if stage == 0 else {}
    offsets = _group_offsets(engine) if stage in (1, 2) else {}
    for name, states in checkpoint.named_states():
        for key, value in states.items():
            if stage == 0:
                _set_plain(engine, masters[id(parameters[name])], value, key)
            elif stage == 3:
                _set_stage_3(parameters[name], value, key, engine)
            else:
                _set_stages_1_and_2(engine, *offsets[id(parameters[name])], value, key)


def _make_states(engine, stage: int, checkpoint: ZeroCheckpoint) -> None:
    """Create the optimizer's states as its first step would, with the saved step count."""
    optimizer = _torch_optimizer(engine)
    for weights in _optimizer_weights(engine, stage):
        state = optimizer.state[weights]
        counts_on = weights.device if optimizer.defaults["fused"] else "cpu"
        state["step"] = torch.tensor(float(checkpoint.num_steps), device=counts_on)
        for name in checkpoint.state_names:
            state[name] = torch.zeros_like(weights, requires_grad=False)


def _torch_optimizer(engine) -> torch.optim.Optimizer:
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if not isinstance(optimizer, torch.optim.AdamW | torch.optim.Adam):
        raise UserError(
            f"a checkpoint of another optimizer, ZeRO stage or number of ranks goes into torch's AdamW only, not into "
            f"{type(optimizer).__name__}: resume with what it was saved with."
        )
    return optimizer


def _optimizer_weights(engine, stage: int) -> list[Tensor]:
    """List the fp32 tensors that the optimizer updates on this rank."""
    if stage == 3:
        return engine.optimizer.fp32_partitioned_groups_flat
    if stage:
        return engine.optimizer.single_partition_of_fp32_groups
    return [weights for group in _torch_optimizer(engine).param_groups for weights in group["params"]]


def _plain_master_weights(engine) -> dict[int, Tensor]:
    """Map the id of a parameter to the fp32 tensor that the optimizer updates (ZeRO 0); in fp32 to itself."""
    masters = _optimizer_weights(engine, 0)
    groups = getattr(engine.optimizer, "fp16_groups", None)
    module = [parameter for group in groups for parameter in group] if groups else masters
    return {id(parameter): master for parameter, master in zip(module, masters, strict=True)}


@torch.no_grad()
def _set_plain(engine, master: Tensor, value: Tensor, key: str) -> None:
    target = master if key == MASTER else _torch_optimizer(engine).state[master][key]
    target.copy_(value)


def _group_offsets(engine) -> dict[int, tuple[int, int]]:
    """Map the id of a parameter to its group and its offset in the group's flat tensor (ZeRO 1 and 2)."""
    groups = zip(engine.optimizer.round_robin_bit16_groups, engine.optimizer.round_robin_bit16_offsets, strict=True)
    return {
        id(parameter): (number, offset)
        for number, (parameters, offsets) in enumerate(groups)
        for parameter, offset in zip(parameters, offsets, strict=True)
    }


def _set_stages_1_and_2(engine, group: int, offset: int, value: Tensor, key: str) -> None:
    """Copy what this rank holds of ``value`` (DeepSpeed's own function confuses parameters with round_robin_gradients)."""
    zero = engine.optimizer
    target = zero.single_partition_of_fp32_groups[group]
    if key != MASTER:
        target = zero.optimizer.state[target][key]
    rank = torch.distributed.get_rank(group=zero.real_dp_process_group[group])
    begin = offset - rank * int(zero.partition_size[group])
    first, last = max(0, begin), min(target.numel(), begin + value.numel())
    if first < last:
        target.data[first:last].copy_(value.flatten()[first - begin : last - begin])


def _set_stage_3(parameter: nn.Parameter, value: Tensor, key: str, engine) -> None:
    """Copy this rank's partition of ``value`` (DeepSpeed's own function has no room for padding)."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    part = math.ceil(value.numel() / ranks)
    padded = nn.functional.pad(value.flatten(), (0, part * ranks - value.numel()))
    local = padded[rank * part : (rank + 1) * part]
    if key == MASTER:
        safe_set_local_fp32_param(parameter, local)
    else:
        safe_set_local_optimizer_state(parameter, local, key)
