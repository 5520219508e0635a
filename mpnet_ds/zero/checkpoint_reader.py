"""What DeepSpeed's ``engine.save_checkpoint`` writes, in this project or in any other program, opened for reading.

Files of one checkpoint folder, saved by R ranks:

    ZeRO 0     mp_rank_00_model_states.pt                          all weights; in 16 bit also fp32 master weights; moments
    ZeRO 1, 2  mp_rank_00_model_states.pt                          weights in training precision, shapes, tied names
               [bf16_]zero_pp_rank_{r}_mp_rank_00_optim_states.pt  rank r's partition of the fp32 weights and moments
    ZeRO 3     zero_pp_rank_{r}_mp_rank_00_model_states.pt         shapes, tied names, buffers; partitions of frozen weights
               [bf16_]zero_pp_rank_{r}_mp_rank_00_optim_states.pt  rank r's partition of the fp32 weights and moments

Where the fp32 master weights are; flat_layout.py has the arithmetic, with an example:

* **ZeRO 1, 2**: in ``optimizer_state_dict.single_partition_of_fp32_groups``, a flat tensor for each parameter group. Names,
  shapes and order are in ``param_shapes[group]`` of the model's file, padding between parameters in the shard's
  ``param_alignment_paddings[group]``, if there is any.
* **ZeRO 3**: in ``optimizer_state_dict.fp32_flat_groups``, flat tensors in an order that knows no groups: names and shapes
  are those of all ``param_shapes``, one after another.
* **ZeRO 0**: in fp32 the module's weights are all there is. In bf16 and fp16 ``optimizer.fp32_groups`` is a list of tensors
  for each group, or ``fp32_groups_flat`` one flat tensor (DeepSpeed's optimizers). Neither has names: see fp32_matching.py.

The optimizer's states are laid out like the master weights: one flat tensor for each of theirs and each state, in
``base_optimizer_state.state`` (ZeRO 1, 2) or ``optimizer_state_dict.state`` (ZeRO 3).

What the optimizer does not hold, frozen parameters and buffers, is in ``module`` of the model's file; at ZeRO 3 only
buffers are, and frozen parameters are in ``frozen_param_fragments``, partitioned like the others. A parameter that appears
under two names is stored under the first; ``shared_params`` maps the second to it (at ZeRO 0 both are in ``module`` and
share memory).
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.zero.flat_layout import FlatRange, Location, locate_stage_3, locate_stages_1_and_2
from mpnet_ds.zero.fp32_matching import SAMPLE, is_rounded, match_master_weights
from mpnet_ds.zero.lazy_weights import StoredWeights
from mpnet_ds.zero.model_states import joined
from mpnet_ds.zero.shard_set import open_shards
from mpnet_ds.zero.torch_file import Span, StoredTensor

MASTER = "fp32"
"""Key of the fp32 weight among a parameter's states."""


