"""Files that would run code, or that lie about what they hold, are refused by name, and nothing happens.

Where a file would run code, the test shows at its end that it does so in Python's own unpickler.
"""

import argparse
import builtins
import collections
import contextlib
import functools
import importlib
import io
import os
import pathlib
import pickle
import shutil
import subprocess
import threading
import warnings
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.checkpoint import load_consolidated
from mpnet_ds.errors import UserError
from mpnet_ds.zero.torch_file import load_shard
from tests.checkpoint.crooked import Call, Lie, change_directory, records_of, save, save_pickle, save_records
from tests.checkpoint.fixtures import assert_refused

pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),  # crooked.py writes files through them
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),  # torch, of the pickles written by hand
]
MODEL = "mp_rank_00_model_states.pt"
SHARD = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


def runs_elsewhere(path: pathlib.Path, canary: pathlib.Path) -> bool:
    """Whether a reader without a list of what is allowed would have run the code."""
    warnings.simplefilter("ignore")
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)  # on purpose: shows that the attack is one
    return canary.exists()


def touch(canary) -> Call:
    return Call(os.system, f"touch {canary}")


ATTACKS = {
    "os.system": touch,
    "subprocess": lambda canary: Call(subprocess.check_call, ["touch", str(canary)]),
    "eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w').close()"),
    "exec by getattr": lambda canary: Call(
        Call(getattr, Call(importlib.import_module, "builtins"), "exec"), f"open({str(canary)!r}, 'w').close()"
    ),
    "open": lambda canary: Call(open, str(canary), "w"),
    "Path.touch": lambda canary: Call(pathlib.Path.touch, canary),
    "partial": lambda canary: Call(functools.partial(os.system, f"touch {canary}")),
    "torch.load": lambda canary: Call(functools.partial(torch.load, io.BytesIO(pickled(canary)), weights_only=False)),
    "by module torch": lambda canary: Call(torch.serialization.os.system, f"touch {canary}"),
}


def pickled(canary) -> bytes:
    file = io.BytesIO()
    torch.save(touch(canary), file)
    return file.getvalue()


@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_refused_and_does_not_run(copied, tmp_path, attack):
    checkpoint, canary = copied(), tmp_path / "canary"
    save(load_shard(checkpoint / SHARD) | {"innocent": ATTACKS[attack](canary)}, checkpoint / SHARD)
    assert_refused(checkpoint, SHARD)
    assert not canary.exists()
    assert runs_elsewhere(checkpoint / SHARD, canary)


def hide_in_scaler(content: dict, attack) -> None:
    content["optimizer_state_dict"]["loss_scaler"].cur_scale = attack


def hide_in_tensor(content: dict, attack) -> None:
    content["optimizer_state_dict"]["single_partition_of_fp32_groups"][0].extra = attack


def hide_in_parameter(content: dict, attack) -> None:
    content["weight"] = torch.nn.Parameter(torch.zeros(3))
    content["weight"].extra = attack


PLACES = {
    "value": lambda content, attack: content.update(x=attack),
    "deep": lambda content, attack: content.update(x=[({"y": [({"z": (attack,)},)]},)]),
    "ordered": lambda content, attack: content.update(x=collections.OrderedDict(y=attack)),
    "key": lambda content, attack: content.update(x={attack: 1}),
    "set": lambda content, attack: content.update(x={attack}),
    "config": lambda content, attack: content["ds_config"].update(zero_optimization={"stage": attack}),
    "namespace": lambda content, attack: content.update(x=argparse.Namespace(y=attack)),
    "scaler": hide_in_scaler,
    "tensor": hide_in_tensor,
    "parameter": hide_in_parameter,
}


@pytest.mark.parametrize("place", PLACES)
def test_code_is_found_wherever_it_hides(copied, tmp_path, place):
    checkpoint, canary = copied(), tmp_path / "canary"
    content = load_shard(checkpoint / SHARD)
    PLACES[place](content, touch(canary))
    save(content, checkpoint / SHARD)
    assert_refused(checkpoint, SHARD)
    assert not canary.exists()
    assert runs_elsewhere(checkpoint / SHARD, canary)


