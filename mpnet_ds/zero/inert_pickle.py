"""The pickle inside a checkpoint file, read without running or importing anything of it.

A pickle builds objects by naming classes and functions and calling them. Here only tensors and Python's containers are
built. Every other class is a *stand-in*, made on the spot: it takes whatever the file does with it, keeps it for ``repr``,
and does nothing. So weights can be read whatever a program put beside them: numbers of NumPy, paths, dates, its own classes.

What is not data is refused by name: functions that the file would call, and everything of Python's library but the types
below. A tensor has dtype, shape, strides and no values (device "meta"); its attribute ``record`` tells where they are.
"""

import builtins
import pickle
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from reprlib import recursive_repr
from typing import Any

import numpy
import torch
from torch import Tensor

from mpnet_ds.zero.torch_archive import StorageRecord

_STORAGES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
    **{"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8},
}
_PYTHONS_DATA = {
    "argparse": {"Namespace"},
    "array": {"array"},
    "collections": {"ChainMap", "Counter", "UserDict", "UserList", "UserString", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "itertools": {"chain", "count", "cycle", "repeat"},
    "ipaddress": {"IPv4Address", "IPv4Network", "IPv6Address", "IPv6Network"},
    "operator": {"attrgetter", "itemgetter", "methodcaller"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "random": {"Random"},
    "re": {"_compile"},
    "time": {"struct_time"},
    "types": {"MappingProxyType", "SimpleNamespace"},
    "uuid": {"SafeUUID", "UUID"},
    "zoneinfo": {"ZoneInfo", "ZoneInfo._unpickle"},
}
"""Types of Python's own library that hold data, by module; those of ``builtins`` are added."""
_LIBRARIES = {"numpy": numpy, "torch": torch}
_NUMPYS_FUNCTIONS = re.compile(r"scalar|_reconstruct|_frombuffer|_mareconstruct|__\w+_ctor")
"""What NumPy's pickles call beside its types."""
_CYTHONS_FUNCTIONS = re.compile(r"_(_pyx_)?unpickle_\w+")
"""What pickles of compiled classes call, such as those of NumPy's random numbers and of pandas' times."""


class RefusedGlobal(Exception):
    """The pickle asks for what is not data; the message is its full name."""


class _Callable(type):
    """Refuses calls of what is named like a function."""

    def __call__(cls, *arguments, **named):
        if not cls.is_data:
            raise RefusedGlobal(cls.__name__)
        return super().__call__(*arguments, **named)


class StandIn(metaclass=_Callable):
    """An object of a class that was not imported. Equal objects have equal ``repr``."""

    module, name, is_data = "", "", True

    def __new__(cls, *arguments, **named):
        """Make an object of any arguments."""
        self = super().__new__(cls)
        self.content = [*arguments, *named.items()]
        return self

    def __init__(self, *arguments, **named): ...

    def __setstate__(self, state) -> None:
        self.content.append(state)

    def __setitem__(self, key, value) -> None:
        self.content.append((key, value))

    def append(self, item) -> None:
        """Take an item of a list, as pickle gives it."""
        self.content.append(item)

    add = append

    @recursive_repr()
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.content))})"


def _tensor(storage: tuple, offset: int, shape: tuple, stride: tuple, grad=None, hooks=None, *more) -> Tensor:
    """In the place of ``torch._utils._rebuild_tensor_v2``; ``more`` may be a dtype (``…_v3``) and metadata."""
    (dtype, bytes_in_storage, record), metadata = storage, [word for word in more if not isinstance(word, torch.dtype)]
    if any(metadata):
        raise pickle.UnpicklingError("negated and conjugated tensors are not supported")
    dtype = more[0] if more and isinstance(more[0], torch.dtype) else dtype
    memory = torch.UntypedStorage(bytes_in_storage, device="meta")
    tensor = torch.empty(0, dtype=dtype, device="meta").set_(memory, offset, shape, stride)
    tensor.record = record
    return tensor