class ZeroCheckpoint:
    """A checkpoint folder of any ZeRO stage, opened for reading.

    Raises ``UserError``, which names the file, where shards are missing, unexpected, damaged, or of different checkpoints.

    Attributes:
        weights: all weights and buffers, to be read; fp32 master weights wherever there are any.
        num_steps: as the optimizer has counted them, without skipped ones; 0 if it does not count.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        shards = open_shards(self.folder)
        self.stage, self._model = shards.stage, shards.model
        self._files = shards.optimizers or shards.model.files
        self._optimizers = [file.content["optimizer_state_dict"] for file in shards.optimizers]
        self._locations = self._locate()
        self.num_steps = self._check_counts()
        if self.stage in (1, 2):
            self._check_against_module()
        trained = {name: self._stored(name, MASTER) for name in self._locations}
        files = list(dict.fromkeys([*shards.model.files, *shards.optimizers]))
        tensors = trained | self._model.untrained(trained)
        self.weights = StoredWeights(tensors, self._model.tied, files, self._model.describe_left_out(self.stage))

    def named_states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (name, states) of every trained parameter once: the fp32 weight as ``MASTER``, and the optimizer's states.

        States are fp32 and have the parameter's shape; AdamW's are ``exp_avg`` and ``exp_avg_sq``.
        """
        for name in self._locations:
            yield name, {key: self._stored(name, key).read().float() for key in (MASTER, *self.state_names)}

    @property
    def state_names(self) -> list[str]:
        """Names of the optimizer's states that have an element for each weight."""
        states = self._states(0).values()
        named = {name: None for state in states for name, value in state.items() if isinstance(value, Tensor) and value.ndim}
        return list(named)

    # Where each parameter is

    def _locate(self) -> dict[str, Location]:
        try:
            if self.stage == 0:
                return self._locate_stage_0()
            lengths = [[flat.numel() for flat in self._flats(rank, MASTER)] for rank in range(len(self._files))]
            if self.stage == 3:
                return locate_stage_3(self._model.shapes, lengths)
            return locate_stages_1_and_2(self._model.shapes, self._optimizers[0].get("param_alignment_paddings"), lengths)
        except (ValueError, TypeError) as error:
            shards = ", ".join(file.path.name for file in self._files[:4])
            raise UserError(f"{self._model.path}: its shapes do not fit {shards}: {error}.") from error

    def _locate_stage_0(self) -> dict[str, Location]:
        """Locate parameters in the module: in fp32 it is all there is, in the order of AdamW's groups, matrices first."""
        module = {
            name: tensor
            for name, tensor in self._model.module.items()
            if name not in self._model.tied and name not in self._model.buffers and tensor.dtype.is_floating_point
        }
        if self._saved_master_weights is not None:
            file = self._files[0]
            groups = [[file.tensor(flat).spans[0] for flat in group] for group in self._saved_master_weights]
            return match_master_weights(groups, module)
        names = sorted(module, key=lambda name: len(module[name].shape) < 2)
        return {
            name: Location(module[name].shape, [FlatRange(0, number, 0, module[name].numel)])
            for number, name in enumerate(names)
        }

    @property
    def _saved_master_weights(self) -> list[list[Tensor]] | None:
        """Each group's fp32 weights at ZeRO 0 in 16 bit, one by one or as one flat tensor."""
        saved = self._model.content.get("optimizer") or {}
        if "fp32_groups_flat" in saved:
            return [[flat] for flat in saved["fp32_groups_flat"]]
        return saved.get("fp32_groups")

    def _flats(self, rank: int, key: str) -> list[Tensor]:
        """One rank's flat tensors of the master weights, or of one of the optimizer's states."""
        if key != MASTER:
            states = self._states(rank)
            return [states[number][key] for number in sorted(states)]
        if self._optimizers:
            return self._optimizers[rank]["fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"]
        if self._saved_master_weights is not None:
            return [flat for group in self._saved_master_weights for flat in group]
        return [self._model.content["module"][name] for name in self._locations]

    def _states(self, rank: int) -> dict[int, dict]:
        """States by the flat tensor's number, as torch's optimizer saved them."""
        saved = self._optimizers[rank] if self._optimizers else self._model.content.get("optimizer") or {}
        saved = saved.get("base_optimizer_state", saved.get("optimizer_state_dict", saved))
        return saved.get("state", {}) if isinstance(saved, dict) else {}

    def _stored(self, name: str, key: str) -> StoredTensor:
        location = self._locations[name]
        return joined(location.shape, [self._span(part, key) for part in location.ranges])

    def _span(self, part: FlatRange, key: str) -> Span:
        flat = self._files[part.rank].tensor(self._flats(part.rank, key)[part.number]).spans[0]
        return flat.part(part.begin, part.length)

    # Whether all shards are of one step

    def _check_counts(self) -> int:
        counts = [self._count(rank) for rank in range(len(self._files))]
        for file, count in zip(self._files, counts, strict=True):
            if count != max(counts, key=counts.count):
                others = self._files[counts.index(max(counts, key=counts.count))].path.name
                raise UserError(f"{file.path} is of step {count}, {others} is not: they are of different checkpoints.")
        return counts[0]

    def _count(self, rank: int) -> int:
        count = next(iter(self._states(rank).values()), {}).get("step", 0)
        if isinstance(count, Tensor):
            count = self._files[rank].tensor(count).spans[0].read(is_checked=False).item()
        return int(count)

    def _check_against_module(self) -> None:
        """Check the first values of each range: master weights, rounded to training precision, are the module's."""
        for name, location in self._locations.items():
            if name not in self._model.module:
                continue
            weights, begin = self._model.module[name].spans[0], 0
            for part in location.ranges:
                length = min(SAMPLE, part.length)
                masters = self._span(part._replace(length=length), MASTER).read(is_checked=False)
                if not is_rounded(masters, weights.part(begin, length).read(is_checked=False)):
                    path = self._files[part.rank].path
                    raise UserError(f"{path} and {self._model.path.name} are of different checkpoints: {name} differs.")
                begin += part.length
