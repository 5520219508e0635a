"""Weights of a module's part: names in the part's folder, and where in the module each comes from.

A folder holds what ``save_pretrained`` of the part's class would write: every entry of its state dict once, without tied
copies. An example of a part with ``prefix="model."``:

    in the folder         in the module
    encoder.0.weight      model.encoder.0.weight
    classifier.weight     model.head.weight            rename={"head.weight": "classifier.weight"}
    table.weight          a.table + b.table            sums={"table.weight": ("a.table", "b.table")}
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mpnet_ds.errors import UserError
from mpnet_ds.models.module import Part, PretrainingModule
from mpnet_ds.zero.torch_file import StoredTensor

Shape = tuple[int, ...]
Source = tuple[str, ...]
"""One name in the module, or two whose sum is stored."""


class Contents(NamedTuple):
    """What the folder of a part must hold."""

    shapes: dict[str, Shape]
    """By name, without tied copies."""
    tied: dict[str, str]
    """Second name → first name of weights that the class ties."""
    num_parameters: int


def contents_of(part: Part) -> Contents:
    """Find names and shapes of a part's weights from its class and configuration, without allocating them."""
    with torch.device("meta"):
        model = part.model_class(part.config)
    tied = dict(model.all_tied_weights_keys)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    return Contents(shapes, tied, sum(parameter.numel() for parameter in model.parameters()))


def find_sources(part: Part, module: PretrainingModule, contents: Contents) -> dict[str, Source]:
    """Map names in the folder to their sources, for all weights of a part.

    Raises ``UserError`` if ``module.parts()`` does not fit the module: a weight that only one of the part's class and the
    module has, or one of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    own = _own_sources(part, shapes) | part.sums
    where, kind = type(module).__name__, part.model_class.__name__
    named = [*_names_of(part.sums.values()), *_names_of(part.extra_files.values())]
    if unknown := [name for name in named if name not in shapes]:
        raise UserError(f"{where}.parts(): {unknown[0]} is not a weight of the module.")
    findings = [f"{where}.parts(): nothing gives {kind} its {name}." for name in contents.shapes if name not in own]
    for name, sources in own.items():
        expected = contents.shapes.get(contents.tied.get(name, name))
        if expected is None:
            findings.append(f"{where}.parts(): {kind} has no weight {name}, which {' + '.join(sources)} should become.")
        findings += [
            f"{where}.parts(): {source} is {list(shapes[source])}, {name} of {kind} is {list(expected)}."
            for source in sources
            if expected is not None and shapes[source] != expected
        ]
    names = first_names(module)
    findings += [
        f"{where}.parts(): {copy} and {source} are two weights, but {kind} ties them."
        for copy, source in contents.tied.items()
        if not findings and copy in own and [names[name] for name in own[copy]] != [names[name] for name in own[source]]
    ]
    if findings:
        raise UserError(*findings)
    return {name: own[name] for name in contents.shapes}


def _own_sources(part: Part, names: Mapping[str, Shape]) -> dict[str, Source]:
    """Map the names with the part's prefix, except those that go into sums and other files."""
    elsewhere = {*_names_of(part.sums.values()), *_names_of(part.extra_files.values())}
    own = {name.removeprefix(part.prefix): name for name in names if name.startswith(part.prefix) and name not in elsewhere}
    return {part.rename.get(inner, inner): (name,) for inner, name in own.items()}


def _names_of(groups: Iterable[Iterable[str]]) -> Iterator[str]:
    return itertools.chain.from_iterable(groups)


def first_names(module: nn.Module) -> dict[str, str]:
    """Map every name of the state dict to the first name of that tensor; these differ for tied parameters only."""
    first: dict[int, str] = {}
    tied = {name: first.setdefault(id(one), name) for name, one in module.named_parameters(remove_duplicate=False)}
    return {name: tied.get(name, name) for name in module.state_dict()}


@dataclass(frozen=True)
class SumOfStored:
    """Sum of two stored tensors of one shape, not read yet."""

    first: StoredTensor
    second: StoredTensor

    @property
    def shape(self) -> Shape:
        """Shape of both."""
        return self.first.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the sum."""
        return torch.promote_types(self.first.dtype, self.second.dtype)

    def rows(self, count: int) -> "SumOfStored":
        """Take the first ``count`` rows."""
        return SumOfStored(self.first.rows(count), self.second.rows(count))

    def chunks(self) -> Iterator[Tensor]:
        """Yield all numbers in order, one-dimensional, a few MiB at a time."""
        others, other = self.second.chunks(), torch.empty(0)
        for chunk in self.first.chunks():
            while chunk.numel():
                if not other.numel():
                    other = next(others)
                count = min(chunk.numel(), other.numel())
                yield chunk[:count] + other[:count]
                chunk, other = chunk[count:], other[count:]


def add_up(weights: Mapping[str, Tensor], sources: Source) -> Tensor:
    """Compute the tensor of a source from weights in memory."""
    first, *others = (weights[name] for name in sources)
    return first + others[0] if others else first
