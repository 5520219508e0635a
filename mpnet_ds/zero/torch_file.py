"""Files of ``torch.save``, opened without reading their tensors and without running any code of theirs.

``TensorFile`` reads the pickled objects alone (inert_pickle.py); elements of a tensor are read from its record in the
archive (torch_archive.py) when they are asked for, a span at a time. So what is not asked for, such as an optimizer's
moments, is never read, and each storage of which something was read is compared with its CRC-32 at the end, by
``TensorFile.check``. ``load_torch_file`` reads all there is, by ``torch.load(weights_only=True)`` and its short list of
types.

``torch.load(mmap=True)`` would save the reading by hand. It was tried with torch 2.13.0 on a file of 800 MB: a mapped
storage does not know its record, so there is nothing to compare its CRC-32 with; the process grew by 810 MiB instead of 17,
as pages that were read stay in it; and a file that becomes shorter meanwhile ends the process with SIGBUS.
"""

import math
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.zero.inert_pickle import RefusedGlobal, read_pickle
from mpnet_ds.zero.torch_archive import CHUNK, StorageRecord, read_records


def load_shard(path: Path) -> Any:
    """Load one of DeepSpeed's files into memory, as ``load_torch_file`` does."""
    return load_torch_file(path, _deepspeed_types())


def load_torch_file(path: Path, allowed: Iterable = (), mmap: bool = False) -> Any:
    """Load what ``torch.save`` wrote, without running anything.

    Args:
        allowed: types beyond tensors, containers, numbers and text, as ``torch.serialization.safe_globals`` takes them.
        mmap: map the file into memory: a tensor's bytes are read when it is used, and the file must stay.
    Raises:
        UserError: no such file, a damaged one, or one that asks for any other type or function, which is named.
    """
    if not path.is_file():
        raise UserError(f"no file {path}.")
    is_archive = zipfile.is_zipfile(path)  # before PyTorch 1.6 files were none; those cannot be mapped
    if is_archive:
        read_records(path)  # for its checks
    with torch.serialization.safe_globals(list(allowed)):
        try:
            return torch.load(path, map_location="cpu", mmap=mmap and is_archive, weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # torch raises several kinds, by what is wrong with the file
            if isinstance(error, OSError) and error.strerror:
                raise UserError(f"{path} cannot be read: {error.strerror}.") from error
            asked = re.search(r"GLOBAL ([\w.]+)|(?:class|function) <?(?:class |built-in function )?'?([\w.]+)", str(error))
            if "eights" in str(error) and asked:
                raise _refusal(path, asked[1] or asked[2]) from error
            raise UserError(f"{path} is damaged, or not a file of torch.save.") from error


def _refusal(path: Path, name: str) -> UserError:
    what = f"asks for {name}, which no weights need, and which might run foreign code"
    return UserError(f"{path} {what}: refused, nothing of it was run.")


def _deepspeed_types() -> list:
    """All that DeepSpeed's files hold beyond tensors, containers, numbers and text.

    Early releases of Python 3.11 write an enum's member as a call of ``getattr``; in its place is one for this enum alone.
    """
    quiet_libraries()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def member(enum: type, name: str) -> ZeroStageEnum:
        if enum is not ZeroStageEnum:
            raise UserError(f"a shard asks for {name} of {enum}, which no checkpoint of DeepSpeed holds.")
        return ZeroStageEnum[name]

    return [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address, (member, "builtins.getattr")]


class TensorFile:
    """A file of ``torch.save``, opened. Raises ``UserError`` if it is missing, damaged, or asks for more than data.

    Attributes:
        content: the saved objects; tensors have dtype and shape, but no values, foreign objects are stand-ins.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._records = read_records(self.path)
        self.content = self._read_pickle()

    def _read_pickle(self) -> Any:
        storages = {name.removeprefix("data/"): record for name, record in self._records.items()}
        try:
            pickle = self._records["data.pkl"]
            content = read_pickle(pickle.read(0, pickle.size), storages)
            pickle.check()
            return content
        except UserError:
            raise
        except RefusedGlobal as error:
            raise _refusal(self.path, str(error)) from error
        except Exception as error:  # whatever unpickling a damaged file may lead to
            raise UserError(f"{self.path} is damaged, or not a file of torch.save.") from error

    def tensor(self, fake: Tensor) -> "StoredTensor":
        """Return one of the tensors in ``content``, to be read."""
        if not isinstance(fake, Tensor):
            raise UserError(f"{self.path} is damaged: a tensor was expected, found {type(fake).__name__}.")
        storage_bytes, record = fake.untyped_storage().nbytes(), fake.record
        last = sum((size - 1) * stride for size, stride in zip(fake.shape, fake.stride(), strict=True))
        end = (fake.storage_offset() + (last + 1 if fake.numel() else 0)) * fake.itemsize
        is_blown_up = fake.numel() * fake.itemsize > max(storage_bytes, CHUNK)  # strides of 0, from a few bytes
        if max(storage_bytes, end) > record.size or is_blown_up:
            raise UserError(
                f"{self.path} is damaged: a tensor of shape {list(fake.shape)} is outside of the file's storages."
            )
        return StoredTensor(tuple(fake.shape), fake.dtype, [Span(record, fake, 0, fake.numel())])

    def check(self) -> None:
        """Compare what was read with the archive's checksums; raise ``UserError`` if it is damaged."""
        for record in self._records.values():
            record.check()


@dataclass(frozen=True)
class Span:
    """Consecutive elements of a tensor in a file, counted in the tensor's own order."""

    record: StorageRecord
    fake: Tensor
    begin: int
    numel: int

    def part(self, begin: int, length: int) -> "Span":
        """``length`` elements from ``begin`` on, or as many as there are."""
        begin = min(begin, self.numel)
        return Span(self.record, self.fake, self.begin + begin, min(length, self.numel - begin))

    def read(self, is_checked: bool = True) -> Tensor:
        """Read the elements, one-dimensional, into memory of their own; ``is_checked`` as in ``StorageRecord.read``."""
        if not self.numel:
            return torch.empty(0, dtype=self.fake.dtype)
        if self.fake.is_contiguous():
            begin, size = ((number * self.fake.itemsize) for number in (self._first, self.numel))
            return torch.frombuffer(self.record.read(begin, size, is_checked), dtype=self.fake.dtype)
        # Of a transposed tensor, for example: its whole storage is read.
        block = self.record.read(0, self.record.size, is_checked)
        storage = torch.frombuffer(block, dtype=self.fake.dtype, count=len(block) // self.fake.itemsize)
        whole = storage.as_strided(self.fake.shape, self.fake.stride(), self.fake.storage_offset())
        return whole.flatten()[self.begin : self.begin + self.numel].clone()

    def chunks(self, is_checked: bool = True) -> Iterator[Tensor]:
        """Read the same in chunks of at most ``CHUNK`` bytes, if the tensor is contiguous."""
        step = CHUNK // self.fake.itemsize if self.fake.is_contiguous() else max(1, self.numel)
        for begin in range(0, self.numel, step):
            yield self.part(begin, step).read(is_checked)

    @property
    def _first(self) -> int:
        """Position in the storage of a contiguous tensor."""
        return self.fake.storage_offset() + self.begin


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read: shape, dtype, and its elements as spans of files, one after another."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    spans: list[Span] = field(repr=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def chunks(self) -> Iterator[Tensor]:
        """Read all elements in order, one-dimensional, at most ``CHUNK`` bytes at a time."""
        for span in self.spans:
            yield from span.chunks()

    @property
    def record(self) -> int:
        """First byte, in its file, of the storage of a tensor that is one span."""
        return self.spans[0].record.begin

    @property
    def location(self) -> tuple:
        """Where the elements of a tensor that is one span are: equal for two names of one tensor."""
        (span,) = self.spans
        return self.record, span.fake.storage_offset(), self.shape, span.fake.stride()

    def read(self) -> Tensor:
        """Read the whole tensor into memory of its own."""
        whole, begin = torch.empty(self.numel, dtype=self.dtype), 0
        for chunk in self.chunks():
            whole[begin : begin + chunk.numel()] = chunk
            begin += chunk.numel()
        return whole.view(self.shape)

    def rows(self, count: int) -> "StoredTensor":
        """The first ``count`` rows."""
        wanted, spans = count * math.prod(self.shape[1:]), []
        for span in self.spans:
            spans.append(span.part(0, wanted))
            wanted -= spans[-1].numel
        return StoredTensor((count, *self.shape[1:]), self.dtype, spans)
