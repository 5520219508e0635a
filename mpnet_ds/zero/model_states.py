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

    Attributes:
        content: of the first file.
        module: name → entry of the module's state dict; at ZeRO 3 those of parameters are empty.
        tied: second name → first name of parameters that appear under two names.
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

    def untrained(self, trained: dict) -> dict[str, StoredTensor]:
        """Frozen parameters and buffers, which the optimizer does not hold."""
        names = self.buffers if self.is_divided else self.module
        others = [name for name in names if name in self.module and name not in trained and name not in self.tied]
        frozen = self._join_frozen() if self.is_divided else {}
        return frozen | {name: self.module[name] for name in others}

    def _join_frozen(self) -> dict[str, StoredTensor]:
        """Concatenate the ranks' partitions, each a tensor by itself; the last ones may hold padding."""
        found = {}
        for name, shape in _checked_shapes(self.path, self.content.get("frozen_param_shapes") or {}).items():
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
        if self.content.get("shared_params") is not None:
            return self._checked_ties(self.content["shared_params"])
        first, tied = {}, {}
        for name, tensor in self.module.items():
            if tensor.numel and first.setdefault(tensor.location, name) != name:
                tied[name] = first[tensor.location]
        return tied

    def _checked_ties(self, ties: dict) -> dict[str, str]:
        """Ties without those of frozen parameters that the save left out (``exclude_frozen_parameters``)."""
        for name, source in ties.items():
            known = _checked_name(self.path, source) in self.module or name not in self.module
            if _checked_name(self.path, name) == source or source in ties or not known:
                raise UserError(f"{self.path} is damaged: it ties '{name}' to '{source}', which is not a parameter.")
        found = {name: source for name, source in ties.items() if source in self.module}
        if self.is_divided:
            return found
        # DeepSpeed goes by addresses, which empty tensors share.
        return {
            name: source
            for name, source in found.items()
            if name not in self.module or self.module[name].shape == self.module[source].shape
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
