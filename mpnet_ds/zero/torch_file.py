"""Files of ``torch.save``, opened without reading their tensors and without running any code of theirs.

Such a file is a zip archive in which nothing is compressed. For ``torch.save({"a": torch.arange(3.0)}, "x.pt")``:

    x/data.pkl     the pickled objects; of a tensor: the number of its storage, offset, shape, strides
    x/data/0       the bytes of storage 0: 12 of them
    …              byteorder, version, and at the end the archive's directory: offset, size and CRC-32 of each of these

``torch.load(weights_only=True)`` unpickles the first with a short list of types that may be in it. With the location
"meta" it makes tensors without memory, whose storages know only where their bytes begin in the file
(``_checkpoint_offset``). Numbers are read from there when they are asked for, a stretch at a time. So what is not asked
for, such as an optimizer's moments, is never read.

Each storage of which something was read is held against its CRC-32 in the end, by ``TensorFile.check``. (A program that
switched checksums off, ``torch.serialization.set_crc32_options(False)``, leaves 0 for all of them: nothing to check then.)
"""

import itertools
import math
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from mpnet_ds.deepspeed_workarounds import loading_offsets, offset_in_file
from mpnet_ds.errors import UserError
from mpnet_ds.quiet import quiet_libraries

CHUNK = 1 << 22
"""Bytes that are held at once."""
LOCAL_HEADER = 30
"""Bytes before a record's name in the archive; the last four say how long the name and an extra field are."""


def load_shard(path: Path) -> Any:
    """One of DeepSpeed's files, in memory, as ``load_torch_file`` reads it."""
    return load_torch_file(path, _deepspeed_types())