def _same(value, *_):
    return value


def _bytes(text: str, encoding: str) -> bytes:
    """In the place of ``codecs.encode``, as which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r} are not supported")
    return text.encode(encoding)


def _from_type(function, kind, arguments, state):
    """A tensor with attributes, or of a subclass: the tensor alone."""
    return function(*arguments)


_BUILT = {
    "_codecs.encode": _bytes,
    "builtins.set": set,
    "builtins.bytearray": bytearray,
    "builtins.complex": complex,
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _same,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
}
"""What is built as it is; tensors without their values."""
ZERO_STAGES = ("disabled", "optimizer_states", "gradients", "weights")
"""Members of DeepSpeed's ``ZeroStageEnum``, in order of the stage."""


def read_pickle(data: bytes, records: Mapping[str, StorageRecord]) -> Any:
    """Read the pickle of a ``torch.save`` archive; ``records`` are its storages by key.

    Raises ``RefusedGlobal`` for what is not data. Of a damaged pickle any exception may come.
    """
    return _Unpickler(data, records).load()


class _Unpickler(pickle._Unpickler):  # the one in C lets a pickle claim any amount of memory
    def __init__(self, data: bytes, records: Mapping[str, StorageRecord]):
        super().__init__(BytesIO(data), encoding="latin1")
        self._records, self._stand_ins = records, {}

    dispatch = pickle._Unpickler.dispatch.copy()

    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full_name = f"{module}.{name}"
        if full_name in _BUILT:
            return _BUILT[full_name]
        if full_name == "builtins.getattr":
            return self._attribute
        if module in ("torch", "torch.storage"):
            value = _STORAGES.get(name, vars(torch).get(name))
            if isinstance(value, torch.dtype):
                return value
        if module.partition(".")[0] in sys.stdlib_module_names and not _is_pythons_data(module, name):
            raise RefusedGlobal(full_name)
        if full_name not in self._stand_ins:
            described = {"module": module, "name": name, "is_data": _is_data(module, name)}
            self._stand_ins[full_name] = type(full_name, (StandIn,), described)
        return self._stand_ins[full_name]

    def _attribute(self, owner: type[StandIn], name: str) -> Any:
        """In the place of ``getattr``, by which a class within another is named, and in early 3.11 an enum's member."""
        if owner is int and name in ZERO_STAGES:
            return ZERO_STAGES.index(name)
        return self.find_class(owner.module, f"{owner.name}.{name}")

    def persistent_load(self, pid: tuple) -> tuple[torch.dtype, int, StorageRecord]:
        kind, dtype, key, _, count = pid
        if kind not in ("storage", b"storage"):
            raise pickle.UnpicklingError("a storage was expected")
        return dtype, count * dtype.itemsize, self._records[str(key)]

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes are not supported")

    def load_build(self) -> None:
        """Give an object its state; attributes of dictionaries are not needed."""
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, StandIn):
            instance.__setstate__(state)
        elif type(instance) is not OrderedDict:
            raise pickle.UnpicklingError(f"a {type(instance).__name__} takes no state")

    dispatch[pickle.BUILD[0]] = load_build


def _is_pythons_data(module: str, name: str) -> bool:
    if module == "builtins":
        return isinstance(vars(builtins).get(name), type) or name in ("Ellipsis", "NotImplemented")
    return name in _PYTHONS_DATA.get(module.removesuffix("._local"), ())


def _is_data(module: str, name: str) -> bool:
    """Whether a name may be called: a class, by its capital letter or by its module."""
    if module in _LIBRARIES:
        return isinstance(vars(_LIBRARIES[module]).get(name), type)
    if _CYTHONS_FUNCTIONS.fullmatch(name) or (module.startswith("numpy.") and _NUMPYS_FUNCTIONS.fullmatch(name)):
        return True
    last = name.rpartition(".")[2].lstrip("_")
    return module.partition(".")[0] in sys.stdlib_module_names or last[:1].isupper()
