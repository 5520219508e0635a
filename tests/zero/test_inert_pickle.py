"""What programs put beside their weights is passed over, whatever it is; none of it is imported or called."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import operator
import pathlib
import random
import re
import sys
import types
import uuid
import zoneinfo

import numpy
import pytest
import torch

from mpnet_ds.errors import UserError
from mpnet_ds.zero.torch_file import TensorFile

PROGRAM = "a_program_that_is_gone"
NUMPYS = [numpy.dtype(code).type for code in "?bBhHiIlLqQefdgFDG"]
TODAY = datetime.datetime(2026, 1, 2, 3, 4, 5)


@dataclasses.dataclass
class Settings:
    rate: float = 0.1
    mode: object = None

    class Mode(enum.Enum):
        FAST = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    size: int = 3


class Sections(dict): ...


class Steps(list): ...


class Point(collections.namedtuple("Point", "x y")):
    __slots__ = ()


class config:
    layers = 3


class Watched:
    def __setstate__(self, state):
        raise AssertionError("called")


def watched() -> Watched:
    made = Watched()
    made.secret = 1
    return made


def sections() -> Sections:
    made = Sections(a=1)
    made.path = pathlib.Path("a")
    return made


OBJECTS = {
    "scalars": [kind(1) for kind in NUMPYS] + [numpy.str_("a"), numpy.bytes_(b"a"), numpy.datetime64("2026-01-01")],
    "arrays": [numpy.arange(3).astype(kind) for kind in NUMPYS] + [numpy.array(["a", None], dtype=object)],
    "records": [numpy.zeros(2, dtype=[("a", "i4"), ("b", "f8")]), numpy.ma.array([1, 2], mask=[0, 1]), numpy.float32],
    "random state": [
        numpy.random.RandomState(0).get_state(),
        numpy.random.default_rng(0),
        numpy.random.RandomState(0),
        random.Random(0),
    ],
    "namespaces": [argparse.Namespace(a=argparse.Namespace(b=pathlib.Path("c"))), types.SimpleNamespace(a=1)],
    "bound arguments": [functools.partial(Point, 1), operator.itemgetter(1), operator.attrgetter("a.b")],
    "paths": [pathlib.Path("a"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")],
    "times": [TODAY, TODAY.date(), TODAY.time(), datetime.timedelta(1), TODAY.replace(tzinfo=datetime.UTC)],
    "zone": TODAY.replace(tzinfo=zoneinfo.ZoneInfo("UTC")),
    "counters": [collections.Counter("abca"), collections.defaultdict(list, a=[1]), collections.defaultdict(int)],
    "containers": [collections.deque([1, 2], 3), collections.OrderedDict(a=1), {1, 2}, frozenset([1]), range(3), slice(2)],
    "torch": [torch.Size([1]), torch.device("cpu"), torch.float16, torch.nn.Parameter(torch.ones(2))],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), uuid.UUID(int=1), 1j, b"a", bytearray(b"a"), 1 << 80],
    "others": [re.compile("a"), itertools.count(3), ValueError("a"), NotImplemented, ..., int],
    "dataclasses": [Settings(), Slotted(), config()],
    "members": [Settings.Mode.FAST, {Settings.Mode.FAST: 1}],
    "subclasses": [sections(), Steps([1]), Point(1, 2)],
    "a class": [Settings, Settings.Mode],
    "own state": watched(),
}


@pytest.fixture
def program_is_gone(monkeypatch):
    """``program_is_gone(save)``: calls ``save`` while the classes above belong to a program that is not there later."""

    def during(save) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, PROGRAM, types.ModuleType(PROGRAM))
            for name in ("Settings", "Slotted", "Sections", "Steps", "Point", "config", "Watched"):
                patch.setattr(globals()[name], "__module__", PROGRAM)
                setattr(sys.modules[PROGRAM], name, globals()[name])
            patch.setattr(Settings.Mode, "__module__", PROGRAM)
            save()

    return during


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_are_read_beside_any_data(tmp_path, program_is_gone, kind, protocol):
    content = {"weight": torch.arange(3.0), "beside": OBJECTS[kind], "again": OBJECTS[kind]}
    program_is_gone(lambda: torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol))
    file = TensorFile(tmp_path / "x.pt")
    assert torch.equal(file.tensor(file.content["weight"]).read(), torch.arange(3.0))
    assert repr(file.content) == repr(TensorFile(tmp_path / "x.pt").content)
    assert PROGRAM not in sys.modules
    file.check()


def function(*_):
    raise AssertionError("called")


@dataclasses.dataclass
class Calls:
    """Pickled, the call of a function."""

    function: object

    def __reduce__(self):
        return self.function, ("echo",)


@pytest.mark.parametrize(
    ("named", "name"),
    [
        (function, r"test_inert_pickle\.function"),
        (torch.load, r"torch\.serialization\.load"),
        (numpy.load, r"numpy.*load"),
        (pathlib.Path.read_text, r"pathlib.*Path\.read_text"),
    ],
)
def test_a_call_of_a_function_is_refused_by_its_name(tmp_path, named, name):
    torch.save({"weight": torch.zeros(3), "beside": Calls(named)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"x\.pt asks for \S*{name}, which no weights need.*refused"):
        TensorFile(tmp_path / "x.pt")
