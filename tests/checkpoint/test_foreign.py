"""Checkpoints of another program, of every kind that DeepSpeed makes on a CPU, are read to the last bit."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mpnet_ds.checkpoint import consolidate, load_consolidated
from mpnet_ds.errors import UserError
from tests.checkpoint.fixtures import MADE, RARE
from tests.checkpoint.foreign import KINDS

INCOMPLETE = ("zero3-outside", "zero3-outside-without_frozen")
"""No file has the values of one of their weights."""
ALL = [
    (kind, ranks)
    for ranks in (2, 1, 3)
    for kind in (*MADE[ranks], *RARE[ranks])
    if "other_run" not in kind and kind not in INCOMPLETE
]
pytestmark = pytest.mark.filterwarnings("ignore:.*was saved without frozen weights")
TIED = {
    "say.weight": "words.weight",
    "perches.2.rise.weight": "perches.0.rise.weight",
    "perches.1.sink.bias": "perches.0.sink.bias",
    **{f"calmer.{copy}.{name}": f"calmer.0.{name}" for copy in (1, 2) for name in ("weight", "bias", "hum")},
}
"""Other name → first."""
WITHOUT_STAGE = "zero1-bf16-accumulated_in_fp32"
"""DeepSpeed's tool finds no ZeRO stage in it."""
READ_BY_DEEPSPEED = [
    (kind, ranks)
    for kind, ranks in ALL
    if kind.startswith(("zero1", "zero2", "zero3")) and kind != WITHOUT_STAGE and ranks > 1
]


def marked(pairs: list[tuple[str, int]]) -> list:
    return [pytest.param(*pair, marks=pytest.mark.long if pair[0] in RARE[pair[1]] else ()) for pair in pairs]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Names, types, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


@pytest.mark.parametrize(("kind", "ranks"), marked(ALL))
def test_every_weight_and_buffer_is_the_true_one(foreign, kind, ranks):
    checkpoint = foreign(kind, ranks)
    found = load_consolidated(checkpoint.folder)
    assert_same(found, checkpoint.truth)
    for second, first in TIED.items():
        assert found.get(second) is found.get(first)


@pytest.mark.parametrize(("kind", "ranks"), marked([(kind, ranks) for kind, ranks in ALL if ranks == 2]))
def test_file_holds_each_tensor_once(foreign, tmp_path, kind, ranks):
    checkpoint = foreign(kind, ranks)
    (path,) = consolidate(checkpoint.folder, tmp_path / "out")
    assert_same(load_file(path), {name: tensor for name, tensor in checkpoint.truth.items() if name not in TIED})


@pytest.mark.parametrize(("kind", "ranks"), marked(READ_BY_DEEPSPEED))
def test_deepspeeds_own_tool_agrees(foreign, kind, ranks):
    """It leaves out what is frozen at ZeRO 1 or outside the optimizer, and leaves in 16 bit what has no more."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    checkpoint = foreign(kind, ranks)
    expected = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.root))
    found = load_consolidated(checkpoint.folder)
    lost = {"places", *(f"perches.{number}.sink.bias" for number in range(3))} if KINDS[kind].stage == 1 else set()
    lost |= {"perches.1.shift"} if KINDS[kind].outside else set()
    assert found.keys() - expected.keys() - TIED.keys() <= lost
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.float() if tensor.is_floating_point() else tensor), name


@pytest.mark.parametrize("kind", ["zero0-bf16", "zero2-bf16", "zero3-fp32"])
def test_folder_that_holds_latest_stands_for_what_it_names(foreign, kind, tmp_path):
    checkpoint = foreign(kind, 2)
    assert_same(load_consolidated(checkpoint.root), checkpoint.truth)
    (path,) = consolidate(checkpoint.root, tmp_path / "out")
    assert_same(load_file(path), {name: tensor for name, tensor in checkpoint.truth.items() if name not in TIED})


@pytest.mark.parametrize("kind", ["zero2-without_frozen", "zero3-without_frozen"])
def test_a_warning_says_that_frozen_weights_were_left_out(foreign, kind):
    with pytest.warns(UserWarning, match="was saved without frozen weights"):
        load_consolidated(foreign(kind, 2).folder)


def test_weights_outside_the_optimizer_that_no_file_of_zero3_has_are_named(foreign):
    with pytest.raises(UserError, match=r"no file has values of perches\.1\.shift\. .*not frozen"):
        load_consolidated(foreign("zero3-outside", 2).folder)
    checkpoint = foreign("zero3-outside-without_frozen", 2)
    with pytest.warns(UserWarning, match=r"so are perches\.1\.shift"):
        found = load_consolidated(checkpoint.folder)
    assert_same(found, {name: tensor for name, tensor in checkpoint.truth.items() if name != "perches.1.shift"})


@pytest.mark.parametrize("tag", ["step/3", "./run//step-3", "run/../step/3"])
def test_latest_may_name_a_folder_further_below(foreign, tmp_path, tag):
    for folder in ("step/3", "run/step-3"):
        shutil.copytree(foreign("zero2-fp32", 2).folder, tmp_path / folder)
    (tmp_path / "latest").write_text(tag)
    assert load_consolidated(tmp_path).keys() == foreign("zero2-fp32", 2).truth.keys()


@pytest.mark.parametrize("tag", ["gone", "", ".", "../elsewhere", "a/../../elsewhere", "/tmp", "nul\0"])
def test_latest_that_names_nothing_is_refused_by_name(tmp_path, tag):
    (tmp_path.parent / "elsewhere").mkdir(exist_ok=True)
    (tmp_path / "latest").write_text(tag)
    with pytest.raises(UserError, match="latest"):
        load_consolidated(tmp_path)


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_other_precision_changes_floating_point_only(foreign, tmp_path, dtype, expected):
    checkpoint = foreign("zero2-fp32", 2)
    (path,) = consolidate(checkpoint.folder, tmp_path / "out", dtype=dtype)
    for name, tensor in load_file(path).items():
        truth = checkpoint.truth[name]
        assert torch.equal(tensor, truth.to(expected) if truth.is_floating_point() else truth), name
