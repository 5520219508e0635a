"""The weights of a checkpoint, whatever its format, before they are read."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mpnet_ds.zero.safetensors_writer import cast
from mpnet_ds.zero.torch_file import StoredTensor, TensorFile


@dataclass(frozen=True)
class StoredWeights:
    """Names, shapes and locations of all weights and buffers; none of them is in memory."""

    tensors: dict[str, StoredTensor]
    """Each once, in the order in which they are in the files."""
    tied: dict[str, str]
    """Second name → first name of parameters that appear under two names."""
    files: list[TensorFile]
    lacks: str = ""
    """What the module had and the files do not, in words; empty if nothing."""

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) one after another, floating-point values as fp32, each in memory of its own.

        Raises ``UserError`` for a value that fp32 cannot hold, and at the end if a file turns out to be damaged.
        """
        for name, stored in self.tensors.items():
            tensor = stored.read()
            yield name, cast(name, tensor, torch.float32) if tensor.is_floating_point() else tensor
        self.check()

    def check(self) -> None:
        """Compare all that was read with the files' checksums; raise ``UserError`` if a file is damaged."""
        for file in self.files:
            file.check()

    def load(self) -> dict[str, Tensor]:
        """Read all into memory; a tied parameter is one tensor under each of its names."""
        weights = dict(self.named_tensors())
        return weights | {name: weights[source] for name, source in self.tied.items() if source in weights}
