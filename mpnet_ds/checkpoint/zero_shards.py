"""Reading what DeepSpeed's ``engine.save_checkpoint`` writes, without running any code of it.

Files of one checkpoint folder, for R ranks (no model parallelism, hence always ``mp_rank_00``):

    ZeRO 0     mp_rank_00_model_states.pt                        all weights
    ZeRO 1, 2  mp_rank_00_model_states.pt                        weights in training precision, shapes, tied names
               [bf16_]zero_pp_rank_{r}_mp_rank_00_optim_states.pt  rank r's part of the fp32 weights and moments
    ZeRO 3     zero_pp_rank_{r}_mp_rank_00_model_states.pt       shapes, tied names
               [bf16_]zero_pp_rank_{r}_mp_rank_00_optim_states.pt  rank r's part of the fp32 weights and moments

Where the fp32 weights lie:

* **ZeRO 1, 2**: per parameter group, all parameters are laid end to end in one flat vector, which is padded and cut into
  R equal parts; rank r holds part r of each group in ``single_partition_of_fp32_groups``. Example with R = 2 and a group
  of shapes [3] and [4]: flat a a a b b b b + 1 padding, rank 0 has a a a b, rank 1 has b b b and the padding.
* **ZeRO 3**: each parameter is cut by itself into R parts of ceil(numel / R); rank r's flat vector is its parts of all
  parameters end to end, in ``fp32_flat_groups`` (a list whose concatenation it is). The same example: parts of 2 and 2,
  rank 0 has a a b b, rank 1 has a · b b, with one padding number behind a's third.

A parameter that appears under two names is stored under the first; ``shared_params`` maps the second to it (at ZeRO 0
both names are in the file, as one memory).
Read with ``weights_only=True``, and memory-mapped: a tensor's bytes are read when it is used.
"""

import glob
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.quiet import quiet_libraries

MODEL_STATES = "mp_rank_00_model_states.pt"
_OPTIMIZER_STATES = "*zero_pp_rank_*_mp_rank_00_optim_states.pt"


class ZeroCheckpoint:
    """A checkpoint folder of any ZeRO stage, opened for reading. Raises ``UserError`` when shards are missing.

    Attributes:
        tied: second name → first name of parameters that appear under two names.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._states = load_shard(_model_states_path(self.folder))
        paths = sorted(map(Path, glob.glob(str(self.folder / _OPTIMIZER_STATES))), key=_rank_of)
        self._shards = [load_shard(path)["optimizer_state_dict"] for path in paths]
        if paths:
            _check_complete(self._shards, paths)
        module = self._states["module"] or {}
        self.tied = dict(self._states.get("shared_params") or _shared_storage(module))

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter once.

        At ZeRO 1 to 3 from the fp32 master weights; at ZeRO 0 from the module's weights, in training precision. Parameters
        that are frozen at ZeRO 3, and buffers, are not supported yet.
        """
        param_shapes = self._states.get("param_shapes") or []
        from_shards = set()
        if self._shards:
            read = _from_stage_3 if int(self._shards[0]["zero_stage"]) == 3 else _from_stages_1_and_2
            from_shards = {name for group in param_shapes for name in group}
            yield from read(param_shapes, self._shards)
        # What no optimizer shard holds: frozen parameters, and everything at ZeRO 0.
        for name, tensor in (self._states["module"] or {}).items():
            if name not in from_shards and name not in self.tied:
                yield name, tensor.float()


def _shared_storage(module: dict[str, Tensor]) -> dict[str, str]:
    """Names whose tensors are the same memory, mapped to the first of them."""
    first, tied = {}, {}
    for name, tensor in module.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if place in first:
            tied[name] = first[place]
        else:
            first[place] = name
    return tied


def _from_stages_1_and_2(param_shapes: list[dict], shards: list[dict]) -> Iterator[tuple[str, Tensor]]:
    for number, shapes in enumerate(param_shapes):
        parts = [shard["single_partition_of_fp32_groups"][number] for shard in shards]
        start = 0
        for name, shape in shapes.items():
            numel = math.prod(shape)
            yield name, _slice_of(parts, start, numel).view(shape)
            start += numel


def _from_stage_3(param_shapes: list[dict], shards: list[dict]) -> Iterator[tuple[str, Tensor]]:
    per_rank = [shard["fp32_flat_groups"] for shard in shards]
    start = 0
    for shapes in param_shapes:
        for name, shape in shapes.items():
            numel = math.prod(shape)
            part = math.ceil(numel / len(shards))
            whole = torch.cat([_slice_of(groups, start, part) for groups in per_rank])
            yield name, whole[:numel].view(shape)
            start += part


def _slice_of(parts: list[Tensor], start: int, length: int) -> Tensor:
    """Numbers ``start`` … ``start + length - 1`` of flat tensors laid end to end, fp32."""
    pieces = []
    for part in parts:
        if length and start < part.numel():
            pieces.append(part[start : start + length].float())
            length -= pieces[-1].numel()
        start = max(0, start - part.numel())
    if length:
        raise UserError(f"the shards hold {length} numbers fewer than the shapes say: the checkpoint is damaged.")
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _model_states_path(folder: Path) -> Path:
    for path in (folder / MODEL_STATES, folder / f"zero_pp_rank_0_{MODEL_STATES}"):
        if path.is_file():
            return path
    raise UserError(f"{folder} holds no DeepSpeed checkpoint: {MODEL_STATES} is missing.")


def load_shard(path: Path) -> dict:
    """One file of a checkpoint, memory-mapped; raises ``UserError`` if it holds more than tensors and a few known types."""
    quiet_libraries()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # torch raises several kinds, by what is wrong with the file
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path} cannot be read without running foreign code, or is damaged: {reason}") from error


def _check_complete(shards: list[dict], paths: list[Path]) -> None:
    counts = shards[0]["partition_count"]
    expected = max(counts) if isinstance(counts, list | tuple) else counts
    present = [_rank_of(path) for path in paths]
    missing = sorted(set(range(expected)) - set(present))
    if missing:
        raise UserError(
            f"{paths[0].parent}: shards of rank {missing} are missing, the checkpoint was saved by {expected} ranks."
        )
    if len(present) != expected:
        raise UserError(f"{paths[0].parent}: {len(present)} optimizer shards, the checkpoint was saved by {expected} ranks.")


def _rank_of(path: Path) -> int:
    return int(re.search(r"zero_pp_rank_(\d+)_", path.name).group(1))
