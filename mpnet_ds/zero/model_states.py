"""Content of a checkpoint's ``*_model_states.pt`` files: the module's state dict, shapes, tied names."""

import math
from functools import cached_property
from pathlib import PurePosixPath

import torch
from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.zero.torch_file import Span, StoredTensor, TensorFile

_KINDS = {
    "module": dict,
    "optimizer": dict,
    "param_shapes": list,
    "shared_params": dict,
    "buffer_names": list,
    "frozen_param_shapes": dict,
    "frozen_param_fragments": dict,
}


class ModelStates:
    """The model's files: one of each rank at ZeRO 3, else one.

    DeepSpeed notes a parameter's other names in ``shared_params``, but not all: a module that its parent holds twice is
    noted once. The others share the memory of the first name in the file, where an empty tensor of ZeRO 3 has its own too.

    Attributes:
        content: of the first file.
        module: name → entry of the module's state dict; at ZeRO 3 those of parameters are empty.
        tied: other name → first name of tensors that appear under several names.
    """

    def __init__(self, files: list[TensorFile], is_divided: bool):
        self.files, self.is_divided = files, is_divided
        self.path, self.content = files[0].path, files[0].content
        for file in files:
            _check_kinds(file)
        entries = self.content["module"] or {}
        self.module = {
            _checked_name(self.path, name): files[0].tensor(value)
            for name, value in entries.items()
            if isinstance(value, Tensor)
        }
        self._left_out: set[str] = set()
        self._unknown: list[str] = []
        self.tied = self._find_tied()

    @cached_property
    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """Shapes of the trained parameters, group by group, in the order of the flat tensors."""
        groups = self.content.get("param_shapes")
        if groups is None:
            raise UserError(f"{self.path}: 'param_shapes', which the optimizer's shards need, is missing.")
        return [_checked_shapes(self.path, group) for group in groups]

    @property
    def buffers(self) -> list[str]:
        """Names of the module's buffers."""
        return self.content.get("buffer_names") or []

    @property
    def _frozen_shapes(self) -> dict:
        """Shapes of frozen parameters at ZeRO 2 and 3; empty if the save left them out, and at other stages."""
        return self.content.get("frozen_param_shapes") or {}

    def untrained(self, trained: dict) -> dict[str, StoredTensor]:
        """Frozen parameters and buffers, which the optimizer does not hold.

        What was trained before it was frozen is not among them: the optimizer has it in fp32.
        Raises ``UserError`` for names of the module's state of which the files hold no values, or two.
        """
        frozen = self._join_frozen(trained) if self.is_divided else {}
        known = {*trained, *frozen, *self.tied, *self._left_out}
        others = {name: tensor for name, tensor in self.module.items() if name not in known}
        if not self.is_divided:
            self._refuse_other_names(self._other_names(trained, others))
            return others
        empty = [name for name, tensor in others.items() if not tensor.numel and name not in self.buffers]
        if not self._were_frozen_saved:
            self._unknown = empty  # left out, too, and perhaps other names of frozen ones
        elif empty:
            raise UserError(
                f"{self.path}: no file has values of {_few(empty)}. When DeepSpeed saved, the model had them, but its "
                "optimizer did not, and they were not frozen; or they have other names here than in named_parameters(). "
                "Load the checkpoint with its own program, and save it at ZeRO stage 2 or by engine.save_16bit_model."
            )
        return frozen | {name: tensor for name, tensor in others.items() if name not in empty}

    @property
    def _were_frozen_saved(self) -> bool:
        """At ZeRO 2 and 3, whether the save kept frozen weights: then it noted their shapes, even if there were none."""
        return self.content.get("frozen_param_shapes") is not None

    def describe_left_out(self, stage: int) -> str:
        """Say what the result lacks, because the save was told to leave out frozen weights; empty if it was not."""
        if stage < 2 or self._were_frozen_saved:
            return ""
        others = f", and so are {_few(self._unknown)}, of which no file has values" if self._unknown else ""
        return f"{self.path.parent} was saved without frozen weights (exclude_frozen_parameters): they are left out{others}."

    def _refuse_other_names(self, names: list[str]) -> None:
        if names:
            raise UserError(
                f"{self.path}: the module's state names {_few(names)}, and the checkpoint does not tell which of the "
                "optimizer's weights these are: load it with its own program, and save it with a state dict that has the "
                "names of named_parameters()."
            )

    def _other_names(self, trained: dict, others: dict[str, StoredTensor]) -> list[str]:
        """Names of weights that the optimizer has under others: in its weights' memory, or in place of missing ones."""
        if not self.content.get("param_shapes"):
            return []
        shared = {self.module[name].record for name in trained if name in self.module}
        missing = {tensor.shape for name, tensor in trained.items() if name not in self.module}
        return [
            name
            for name, tensor in others.items()
            if name not in self.buffers and name not in self._frozen_shapes
            if tensor.numel and (tensor.record in shared or tensor.shape in missing)
        ]

    def _join_frozen(self, trained: dict) -> dict[str, StoredTensor]:
        """Concatenate the ranks' partitions of what is not trained, each a tensor; the last ones may hold padding."""
        found = {}
        for name, shape in _checked_shapes(self.path, self._frozen_shapes).items():
            if name in trained:
                continue
            wanted, spans = math.prod(shape), []
            for file in self.files:
                part = file.tensor((file.content.get("frozen_param_fragments") or {}).get(name)).spans[0]
                spans.append(part.part(0, wanted))
                wanted -= spans[-1].numel
            if wanted:
                raise UserError(f"{self.path}: {wanted:,} elements of {name} are missing in the model's files.")
            found[name] = joined(shape, spans)
        return found

    def _find_tied(self) -> dict[str, str]:
        ties = self._checked_ties(self.content.get("shared_params") or {})
        groups = self.content.get("param_shapes") or []
        known = {*self.buffers, *self._frozen_shapes, *(name for group in groups for name in group)}
        places: dict[tuple, list[str]] = {}
        for name, tensor in self.module.items():
            if (tensor.numel or self.is_divided) and name not in ties and name not in self._left_out:
                places.setdefault(tensor.location, []).append(name)
        for names in places.values():
            firsts = [name for name in names if name in known] or names[:1]
            if len(firsts) == 1:
                ties |= {name: firsts[0] for name in names if name != firsts[0]}
        return ties

    def _checked_ties(self, ties: dict) -> dict[str, str]:
        """Return the noted ties; put those of frozen parameters that the save left out into ``_left_out``."""
        for name, source in ties.items():
            is_lost = _checked_name(self.path, source) not in self.module
            is_wrong = _checked_name(self.path, name) == source or source in ties
            if is_wrong or (is_lost and name in self.module and self._were_frozen_saved):
                raise UserError(f"{self.path} is damaged: it ties '{name}' to '{source}', which is not a parameter.")
            if is_lost:
                self._left_out.add(name)
        # DeepSpeed goes by addresses, which empty tensors share.
        return {
            name: source
            for name, source in ties.items()
            if name not in self._left_out
            if self.is_divided or name not in self.module or self.module[name].shape == self.module[source].shape
        }


