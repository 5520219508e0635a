"""Writes checkpoint files that lie or attack, for tests that they are refused.

A checkpoint file is a zip of stored records: ``NAME/data.pkl``, a pickle in which each storage is a persistent id
``("storage", class, key, "cpu", count of numbers)``, and ``NAME/data/KEY``, that storage's bytes. A tensor is a call of
``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


class Call:
    """Pickled, it is the call of a function; so may be the function and the arguments."""

    def __init__(self, function: Callable, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        """Pickle wants of a function that it can be called."""


@dataclass
class Lie:
    """A tensor as its file describes it; the record holds ``data`` whatever the description says, or is missing (None)."""

    data: bytes | None = bytes(40)
    count: int = 10
    size: tuple = (10,)
    stride: tuple = (1,)
    offset: int = 0
    storage: type = torch.FloatStorage

    def __reduce__(self):
        arguments = (Storage(self), self.offset, self.size, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


@dataclass
class Storage:
    of: Lie


class _Pickler(pickle.Pickler):
    """Puts storages aside."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.records: list[bytes | None] = []

    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            return self._put(thing.of.data, thing.of.storage, thing.of.count)
        if isinstance(thing, torch.storage.TypedStorage):
            kind = getattr(torch, thing._pickle_storage_type())
            return self._put(
                torch.tensor([], dtype=torch.uint8).set_(thing.untyped()).numpy().tobytes(), kind, thing._size()
            )
        return None

    def _put(self, data: bytes | None, kind: type, count: int) -> tuple:
        self.records.append(data)
        return "storage", kind, str(len(self.records) - 1), "cpu", count


def save(content, path: Path) -> None:
    """``torch.save`` that takes ``Lie`` and ``Call`` objects too."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(content)
    save_pickle(file.getvalue(), path, pickler.records)


def save_pickle(data: bytes, path: Path, records: list[bytes | None] = ()) -> None:
    """A checkpoint file with this pickle."""
    named = {f"data/{key}": record for key, record in enumerate(records) if record is not None}
    save_records([("data.pkl", data), ("byteorder", b"little"), *named.items(), ("version", b"3\n")], path)


def save_records(records: list[tuple[str, bytes]], path: Path, compression: int = zipfile.ZIP_STORED) -> None:
    """A zip with these records, some perhaps of the same name."""
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in records:
            file.writestr(f"{path.stem}/{name}", data)


def records_of(path: Path) -> list[tuple[str, bytes]]:
    """What ``save_records`` takes, of a real file."""
    with zipfile.ZipFile(path) as file:
        return [(name.partition("/")[2], file.read(name)) for name in file.namelist()]


def change_directory(path: Path, change: Callable[[list[zipfile.ZipInfo]], None]) -> None:
    """Lets ``change`` falsify the list of records at the end of a zip; the records stay."""
    with zipfile.ZipFile(path, "a") as file:
        change(file.infolist())
        file.comment = b" "  # so that the list is written again
