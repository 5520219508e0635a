"""The zip archive that ``torch.save`` writes, byte by byte: nothing in it is compressed.

For ``torch.save({"a": torch.arange(3.0)}, "x.pt")``:

    x/data.pkl     the pickled objects; of a tensor: the number of its storage, offset, shape, strides
    x/data/0       the bytes of storage 0: 12 of them
    …              byteorder, version, and at the end the archive's directory: offset, size and CRC-32 of each of these

The directory is taken at its word only where the archive is as torch writes it: no record is compressed (a few bytes could
become any number of them), none overlaps the next, none leaves the file, and there is one pickle. A program that switched
checksums off, ``torch.serialization.set_crc32_options(False)``, leaves 0 for all of them: nothing to compare then.
"""

import itertools
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import xxhash

from mpnet_ds.errors import UserError

CHUNK = 1 << 22
"""Bytes that are held at once."""
LOCAL_HEADER = 30
"""Bytes before a record's name in the archive; the last four are the lengths of the name and of an extra field."""


@dataclass
class StorageRecord:
    """Bytes of one record, such as a storage; what is read of them in order is held against their CRC-32 by ``check``."""

    path: Path
    name: str
    begin: int
    size: int
    crc: int | None
    """None where the archive has no checksums."""
    seen: int = 0
    """Bytes from the beginning that have gone into ``running``."""
    running: int = 0

    def read(self, begin: int, size: int, is_checked: bool = True) -> bytearray:
        """Read ``size`` bytes from ``begin`` on; with ``is_checked`` they count for ``check``."""
        while is_checked and self.seen < begin:  # what was not asked for: padding, as a rule
            self._count(self._read(self.seen, min(CHUNK, begin - self.seen)))
        block = self._read(begin, size)
        if is_checked and begin == self.seen:
            self._count(block)
        return block

    def check(self) -> None:
        """Read the rest of a record of which something was read; raise ``UserError`` if it is damaged."""
        if self.seen and self.crc is not None:
            self.read(self.size, 0)
            if self.running != self.crc:
                raise UserError(f"{self.path} is damaged: {self.name} does not have the checksum that the file names.")

    def _read(self, begin: int, size: int) -> bytearray:
        block = bytearray(size)
        with open(self.path, "rb") as file:
            file.seek(self.begin + begin)
            if file.readinto(block) < size:
                raise UserError(f"{self.path} has become shorter while it was read.")
        return block

    def _count(self, block: bytearray) -> None:
        self.running, self.seen = zlib.crc32(block, self.running), self.seen + len(block)


def read_records(path: Path) -> dict[str, StorageRecord]:
    """Map names in an archive to its records; raise ``UserError`` where it is not as torch.save writes it."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            located = sorted(((_begin(file, item), item) for item in archive.infolist()), key=lambda pair: pair[0])
            _check_records(located)
            for begin, item in located:
                if item.filename.endswith("/byteorder"):
                    file.seek(begin)
                    if file.read(item.file_size).decode() != sys.byteorder:
                        raise UserError(f"{path} was written on a machine with the other byte order: read it there.")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged, or was not written by torch.save: {error}") from error
    has_checksums = any(item.CRC for _, item in located)
    return {
        (name := item.filename.partition("/")[2]): StorageRecord(
            path, name, begin, item.file_size, item.CRC if has_checksums else None
        )
        for begin, item in located
    }


def contents_checksum(path: Path) -> str:
    """xxh3_64 (hex) of an archive's directory: names, sizes and CRC-32 of all that is in it, without reading that."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [(record.filename, record.file_size, record.CRC) for record in archive.infolist()]
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return xxhash.xxh3_64_hexdigest(repr(records).encode())


def _check_records(located: list[tuple[int, zipfile.ZipInfo]]) -> None:
    """Raise ``ValueError`` where others may read something else in the archive."""
    names = [item.filename.partition("/")[2] for _, item in located]
    if len(set(names)) < len(names) or "constants.pkl" in names:
        raise ValueError("it holds two pickles, or a program")
    for (begin, item), (following, _) in itertools.pairwise(located):
        if begin + item.file_size > following:
            raise ValueError(f"record {item.filename} overlaps the next")


def _begin(file, item: zipfile.ZipInfo) -> int:
    """First byte of a record's content: behind its local header, whose extra field is not in the directory."""
    file.seek(item.header_offset + LOCAL_HEADER - 4)
    lengths = file.read(4)
    begin = item.header_offset + LOCAL_HEADER + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    is_inside = begin + item.file_size <= file.seek(0, 2)
    if item.compress_type != zipfile.ZIP_STORED or item.compress_size != item.file_size or not is_inside:
        raise ValueError(f"record {item.filename} is not as torch.save writes it")
    return begin
