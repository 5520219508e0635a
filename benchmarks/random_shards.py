"""A checkpoint in DeepSpeed's layout of ZeRO 2 or 3, bf16 training with AdamW, of a model of any size, without training.

The model has BERT's shapes, and no tied weights: DeepSpeed 0.19.8's tool cannot write those into safetensors. Numbers
repeat one block of a million random ones, from a different offset for each group: cheap, not constant, and the 16-bit
weights are the fp32 ones rounded. One shard is in memory at a time: 12 bytes for each of its parameters.
"""

import math
from collections import OrderedDict
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

VOCAB_SIZE, POSITIONS = 30527, 514
BLOCK = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
COMMON = {"ds_config": {"bf16": {"enabled": True}}, "ds_version": "0.19.8"}
Shapes = OrderedDict[str, torch.Size]


def make_shards(folder: Path, parameters: int, stage: int, ranks: int) -> int:
    """Write the files of ``folder`` (ZeRO ``stage`` 2 or 3, ``ranks`` shards); return the number of parameters."""
    folder.mkdir(parents=True)
    groups = shapes(parameters)
    module, save = OrderedDict(), {2: _shard_of_stage_2, 3: _shard_of_stage_3}[stage]
    for number, group in enumerate(groups):
        for name, shape, start in placed(group):
            whole = numbers(number, start, shape.numel()).view(shape) if stage == 2 else torch.empty(0)
            module[name] = whole.bfloat16()
    model = {"module": module, "buffer_names": [], "optimizer": None, "param_shapes": groups, "shared_params": {}}
    model |= {"frozen_param_shapes": None, "frozen_param_fragments": None, "lr_scheduler": None, "skipped_steps": 0}
    model |= {"global_steps": 3, "dp_world_size": ranks, "mp_world_size": 1} | COMMON
    for rank in range(ranks):
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(model, folder / f"{prefix}mp_rank_00_model_states.pt")
        shard = {"optimizer_state_dict": save(groups, rank, ranks)} | COMMON
        torch.save(shard, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (folder.parent / "latest").write_text(folder.name)
    return sum(shape.numel() for group in groups for shape in group.values())


def shapes(parameters: int) -> list[Shapes]:
    """Choose two groups, matrices and vectors, of a model of about that many parameters and at least one layer."""
    width = next(width for width, most in ((64, 1e7), (768, 2e8), (1024, 6e8), (1536, 1e12)) if parameters < most)
    found = {"embeddings.words.weight": (VOCAB_SIZE, width), "embeddings.positions.weight": (POSITIONS, width)}
    for layer in range(max(1, round((parameters - VOCAB_SIZE * width) / (12 * width**2)))):
        for name in ("q", "k", "v", "o"):
            found[f"layers.{layer}.{name}.weight"], found[f"layers.{layer}.{name}.bias"] = (width, width), (width,)
        found[f"layers.{layer}.up.weight"], found[f"layers.{layer}.up.bias"] = (4 * width, width), (4 * width,)
        found[f"layers.{layer}.down.weight"], found[f"layers.{layer}.down.bias"] = (width, 4 * width), (width,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            found[f"layers.{layer}.{name}"] = (width,)
    found["head.decoder.bias"] = (VOCAB_SIZE,)
    is_matrix = {True: OrderedDict(), False: OrderedDict()}
    for name, shape in found.items():
        is_matrix[len(shape) == 2][name] = torch.Size(shape)
    return [is_matrix[True], is_matrix[False]]


def placed(group: Shapes) -> list[tuple[str, torch.Size, int]]:
    """List (name, shape, offset in the flat vector) of a group's parameters."""
    start, found = 0, []
    for name, shape in group.items():
        found.append((name, shape, start))
        start += shape.numel()
    return found


def numbers(group: int, start: int, count: int) -> Tensor:
    """Return the flat vector's numbers ``start`` … ``start + count - 1``, fp32."""
    first = (start + 77_777 * group) % BLOCK.numel()
    repeats = math.ceil((first + count) / BLOCK.numel())
    return BLOCK.repeat(repeats)[first : first + count].clone() if repeats > 1 else BLOCK[first : first + count].clone()


def states(sizes: list[int]) -> dict:
    """Make AdamW's state of flat tensors of these sizes."""
    moments = [{"exp_avg": numbers(5, 0, size), "exp_avg_sq": numbers(6, 0, size).abs_()} for size in sizes]
    settings = {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-08, "weight_decay": 0.01}
    return {
        "state": {number: {"step": torch.tensor(3.0)} | states for number, states in enumerate(moments)},
        "param_groups": [settings | {"params": [number]} for number in range(len(sizes))],
    }


def _shard_of_stage_2(groups: list[Shapes], rank: int, ranks: int) -> dict:
    """Make part ``rank`` of each group's flat vector, padded to a multiple of twice the ranks; padding is cut off."""
    numels = [sum(shape.numel() for shape in group.values()) for group in groups]
    sizes = [2 * math.ceil(numel / (2 * ranks)) for numel in numels]
    kept = [max(0, min(size, numel - rank * size)) for size, numel in zip(sizes, numels, strict=True)]
    return {
        "loss_scaler": LossScaler(1.0),
        "dynamic_loss_scale": False,
        "overflow": False,
        "clip_grad": 1.0,
        "base_optimizer_state": states(sizes),
        "single_partition_of_fp32_groups": [numbers(g, rank * sizes[g], count) for g, count in enumerate(kept)],
        "zero_stage": ZeroStageEnum.gradients,
        "group_paddings": [size - count for size, count in zip(sizes, kept, strict=True)],
        "param_alignment_paddings": [[0] * len(group) for group in groups],
        "partition_count": [ranks] * len(groups),
        "param_slice_mappings": [_fragments(group, rank * size, size) for group, size in zip(groups, sizes, strict=True)],
        "ds_version": "0.19.8",
    }


def _fragments(group: Shapes, begin: int, size: int) -> OrderedDict:
    """Map each name to its address in the part of the flat vector that begins at ``begin``."""
    found = OrderedDict()
    for name, shape, start in placed(group):
        first, last = max(start, begin), min(start + shape.numel(), begin + size)
        if first < last:
            found[name] = fragment_address(numel=last - first, start=first - begin)
    return found


def _shard_of_stage_3(groups: list[Shapes], rank: int, ranks: int) -> dict:
    """Make part ``rank`` of each parameter, padded to a multiple of the ranks."""
    flat = [_parts(number, group, rank, ranks) for number, group in enumerate(groups)]
    return {
        "zero_stage": ZeroStageEnum.weights,
        "loss_scaler": LossScaler(1.0),
        "dynamic_loss_scale": False,
        "overflow": False,
        "partition_count": ranks,
        "optimizer_state_dict": states([tensor.numel() for tensor in flat]),
        "fp32_flat_groups": flat,
    }


def _parts(number: int, group: Shapes, rank: int, ranks: int) -> Tensor:
    sizes = [math.ceil(shape.numel() / ranks) for shape in group.values()]
    flat, offset = torch.zeros(sum(sizes)), 0
    for (_, shape, start), size in zip(placed(group), sizes, strict=True):
        count = max(0, min(size, shape.numel() - rank * size))
        flat[offset : offset + count] = numbers(number, start + rank * size, count)
        offset += size
    return flat
