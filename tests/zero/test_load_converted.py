"""Checkpoints go from any ZeRO stage, precision and number of ranks to any other."""

import itertools
import sys

import pytest
import torch

from mpnet_ds.zero.checkpoint_reader import MASTER, ZeroCheckpoint
from mpnet_ds.zero.shard_set import MODEL_STATES
from mpnet_ds.zero.torch_file import load_shard
from tests.runs import ROOT, command, free_port

KINDS = [f"zero{stage}:{precision}" for stage, precision in itertools.product(range(4), ("fp32", "bf16"))]
KINDS += ["zero2_offload:fp32", "zero3_offload:bf16"]
PROGRAM = ROOT / "tests" / "checkpoint" / "convert_many.py"


@pytest.mark.parametrize(
    ("source", "saved_by", "loaded_by"),
    [
        ("zero3", 2, 1),
        ("bf16", 1, 2),
        pytest.param("zero1", 2, 1, marks=pytest.mark.long),
        pytest.param("zero0", 1, 2, marks=pytest.mark.long),
    ],
)
def test_weights_moments_and_count_of_updates_arrive_bit_for_bit(trained, tmp_path, source, saved_by, loaded_by):
    before = ZeroCheckpoint(trained(source, saved_by).newest_checkpoint)
    expected = dict(before.named_states())
    assert len(expected) == 42
    assert all(states["exp_avg_sq"].abs().max() > 0 for states in expected.values())
    launcher = (
        ["deepspeed", "--num_accelerators", loaded_by, "--master_port", free_port()] if loaded_by > 1 else [sys.executable]
    )
    done = command(*launcher, PROGRAM, trained(source, saved_by).newest_checkpoint, tmp_path, *KINDS)
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        after = ZeroCheckpoint(tmp_path / kind.replace(":", "-"))
        assert after.num_steps == before.num_steps == 8
        found = dict(after.named_states())
        assert found.keys() == expected.keys()
        for name, states in expected.items():
            assert found[name].keys() == {MASTER, "exp_avg", "exp_avg_sq"}
            for key, tensor in states.items():
                assert torch.equal(found[name][key], tensor), (kind, name, key)
        assert_low_precision_weights_follow(after, expected, kind)


def assert_low_precision_weights_follow(checkpoint: ZeroCheckpoint, expected: dict, kind: str) -> None:
    """What the next forward pass computes with (at ZeRO 3 it is not in a file of one rank)."""
    module = load_shard(checkpoint.folder / MODEL_STATES)["module"] if "zero3" not in kind else {}
    dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32
    for name in module.keys() & expected.keys():
        assert torch.equal(module[name], expected[name][MASTER].to(dtype)), (kind, name)
