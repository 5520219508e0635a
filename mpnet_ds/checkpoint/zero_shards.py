"""Reading what DeepSpeed's ``engine.save_checkpoint`` writes, without running any code of it.

Files of one checkpoint folder, for R ranks (no model parallelism, hence always ``mp_rank_00``):

    ZeRO 0     mp_rank_00_model_states.pt                        all weights; in 16 bit also fp32 weights; moments
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
* **ZeRO 0**: in fp32 the module's weights are all there is; in bf16 and fp16 ``optimizer.fp32_groups`` has each by itself.

The optimizer's states lie like the weights: one flat tensor for each group and state (at ZeRO 0 one tensor for each
parameter), in ``base_optimizer_state.state`` (ZeRO 1, 2) or ``optimizer_state_dict.state`` (ZeRO 3).

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
MASTER = "fp32"
"""Key of the fp32 weight among a parameter's states."""
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

        From the fp32 master weights; at ZeRO 0 in fp32 from the module's weights, which are the same thing. Parameters that
        are frozen at ZeRO 3, and buffers, are not supported yet.
        """
        trained = set()
        if self._has_master_weights:
            for name, states in self._trained([MASTER]):
                trained.add(name)
                yield name, states[MASTER]
        # What the optimizer does not hold: frozen parameters, and at ZeRO 0 in fp32 everything.
        for name, tensor in (self._states["module"] or {}).items():
            if name not in trained and name not in self.tied:
                yield name, tensor.float()

    def named_states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(name, states) of every trained parameter once: the fp32 weight as ``MASTER``, and the optimizer's states.

        States are fp32 and have the parameter's shape; AdamW's are ``exp_avg`` and ``exp_avg_sq``.
        """
        yield from self._trained([MASTER, *self.state_names])

    @property
    def state_names(self) -> list[str]:
        """The optimizer's states that have a number for each weight."""
        first = next(iter(self._optimizer_states(0).values()), {})
        return [name for name, value in first.items() if torch.is_tensor(value) and value.ndim]

    @property
    def num_updates(self) -> int:
        """As the optimizer has counted them: without those that were skipped."""
        first = next(iter(self._optimizer_states(0).values()), {})
        return int(first.get("step", 0))

    @property
    def _has_master_weights(self) -> bool:
        return bool(self._shards) or "fp32_groups" in (self._states["optimizer"] or {})

    def _optimizer_states(self, rank: int) -> dict[int, dict]:
        """Group number (at ZeRO 0 parameter number) → states, as torch's optimizer saved them."""
        saved = self._shards[rank] if self._shards else self._states["optimizer"] or {}
        saved = saved.get("base_optimizer_state", saved.get("optimizer_state_dict", saved))
        return saved.get("state", {})

    def _trained(self, wanted: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if not self._shards:
            yield from self._from_stage_0(wanted)
            return
        is_stage_3 = int(self._shards[0]["zero_stage"]) == 3
        cut = _cut_stage_3 if is_stage_3 else _cut_stages_1_and_2
        masters = "fp32_flat_groups" if is_stage_3 else "single_partition_of_fp32_groups"
        flat = {name: [self._flat(rank, name, masters) for rank in range(len(self._shards))] for name in wanted}
        tensors = {name: cut(self._states["param_shapes"], per_rank) for name, per_rank in flat.items()}
        for found in zip(*tensors.values(), strict=True):
            yield found[0][0], {name: tensor for name, (_, tensor) in zip(tensors, found, strict=True)}

    def _flat(self, rank: int, name: str, masters: str) -> list[Tensor]:
        """One rank's flat tensors of the groups: of the weights, or of one of the optimizer's states."""
        if name == MASTER:
            return self._shards[rank][masters]
        states = self._optimizer_states(rank)
        return [states[group][name] for group in sorted(states)]

    def _from_stage_0(self, wanted: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Parameters are numbered group by group: matrices, then the others, each in the module's order."""
        module = {name: tensor for name, tensor in self._states["module"].items() if name not in self.tied}
        names = [name for name in module if module[name].ndim >= 2] + [name for name in module if module[name].ndim < 2]
        groups = self._states["optimizer"].get("fp32_groups")
        masters = [tensor for group in groups for tensor in group] if groups else [module[name] for name in names]
        states = self._optimizer_states(0)
        for number, (name, master) in enumerate(zip(names, masters, strict=True)):
            if master.shape != module[name].shape:
                raise UserError(f"{self.folder}: weight {number} of the optimizer is not {name}: shapes differ.")
            yield name, {key: master if key == MASTER else states[number][key] for key in wanted}


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


def _cut_stages_1_and_2(param_shapes: list[dict], per_rank: list[list[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters from flat tensors, ``per_rank[r][g]`` being rank r's part of group g."""
    for number, shapes in enumerate(param_shapes):
        parts = [groups[number] for groups in per_rank]
        start = 0
        for name, shape in shapes.items():
            numel = math.prod(shape)
            yield name, _slice_of(parts, start, numel).view(shape)
            start += numel


def _cut_stage_3(param_shapes: list[dict], per_rank: list[list[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters from flat tensors, ``per_rank[r]`` laid end to end being rank r's parts of all of them."""
    start = 0
    for shapes in param_shapes:
        for name, shape in shapes.items():
            numel = math.prod(shape)
            part = math.ceil(numel / len(per_rank))
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


def load_shard(path: Path, mmap: bool = True) -> dict:
    """One file of a checkpoint; raises ``UserError`` if it is damaged or holds more than tensors and a few known types.

    Args:
        mmap: map the file: a tensor's bytes are read when it is used, and the file must stay.
    """
    quiet_libraries()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
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