VICTIMS = [
    ("zero0-fp32", MODEL),
    ("zero0-bf16", MODEL),
    ("zero1-fp32", MODEL),
    ("zero2-fp32", MODEL),
    ("zero2-fp32", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ("zero2-bf16", f"bf16_{SHARD}"),
    ("zero1-bf16-accumulated_in_fp32", f"bf16_{SHARD}"),
    ("zero3-fp32", "zero_pp_rank_0_mp_rank_00_model_states.pt"),
    ("zero3-fp32", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
    ("zero3-fp32", SHARD),
    ("universal2-fp32", MODEL),
    ("universal2-fp32", "zero/words.weight/fp32.pt"),
    ("universal3-fp32", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
    ("universal3-fp32", "zero/perches.1.shift/fp32.pt"),
]


@pytest.mark.parametrize(("kind", "victim"), VICTIMS)
def test_code_is_found_in_every_file_that_is_read(copied, tmp_path, kind, victim):
    checkpoint, canary = copied(kind), tmp_path / "canary"
    save({"a": [load_shard(checkpoint / victim)], "b": touch(canary)}, checkpoint / victim)
    assert_refused(checkpoint, victim)
    assert not canary.exists()


@pytest.mark.parametrize(
    "stranger",
    [builtins.len, threading.Thread, io.StringIO(), contextlib.ExitStack, subprocess.Popen],
    ids=["len", "Thread", "StringIO", "ExitStack", "Popen"],
)
def test_what_is_not_data_in_pythons_library_is_refused_even_if_it_is_harmless(copied, stranger):
    checkpoint = copied()
    torch.save(load_shard(checkpoint / MODEL) | {"args": stranger}, checkpoint / MODEL)
    assert_refused(checkpoint, MODEL)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


# Each makes a pickle by hand of a command: what Python's own pickler would not write.
OPCODES = {
    "GLOBAL": lambda command: b"\x80\x02cos\nsystem\n" + b"(S'" + command + b"'\ntR.",
    "GLOBAL posix": lambda command: b"\x80\x02cposix\nsystem\n" + b"(S'" + command + b"'\ntR.",
    "STACK_GLOBAL": lambda command: b"\x80\x04" + short("os") + short("system") + b"\x93S'" + command + b"'\n\x85R.",
    "dotted": lambda command: (
        b"\x80\x04" + short("torch") + short("serialization.os.system") + b"\x93S'" + command + b"'\n\x85R."
    ),
    "INST": lambda command: b"(S'" + command + b"'\nios\nsystem\n.",
    "OBJ": lambda command: b"(cos\nsystem\nS'" + command + b"'\no.",
    "then a dict": lambda command: b"\x80\x02cos\nsystem\n(S'" + command + b"'\ntR0}.",
    "in a list of memos": lambda command: b"\x80\x02]q\x00(cos\nsystem\nq\x01h\x01S'" + command + b"'\n\x85Re.",
    "storage class": lambda command: b"\x80\x02(S'storage'\ncos\nsystem\n(S'" + command + b"'\ntRS'0'\nS'cpu'\nI1\ntQ.",
}


@pytest.mark.parametrize("container", ["zip", "raw"])
@pytest.mark.parametrize("opcode", OPCODES)
def test_pickles_written_by_hand_are_refused(copied, tmp_path, opcode, container):
    checkpoint, canary = copied(), tmp_path / "canary"
    data = OPCODES[opcode](f"touch {canary}".encode())
    if container == "zip":
        save_pickle(data, checkpoint / SHARD)
    else:
        (checkpoint / SHARD).write_bytes(data)
    assert_refused(checkpoint, SHARD)
    assert not canary.exists()
    with contextlib.suppress(Exception):  # the command is live
        Unpickler(io.BytesIO(data)).load()
    assert canary.exists()


class Unpickler(pickle.Unpickler):
    def persistent_load(self, _):
        return None


SENSELESS = {
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'true'\nt\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n(S'true'\nt}\x92.",
    "BUILD": b"\x80\x02cargparse\nNamespace\n)\x81}S'a'\nI1\nsb.",
    "PERSID": b"Pstorage\n.",
    "list": b"\x80\x02].",
    "number": b"I7\n.",
    "list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "dict of itself": b"\x80\x02}q\x00S'optimizer_state_dict'\nh\x00s.",
    "very deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "promised bytes": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"a.",
    "promised number": b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "no pickle": b"PK hello",
}


@pytest.mark.parametrize("opcode", SENSELESS)
def test_pickles_that_make_no_sense_are_refused(copied, opcode):
    checkpoint = copied()
    save_pickle(SENSELESS[opcode], checkpoint / SHARD)
    assert_refused(checkpoint, SHARD)


def twice(records: list, evil: bytes) -> list:
    return [*records, ("data.pkl", evil)]


def twice_first(records: list, evil: bytes) -> list:
    return [("data.pkl", evil), *records]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "add",
    [
        twice,
        twice_first,
        lambda records, evil: [*records, ("constants.pkl", evil)],
        lambda records, evil: [("data.pkl", evil)],
    ],
    ids=["second pickle", "first pickle", "TorchScript", "only the pickle"],
)
def test_second_pickle_in_a_file_is_refused(copied, tmp_path, add):
    checkpoint, canary = copied(), tmp_path / "canary"
    evil = OPCODES["GLOBAL"](f"touch {canary}".encode())
    save_records(add(records_of(checkpoint / SHARD), evil), checkpoint / SHARD)
    assert_refused(checkpoint, SHARD)
    assert not canary.exists()


def test_file_of_before_the_zip_format_is_refused_if_it_holds_code(copied, tmp_path):
    checkpoint, canary = copied(), tmp_path / "canary"
    content = load_shard(checkpoint / SHARD) | {"x": touch(canary)}
    torch.save(content, checkpoint / SHARD, _use_new_zipfile_serialization=False)
    assert_refused(checkpoint, SHARD)
    assert not canary.exists()
    assert runs_elsewhere(checkpoint / SHARD, canary)


# The real tensor has 4,108 numbers; what it claims to be instead.
REAL = {"count": 4108, "size": (4108,), "data": bytes(4 * 4108)}
LIES = {
    "record too short": {**REAL, "data": bytes(400)},
    "no record": {**REAL, "data": None},
    "empty record": {**REAL, "data": b""},
    "count beyond the record": {**REAL, "count": 1 << 40},
    "negative count": {**REAL, "count": -4108},
    "size beyond the storage": {**REAL, "size": (4110,)},
    "offset beyond the storage": {**REAL, "offset": 5000},
    "offset and size beyond the storage": {**REAL, "offset": 1},
    "negative offset": {**REAL, "offset": -4},
    "stride out of the storage": {**REAL, "stride": (2,)},
    "negative stride": {**REAL, "stride": (-1,), "offset": 4107},
    "one number as many": {**REAL, "count": 1, "data": bytes(4), "size": (4108,), "stride": (0,)},
    "one number as a million million": {"count": 1, "data": bytes(4), "size": (10**12,), "stride": (0,)},
    "size that overflows": {**REAL, "size": (1 << 62, 1 << 62), "stride": (0, 0)},
    "negative size": {**REAL, "size": (-4108,)},
    "fewer numbers": {**REAL, "size": (4107,)},
    "integers": {**REAL, "storage": torch.IntStorage},
    "doubles": {**REAL, "storage": torch.DoubleStorage, "data": bytes(8 * 4108)},
    "doubles in the room of floats": {**REAL, "storage": torch.DoubleStorage},
    "bytes": {**REAL, "storage": torch.ByteStorage},
}


@pytest.mark.parametrize("lie", LIES)
def test_tensor_that_is_not_what_it_says_is_refused(copied, lie):
    checkpoint = copied()
    content = load_shard(checkpoint / SHARD)
    groups = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    assert groups[1].numel() == REAL["count"]
    groups[1] = Lie(**LIES[lie])
    save(content, checkpoint / SHARD)
    assert_refused(checkpoint, SHARD)


def test_forger_that_tells_the_truth_is_believed(copied, foreign):
    """What the lies above differ from: the same writer, the real numbers."""
    checkpoint = copied()
    content = load_shard(checkpoint / SHARD)
    groups = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    groups[1] = Lie(data=groups[1].detach().numpy().tobytes(), count=4108, size=(4108,))
    save(content, checkpoint / SHARD)
    found, truth = load_consolidated(checkpoint), foreign("zero2-fp32", 2).truth
    assert all(torch.equal(found[name], truth[name]) for name in truth)


@pytest.fixture(scope="module")
def damaged(foreign, tmp_path_factory) -> pathlib.Path:
    """A copy of a checkpoint whose files are damaged one after another."""
    return pathlib.Path(shutil.copytree(foreign("zero2-fp32", 2).folder, tmp_path_factory.mktemp("damaged") / "last"))


@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4), st.sampled_from([MODEL, SHARD]))
def test_damaged_pickle_ends_in_a_refusal_or_in_nothing(foreign, damaged, place, other, victim):
    """Other bytes anywhere in it: no other error, and no tensor of another shape."""
    checkpoint, whole = damaged, foreign("zero2-fp32", 2).folder
    records = dict(records_of(whole / victim))
    start = int(place * len(records["data.pkl"]))
    records["data.pkl"] = records["data.pkl"][:start] + other + records["data.pkl"][start + len(other) :]
    save_records(list(records.items()), checkpoint / victim)
    try:
        found, refusal = load_consolidated(checkpoint), victim
    except UserError as error:
        found, refusal = {}, str(error)
    assert victim in refusal
    shapes = {tensor.shape for tensor in foreign("zero2-fp32", 2).truth.values()}
    assert {tensor.shape for tensor in found.values()} <= shapes
    shutil.copy(whole / victim, checkpoint / victim)


