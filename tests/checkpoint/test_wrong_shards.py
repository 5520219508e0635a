"""Folders whose files do not belong together, or are not whole, are refused with the name of the file; nothing appears."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mpnet_ds.checkpoint import consolidate, load_consolidated
from mpnet_ds.errors import UserError
from mpnet_ds.zero.torch_file import load_shard
from tests.checkpoint.crooked import records_of, save_records
from tests.checkpoint.fixtures import Foreign, assert_refused

MODEL = "mp_rank_00_model_states.pt"
SHARDS = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(3)]
MODELS = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(3)]


def replace(path: Path, other: Path) -> None:
    path.unlink()
    shutil.copy(other, path)


# From where a file of the same name comes that does not belong here.
STRANGERS: dict[str, Callable[[Foreign, Callable], Path]] = {
    "earlier step": lambda here, foreign: here.root / "earlier",
    "another run": lambda here, foreign: foreign(f"{here.root.name}-other_run", 2).folder,
    "three ranks": lambda here, foreign: foreign(here.root.name, 3).folder,
}


@pytest.mark.parametrize(
    ("kind", "victim", "stranger"),
    [
        ("zero1-fp32", SHARDS[0], "earlier step"),
        ("zero1-fp32", SHARDS[1], "another run"),
        ("zero1-fp32", MODEL, "earlier step"),
        ("zero1-fp32", SHARDS[0], "three ranks"),
        ("zero2-fp32", SHARDS[1], "earlier step"),
        ("zero2-fp32", SHARDS[0], "another run"),
        ("zero2-fp32", MODEL, "another run"),
        ("zero2-bf16", f"bf16_{SHARDS[0]}", "another run"),
        ("zero2-bf16", f"bf16_{SHARDS[1]}", "three ranks"),
        ("zero2-bf16", MODEL, "earlier step"),
        ("zero3-fp32", SHARDS[1], "earlier step"),
        ("zero3-fp32", MODELS[1], "earlier step"),
    ],
)
def test_file_of_another_checkpoint_is_refused(foreign, copied, kind, victim, stranger):
    """At ZeRO 3 nothing in the files tells a shard of another run after as many updates."""
    checkpoint = copied(kind)
    replace(checkpoint / victim, STRANGERS[stranger](foreign(kind, 2), foreign) / victim)
    assert_refused(checkpoint, victim)


def swap_ranks(checkpoint: Path) -> str:
    one, two = (checkpoint / name for name in SHARDS[:2])
    os.rename(one, checkpoint / "aside")
    os.rename(two, one)
    os.rename(checkpoint / "aside", two)
    return "zero_pp_rank_"


def other_prefix_beside_it(checkpoint: Path) -> str:
    shutil.copy(checkpoint / SHARDS[0], checkpoint / f"bf16_{SHARDS[0]}")
    return SHARDS[0]


def rank_too_many(checkpoint: Path) -> str:
    shutil.copy(checkpoint / SHARDS[1], checkpoint / SHARDS[2])
    return SHARDS[2]


def far_rank_too_many(checkpoint: Path) -> str:
    name = SHARDS[1].replace("rank_1", "rank_17")
    shutil.copy(checkpoint / SHARDS[1], checkpoint / name)
    return name


def rank_missing(checkpoint: Path) -> str:
    (checkpoint / SHARDS[0]).unlink()
    return SHARDS[0]


def last_rank_missing(checkpoint: Path) -> str:
    (checkpoint / SHARDS[1]).unlink()
    return SHARDS[1]


def model_too_many(checkpoint: Path) -> str:
    shutil.copy(next(checkpoint.glob("*model_states.pt")), checkpoint / MODELS[2])
    return MODELS[2]


def model_parallel(checkpoint: Path) -> str:
    name = "mp_rank_01_model_states.pt"
    shutil.copy(next(checkpoint.glob("*model_states.pt")), checkpoint / name)
    return name


def model_missing(checkpoint: Path) -> str:
    path = sorted(checkpoint.glob("*model_states.pt"))[-1]  # at ZeRO 3 that of rank 1, with its part of what is frozen
    path.unlink()
    return path.name


CHANGES = [other_prefix_beside_it, rank_too_many, far_rank_too_many, rank_missing, last_rank_missing]
CHANGES += [model_too_many, model_parallel, model_missing]


@pytest.mark.parametrize(
    ("kind", "change"),
    [(kind, change) for kind in ("zero2-fp32", "zero3-fp32") for change in CHANGES] + [("zero2-fp32", swap_ranks)],
)
def test_missing_and_extra_files_are_named(copied, kind, change):
    checkpoint = copied(kind)
    assert_refused(checkpoint, change(checkpoint))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1, -22, -1000])
@pytest.mark.parametrize("victim", [MODEL, SHARDS[1]])
def test_truncated_file_is_named(copied, victim, kept):
    checkpoint = copied()
    whole = (checkpoint / victim).read_bytes()
    (checkpoint / victim).write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert_refused(checkpoint, victim)


@pytest.mark.parametrize("kind", ["universal2-fp32", "universal3-bf16"])
@pytest.mark.parametrize("left", [None, 0, 200])
def test_weight_missing_or_cut_in_a_universal_checkpoint_is_named(copied, kind, left):
    checkpoint = copied(kind)
    path = checkpoint / "zero" / "perches.1.sink.weight" / "fp32.pt"
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    assert_refused(checkpoint, "perches.1.sink.weight")


def test_weight_of_another_shape_in_a_universal_checkpoint_is_named(copied):
    checkpoint = copied("universal2-fp32")
    replace(checkpoint / "zero" / "words.weight" / "fp32.pt", checkpoint / "zero" / "say.bias" / "fp32.pt")
    assert_refused(checkpoint, "words.weight")


def larger(groups: list) -> None:
    groups[1]["perches.0.sink.weight"] = torch.Size([31, 54])


def smaller(groups: list) -> None:
    groups[1]["perches.0.sink.weight"] = torch.Size([30, 53])


def one_more(groups: list) -> None:
    groups[0]["more"] = torch.Size([3])


def one_less(groups: list) -> None:
    del groups[2]["calm.bias"]


def group_more(groups: list) -> None:
    groups.append({"more": torch.Size([1])})


def group_less(groups: list) -> None:
    groups.pop()


def negative(groups: list) -> None:
    groups[1]["perches.0.sink.weight"] = [-31, -53]


def as_text(groups: list) -> None:
    groups[1]["perches.0.sink.weight"] = "31x53"


def moved(groups: list) -> None:
    groups[0]["words.weight"] = groups[2].pop("words.weight")


@pytest.mark.parametrize("change", [larger, smaller, one_more, one_less, group_more, group_less, negative, as_text, moved])
@pytest.mark.parametrize(("kind", "victim"), [("zero2-fp32", MODEL), ("zero3-fp32", MODELS[0])])
def test_shapes_that_do_not_add_up_are_refused(copied, kind, victim, change):
    checkpoint = copied(kind)
    for path in [checkpoint / victim] if kind == "zero2-fp32" else [checkpoint / name for name in MODELS[:2]]:
        content = load_shard(path)
        change(content["param_shapes"])
        torch.save(content, path)
    assert_refused(checkpoint, victim)


@pytest.mark.parametrize("key", ["param_shapes", "module", "shared_params", "buffer_names", "frozen_param_fragments"])
def test_key_of_a_senseless_type_is_refused(copied, key):
    checkpoint = copied("zero3-fp32")
    content = load_shard(checkpoint / MODELS[0])
    torch.save(content | {key: 7}, checkpoint / MODELS[0])
    assert_refused(checkpoint, MODELS[0])


@pytest.mark.parametrize("key", ["fp32_flat_groups", "zero_stage", "partition_count"])
def test_key_that_a_shard_lacks_is_named(copied, key):
    checkpoint = copied("zero3-fp32")
    content = load_shard(checkpoint / SHARDS[1])
    del content["optimizer_state_dict"][key]
    torch.save(content, checkpoint / SHARDS[1])
    assert_refused(checkpoint, SHARDS[1])


@pytest.mark.parametrize("tied", [{"say.weight": "gone"}, {"say.weight": "say.weight"}, {"new": "../x"}, {"say.weight": 7}])
def test_ties_to_nothing_are_refused(copied, tied):
    checkpoint = copied()
    content = load_shard(checkpoint / MODEL)
    torch.save(content | {"shared_params": tied}, checkpoint / MODEL)
    assert_refused(checkpoint, MODEL)


def test_a_tie_of_weights_that_the_save_left_out_is_none(foreign, copied):
    """As ``exclude_frozen_parameters`` leaves it."""
    checkpoint = copied()
    content = load_shard(checkpoint / MODEL)
    torch.save(content | {"shared_params": content["shared_params"] | {"cold.weight": "frozen.weight"}}, checkpoint / MODEL)
    assert load_consolidated(checkpoint).keys() == foreign("zero2-fp32", 2).truth.keys()


def test_names_of_tensors_of_other_shapes_are_not_tied(foreign, copied):
    """DeepSpeed goes by addresses: empty tensors have the same."""
    checkpoint = copied()
    content = load_shard(checkpoint / MODEL)
    torch.save(content | {"shared_params": content["shared_params"] | {"level": "places"}}, checkpoint / MODEL)
    truth = foreign("zero2-fp32", 2).truth
    assert torch.equal(load_consolidated(checkpoint)["level"], truth["level"])


@pytest.mark.parametrize(("kind", "victim"), [("zero1-fp32", MODEL), ("zero2-bf16", MODEL), ("zero3-fp32", MODELS[0])])
def test_weights_that_a_program_saves_under_names_of_its_own_are_named(copied, kind, victim):
    """By a hook on the state dict, for example: the optimizer has them under others."""
    checkpoint = copied(kind)
    records = dict(records_of(checkpoint / victim))
    records["data.pkl"] = records["data.pkl"].replace(b"\x0b\0\0\0calm.weight", b"\x0b\0\0\0own..weight", 1)
    save_records(list(records.items()), checkpoint / victim)
    assert_refused(checkpoint, "own..weight")


def test_values_that_the_type_cannot_hold_are_refused_by_name(copied):
    checkpoint = copied("zero2-fp32")
    content = load_shard(checkpoint / MODEL)
    content["module"]["level"][3] = 7e4
    torch.save(content, checkpoint / MODEL)
    with pytest.raises(UserError, match=r"level has values that float16 cannot hold: choose --dtype bf16 or fp32"):
        consolidate(checkpoint, checkpoint.parent / "out", dtype="fp16")
    consolidate(checkpoint, checkpoint.parent / "bf16", dtype="bf16")
    content["module"]["level"] = content["module"]["level"].double() * 1e300
    torch.save(content, checkpoint / MODEL)
    assert_refused(checkpoint, "level has values that float32 cannot hold")