def _check_kinds(file: TensorFile) -> None:
    if not isinstance(file.content, dict) or "module" not in file.content:
        raise UserError(f"{file.path} is not a model file of DeepSpeed: 'module' is missing.")
    for key, kind in _KINDS.items():
        value = file.content.get(key)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{file.path} is damaged: '{key}' is a {type(value).__name__}, not a {kind.__name__}.")


def _checked_name(path, name) -> str:
    """Return a name that may become a path in a universal checkpoint, and a key in files."""
    if not isinstance(name, str) or not name or "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UserError(f"{path}: {name!r} is not a valid name of a parameter.")
    return name


def _checked_shapes(path, group) -> dict[str, tuple[int, ...]]:
    if not isinstance(group, dict):
        raise UserError(f"{path} is damaged: its shapes are a {type(group).__name__}, not a dict.")
    for name, shape in group.items():
        if not isinstance(shape, list | tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise UserError(f"{path} is damaged: {name} has the shape {shape!r}.")
    return {_checked_name(path, name): tuple(shape) for name, shape in group.items()}


def joined(shape: tuple[int, ...], spans: list[Span]) -> StoredTensor:
    """Concatenate spans to a tensor of the given shape."""
    return StoredTensor(tuple(shape), spans[0].fake.dtype if spans else torch.float32, spans)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} others" if names[3:] else "")
