"""The files that make up a checkpoint of DeepSpeed, and the check that all are there and belong together."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.zero.model_states import ModelStates
from mpnet_ds.zero.torch_file import TensorFile

MODEL_STATES = "mp_rank_00_model_states.pt"
_MODEL_SHARD = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_model_states\.pt")
_OPTIMIZER_SHARD = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_SHARED_FACTS = ("ds_version", "ds_config", "global_steps", "global_samples", "skipped_steps", "mp_world_size")


@dataclass(frozen=True)
class ShardSet:
    """The files of one checkpoint, opened."""

    model: ModelStates
    optimizers: list[TensorFile]
    """One of each rank, in order; none at ZeRO 0."""
    stage: int


def open_shards(folder: Path) -> ShardSet:
    """Open all shards; raise ``UserError``, naming the file, if one is missing, unexpected, damaged or of another save."""
    shards = {rank: TensorFile(path) for rank, path in _by_rank(folder, _OPTIMIZER_SHARD).items()}
    model = open_model_states(folder)
    stage = _check_ranks(shards, model.content.get("dp_world_size"))
    if not shards and model.content.get("param_shapes"):
        raise UserError(f"{folder}: all of the optimizer's shards (zero_pp_rank_…_optim_states.pt) are missing.")
    if shards and (stage == 3) != model.is_divided:
        raise UserError(f"{shards[0].path} was saved at ZeRO stage {stage}, {model.path.name} was not.")
    if model.is_divided and len(model.files) != len(shards):
        raise UserError(f"{folder}: {len(model.files)} files of the model's states, {len(shards)} of the optimizer's.")
    _check_facts([*model.files, *shards.values()])
    return ShardSet(model, [shards[rank] for rank in sorted(shards)], stage)


def open_model_states(folder: Path) -> ModelStates:
    """Open the model's files alone; errors as above."""
    divided = _by_rank(folder, _MODEL_SHARD)
    known = {MODEL_STATES, *(path.name for path in [*divided.values(), *_by_rank(folder, _OPTIMIZER_SHARD).values()])}
    for path in sorted(folder.glob("*_states.pt")):
        if path.name not in known:
            raise UserError(f"{path}: models split by tensor, pipeline or expert parallelism are not supported.")
    if divided and (folder / MODEL_STATES).is_file():
        raise UserError(f"{folder / MODEL_STATES} and {divided[min(divided)].name} are of different checkpoints.")
    if not divided and not (folder / MODEL_STATES).is_file():
        raise UserError(f"{folder} holds no DeepSpeed checkpoint: {MODEL_STATES} (at ZeRO 3 zero_pp_rank_0_…) is missing.")
    if not divided:
        return ModelStates([TensorFile(folder / MODEL_STATES)], is_divided=False)
    files = [TensorFile(divided[rank]) for rank in sorted(divided)]
    _check_facts(files)
    ranks = files[0].content.get("dp_world_size") if isinstance(files[0].content, dict) else None
    _check_complete(divided, ranks or len(divided))
    return ModelStates(files, is_divided=True)


def _by_rank(folder: Path, pattern: re.Pattern) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*_states.pt")):
        if match := pattern.fullmatch(path.name):
            rank = int(match[1])
            if rank in found:
                raise UserError(
                    f"{path} and {found[rank].name} are both of rank {rank}: remove the one that does not belong here."
                )
            found[rank] = path
    return found


def _check_ranks(shards: dict[int, TensorFile], model_says: int | None) -> int:
    """Return the ZeRO stage that all optimizer shards agree on, 0 where there are none."""
    if not shards:
        return 0
    says = {}
    for rank, file in shards.items():
        content = file.content.get("optimizer_state_dict") if isinstance(file.content, dict) else None
        if not isinstance(content, dict) or "partition_count" not in content:
            raise UserError(f"{file.path} is not an optimizer shard of ZeRO: 'partition_count' is missing.")
        masters = content.get("single_partition_of_fp32_groups", content.get("fp32_flat_groups"))
        if not isinstance(masters, list) or not all(_is_flat(flat) for flat in masters):
            raise UserError(f"{file.path} is damaged: its fp32 master weights are missing or not flat tensors.")
        counts = content["partition_count"]
        # BF16_Optimizer names no stage; its shards are laid out as at stage 1.
        says[rank] = int(content.get("zero_stage", 1)), max(counts) if isinstance(counts, list | tuple) else int(counts)
    counted = Counter(says.values())
    stage, expected = max(counted, key=lambda said: (counted[said], said[1] == model_says))
    for rank, (other_stage, other_count) in says.items():
        if (other_stage, other_count) != (stage, expected):
            raise UserError(
                f"{shards[rank].path} was saved at ZeRO stage {other_stage} by {other_count} ranks, others here at stage "
                f"{stage} by {expected}: it is of another checkpoint."
            )
    _check_complete({rank: file.path for rank, file in shards.items()}, expected)
    return stage


def _is_flat(value) -> bool:
    """Whether a value can be flat master weights: fp32, or 16 bit with DeepSpeed's ``…_master_weights_and_grads``."""
    is_tensor = isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return is_tensor and value.ndim == 1 and value.is_contiguous()


def _check_complete(paths: dict[int, Path], expected: int) -> None:
    rank, path = next(iter(paths.items()))
    pattern = path.name.replace(f"rank_{rank}_", "rank_{}_", 1)
    missing = [pattern.format(number) for number in range(expected) if number not in paths]
    if missing:
        raise UserError(f"{path.parent}: saved by {expected} ranks, but {', '.join(missing[:3])} is missing.")
    if max(paths) >= expected:
        raise UserError(f"unexpected file {paths[max(paths)]}: the checkpoint was saved by {expected} ranks.")


def _check_facts(files: list[TensorFile]) -> None:
    """Compare what all files say of their checkpoint; name the one that differs from most of the others."""
    for fact in _SHARED_FACTS:
        values = [
            (file, repr(file.content[fact])) for file in files if isinstance(file.content, dict) and fact in file.content
        ]
        texts = [text for _, text in values]
        common = max(texts, key=texts.count, default=None)
        for file, text in values:
            if text != common:
                others = values[texts.index(common)][0].path.name
                raise UserError(f"{file.path} and {others} are of different checkpoints: they differ in {fact}.")
