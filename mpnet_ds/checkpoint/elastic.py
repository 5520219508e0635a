"""Going on from a checkpoint of another ZeRO stage, precision or number of ranks.

DeepSpeed loads a ZeRO checkpoint only where all three are as they were. Here each rank reads the shards of all ranks,
memory-mapped, one parameter at a time, and takes its own part: fp32 weights, the optimizer's states and its count of
updates. Weights in training precision follow from the fp32 ones, as after any update. Only the loss scale of fp16 begins
anew. The order of calls: ``load_weights``, ``deepspeed.initialize``, ``load_optimizer``.
"""

import math

import torch
from torch import Tensor, nn

from mpnet_ds.checkpoint.zero_shards import MASTER, ZeroCheckpoint
from mpnet_ds.errors import UserError


def load_weights(model: nn.Module, checkpoint: ZeroCheckpoint) -> None:
    """Fills a model that DeepSpeed has not seen yet."""
    weights = dict(checkpoint.named_tensors())
    weights |= {name: weights[source] for name, source in checkpoint.tied.items() if source in weights}
    model.load_state_dict(weights)


def load_optimizer(engine, checkpoint: ZeroCheckpoint) -> None:
    """Gives a new engine, around a model from ``load_weights``, the checkpoint's fp32 weights and optimizer states.

    Raises ``UserError`` where the optimizer keeps other states than the saved one.
    """
    stage = int(engine.zero_optimization_stage())
    _make_states(engine, stage, checkpoint)
    parameters = dict(engine.module.named_parameters())
    masters = _plain_masters(engine) if stage == 0 else {}
    for name, states in checkpoint.named_states():
        for key, value in states.items():
            if stage == 0:
                _set_plain(engine, masters[id(parameters[name])], value, key)
            elif stage == 3:
                _set_stage_3(parameters[name], value, key, engine)
            else:
                _set_stages_1_and_2(parameters[name], value, key)


def _make_states(engine, stage: int, checkpoint: ZeroCheckpoint) -> None:
    """The optimizer's states as they are after its first update, with the saved count of updates."""
    optimizer = _torch_optimizer(engine)
    for weights in _optimizer_weights(engine, stage):
        state = optimizer.state[weights]
        counts_on = weights.device if optimizer.defaults["fused"] else "cpu"
        state["step"] = torch.tensor(float(checkpoint.num_updates), device=counts_on)
        for name in checkpoint.state_names:
            state[name] = torch.zeros_like(weights, requires_grad=False)
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _torch_optimizer(engine) -> torch.optim.Optimizer:
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if not isinstance(optimizer, torch.optim.AdamW | torch.optim.Adam):
        raise UserError(
            f"a checkpoint of another ZeRO stage or number of ranks goes into torch's AdamW only, not into "
            f"{type(optimizer).__name__}: resume with the stage and ranks it was saved with."
        )
    return optimizer


def _optimizer_weights(engine, stage: int) -> list[Tensor]:
    """The fp32 tensors that the optimizer updates on this rank."""
    if stage == 3:
        return engine.optimizer.fp32_partitioned_groups_flat
    if stage:
        return engine.optimizer.single_partition_of_fp32_groups
    return [weights for group in _torch_optimizer(engine).param_groups for weights in group["params"]]


def _plain_masters(engine) -> dict[int, Tensor]:
    """At ZeRO 0: id of a module's parameter → the fp32 tensor that the optimizer updates, in fp32 the parameter itself."""
    masters = _optimizer_weights(engine, 0)
    groups = getattr(engine.optimizer, "fp16_groups", None)
    module = [parameter for group in groups for parameter in group] if groups else masters
    return {id(parameter): master for parameter, master in zip(module, masters, strict=True)}


@torch.no_grad()
def _set_plain(engine, master: Tensor, value: Tensor, key: str) -> None:
    target = master if key == MASTER else _torch_optimizer(engine).state[master][key]
    target.copy_(value)


def _set_stages_1_and_2(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if key == MASTER:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _set_stage_3(parameter: nn.Parameter, value: Tensor, key: str, engine) -> None:
    """DeepSpeed's own way from the whole tensor to a rank's part has no room for padding."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    part = math.ceil(value.numel() / ranks)
    padded = nn.functional.pad(value.flatten(), (0, part * ranks - value.numel()))
    local = padded[rank * part : (rank + 1) * part]
    if key == MASTER:
        safe_set_local_fp32_param(parameter, local)
    else:
        safe_set_local_optimizer_state(parameter, local, key)