def load_torch_file(path: Path, allowed: Iterable = (), mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, without running anything.

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
        _records(path)  # refuses what is compressed: a few bytes could become any number of them
    return _unpickle(path, allowed, "cpu", mmap and is_archive)


def _unpickle(path: Path, allowed: Iterable, location: str, mmap: bool = False) -> Any:
    with torch.serialization.safe_globals(list(allowed)):
        try:
            return torch.load(path, map_location=location, mmap=mmap, weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # torch raises several kinds, by what is wrong with the file
            if isinstance(error, OSError) and error.strerror:
                raise UserError(f"{path} cannot be read: {error.strerror}.") from error
            asked = re.search(r"GLOBAL ([\w.]+)|(?:class|function) <?(?:class |built-in function )?'?([\w.]+)", str(error))
            if "eights" in str(error) and asked:
                what = f"asks for {asked[1] or asked[2]}, which no weights need, and which might run foreign code"
                raise UserError(f"{path} {what}: refused, nothing of it was run.") from error
            raise UserError(f"{path} is damaged, or no file of torch.save.") from error


def _deepspeed_types() -> list[type]:
    """All that DeepSpeed's files hold beyond tensors, containers, numbers and text."""
    quiet_libraries()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]


@dataclass
class _Record:
    """One storage's bytes in the file."""

    name: str
    begin: int
    size: int
    crc: int
    seen: int = 0
    """Bytes from the beginning that have gone into ``running``."""
    running: int = 0


class TensorFile:
    """A file of ``torch.save``, opened. Raises ``UserError`` where ``load_shard`` would, and if a storage leaves the file.

    Attributes:
        content: the saved objects; their tensors have dtype and shape, but no numbers.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._records = {record.begin: record for record in _records(self.path)}
        with loading_offsets():
            self.content = _unpickle(self.path, _deepspeed_types(), "meta")

    def tensor(self, fake: Tensor) -> "StoredTensor":
        """One of the tensors in ``content``, to be read."""
        if not isinstance(fake, Tensor):
            raise UserError(f"{self.path} is damaged: a tensor was expected, found {type(fake).__name__}.")
        storage, begin = fake.untyped_storage(), offset_in_file(fake)
        last = (
            sum((size - 1) * stride for size, stride in zip(fake.shape, fake.stride(), strict=True)) if fake.numel() else -1
        )
        record = self._records.get(begin) if storage.nbytes() else _Record("", 0, 0, 0)
        end = (fake.storage_offset() + last + 1) * fake.itemsize
        is_blown_up = fake.numel() * fake.itemsize > max(storage.nbytes(), CHUNK)  # strides of 0, from a few bytes
        if record is None or storage.nbytes() > record.size or end > record.size or is_blown_up:
            raise UserError(
                f"{self.path} is damaged: a tensor of shape {list(fake.shape)} lies outside of the file's storages."
            )
        return StoredTensor(tuple(fake.shape), fake.dtype, [Stretch(self, record, fake)])

    def read(self, record: _Record, begin: int, size: int, is_checked: bool = True) -> bytearray:
        """``size`` bytes of a record from ``begin`` on; with ``is_checked`` they count for ``check``."""
        block = bytearray(size)
        with open(self.path, "rb", buffering=0) as file:
            if is_checked and begin > record.seen:
                self._skip(file, record, begin)
            file.seek(record.begin + begin)
            if _fill(file, block) < size:
                raise UserError(f"{self.path} has become shorter while it was read.")
        if is_checked and begin == record.seen:
            record.running, record.seen = zlib.crc32(block, record.running), begin + size
        return block

    def check(self) -> None:
        """Holds the storages that were read against the archive's checksums; raises ``UserError`` if one is damaged."""
        has_checksums = any(record.crc for record in self._records.values())
        touched = [record for record in self._records.values() if record.seen and has_checksums]
        with open(self.path, "rb", buffering=0) as file:
            for record in touched:
                self._skip(file, record, record.size)
                if record.running != record.crc:
                    raise UserError(f"{self.path} is damaged: {record.name} does not have the checksum that the file names.")

    def _skip(self, file, record: _Record, end: int) -> None:
        """Reads what lies before ``end`` and was not asked for: padding, as a rule."""
        file.seek(record.begin + record.seen)
        while record.seen < end:
            block = bytearray(min(CHUNK, end - record.seen))
            if _fill(file, block) < len(block):
                raise UserError(f"{self.path} has become shorter while it was read.")
            record.running, record.seen = zlib.crc32(block, record.running), record.seen + len(block)


@dataclass(frozen=True)
class Stretch:
    """A tensor in a file, or consecutive numbers of one (counted in its own order, from 0)."""

    file: TensorFile
    record: _Record
    fake: Tensor
    begin: int = 0
    length: int = -1

    @property
    def numel(self) -> int:
        """How many numbers."""
        return self.fake.numel() if self.length < 0 else self.length

    def part(self, begin: int, length: int) -> "Stretch":
        """``length`` numbers from ``begin`` on, or as many as there are."""
        begin = min(begin, self.numel)
        return Stretch(self.file, self.record, self.fake, self.begin + begin, min(length, self.numel - begin))

    def read(self, is_checked: bool = True) -> Tensor:
        """The numbers, one-dimensional, in memory of their own; ``is_checked`` as in ``TensorFile.read``."""
        if not self.numel:
            return torch.empty(0, dtype=self.fake.dtype)
        if not self.fake.is_contiguous():
            return self._read_strided(is_checked)
        offset = (self.fake.storage_offset() + self.begin) * self.fake.itemsize
        block = self.file.read(self.record, offset, self.numel * self.fake.itemsize, is_checked)
        return torch.frombuffer(block, dtype=self.fake.dtype)

    def chunks(self, is_checked: bool = True) -> Iterator[Tensor]:
        """The same in pieces of at most ``CHUNK`` bytes."""
        if not self.fake.is_contiguous():
            yield self.read(is_checked)
            return
        step = CHUNK // self.fake.itemsize
        for begin in range(0, self.numel, step):
            yield self.part(begin, step).read(is_checked)

    def _read_strided(self, is_checked: bool) -> Tensor:
        """Of a transposed tensor, for example: its whole storage is read."""
        block = self.file.read(self.record, 0, self.record.size, is_checked)
        storage = torch.frombuffer(block, dtype=self.fake.dtype, count=len(block) // self.fake.itemsize)
        whole = storage.as_strided(self.fake.shape, self.fake.stride(), self.fake.storage_offset())
        return whole.flatten()[self.begin : self.begin + self.numel].clone()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read: shape, dtype, and its numbers as stretches of files, one after another."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stretches: list[Stretch] = field(repr=False)

    @property
    def numel(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    def chunks(self) -> Iterator[Tensor]:
        """All numbers in order, one-dimensional, at most ``CHUNK`` bytes at a time."""
        for stretch in self.stretches:
            yield from stretch.chunks()

    @property
    def place(self) -> tuple:
        """Of a tensor that is one in a file, too: where it lies. Equal for two names of one tensor."""
        (one,) = self.stretches
        return one.file.path, one.record.begin, one.fake.storage_offset(), self.shape, one.fake.stride()

    def read(self) -> Tensor:
        """The whole tensor, in memory of its own."""
        whole, begin = torch.empty(self.numel, dtype=self.dtype), 0
        for chunk in self.chunks():
            whole[begin : begin + chunk.numel()] = chunk
            begin += chunk.numel()
        return whole.view(self.shape)

    def rows(self, count: int) -> "StoredTensor":
        """The first ``count`` rows."""
        wanted, stretches = count * math.prod(self.shape[1:]), []
        for stretch in self.stretches:
            stretches.append(stretch.part(0, wanted))
            wanted -= stretches[-1].numel
        return StoredTensor((count, *self.shape[1:]), self.dtype, stretches)


def contents_checksum(path: Path) -> str:
    """xxh3_64 (hex) of an archive's directory: names, sizes and CRC-32 of all that is in it, without reading that."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [(record.filename, record.file_size, record.CRC) for record in archive.infolist()]
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return xxhash.xxh3_64_hexdigest(repr(records).encode())


def _records(path: Path) -> list[_Record]:
    """The storages of an archive."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            places = sorted(((item, _begin(file, item)) for item in archive.infolist()), key=lambda place: place[1])
            _check_records(places)
            for item, begin in places:
                if item.filename.endswith("/byteorder"):
                    file.seek(begin)
                    if file.read(item.file_size).decode() != sys.byteorder:
                        raise UserError(f"{path} was written on a machine with the other byte order: read it there.")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged, or was not written by torch.save: {error}") from error
    return [
        _Record(item.filename.partition("/")[2], begin, item.file_size, item.CRC)
        for item, begin in places
        if "/data/" in item.filename
    ]


def _check_records(places: list[tuple[zipfile.ZipInfo, int]]) -> None:
    """Raises ``ValueError`` where an archive is not as torch.save writes it: then others may read something else in it."""
    names = [item.filename.partition("/")[2] for item, _ in places]
    if len(set(names)) < len(names) or "constants.pkl" in names:
        raise ValueError("it holds two pickles, or a program")
    for (item, begin), (_, following) in itertools.pairwise(places):
        if begin + item.file_size > following:
            raise ValueError(f"record {item.filename} overlaps the next")


def _begin(file, item: zipfile.ZipInfo) -> int:
    """First byte of a record's content: behind its local header, whose extra field the directory does not tell."""
    file.seek(item.header_offset + LOCAL_HEADER - 4)
    lengths = file.read(4)
    begin = item.header_offset + LOCAL_HEADER + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    is_inside = begin + item.file_size <= file.seek(0, 2)
    if item.compress_type != zipfile.ZIP_STORED or item.compress_size != item.file_size or not is_inside:
        raise ValueError(f"record {item.filename} is not as torch.save writes it")
    return begin


def _fill(file, block: bytearray) -> int:
    """Reads until ``block`` is full or the file ends; returns how many bytes."""
    view, done = memoryview(block), 0
    while done < len(block) and (count := file.readinto(view[done:])):
        done += count
    return done