def the_largest(directory: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    return max(directory, key=lambda record: record.file_size)


def lie_about_the_size(directory: list[zipfile.ZipInfo]) -> None:
    the_largest(directory).file_size = the_largest(directory).compress_size = 1 << 30


def point_beyond_the_file(directory: list[zipfile.ZipInfo]) -> None:
    the_largest(directory).header_offset = 1 << 30


def overlap(directory: list[zipfile.ZipInfo]) -> None:
    largest = the_largest(directory)
    same_size = [record for record in directory if record.file_size == largest.file_size and record is not largest]
    same_size[0].header_offset = largest.header_offset


@pytest.mark.parametrize("change", [lie_about_the_size, point_beyond_the_file, overlap])
def test_list_of_records_that_lies_is_refused(copied, change):
    checkpoint = copied()
    change_directory(checkpoint / SHARD, change)
    assert_refused(checkpoint, SHARD)


def test_compressed_records_are_refused(copied):
    """A few bytes could become any number of them."""
    checkpoint = copied()
    save_records(records_of(checkpoint / SHARD), checkpoint / SHARD, zipfile.ZIP_DEFLATED)
    assert_refused(checkpoint, SHARD)


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a/../../b", "", "a\0b", b"words", 7], ids=repr)
@pytest.mark.parametrize("kind", ["zero2-fp32", "universal3-fp32"])
def test_names_that_are_paths_are_refused(copied, kind, name):
    checkpoint = copied(kind)
    victim = MODEL if kind == "zero2-fp32" else "zero_pp_rank_0_mp_rank_00_model_states.pt"
    content = load_shard(checkpoint / victim)
    content["param_shapes"] = [
        collections.OrderedDict((name if key == "words.weight" else key, shape) for key, shape in group.items())
        for group in content["param_shapes"]
    ]
    torch.save(content, checkpoint / victim)
    assert_refused(checkpoint, victim)
