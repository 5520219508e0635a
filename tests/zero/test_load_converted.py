"""Checkpoints go from any ZeRO stage, precision and number of ranks to any other."""

import pytest
import torch

from mpnet_ds.checkpoint.store import find_checkpoint
from mpnet_ds.zero.checkpoint_reader import MASTER, ZeroCheckpoint
from mpnet_ds.zero.shard_set import MODEL_STATES
from mpnet_ds.zero.torch_file import load_shard


@pytest.mark.parametrize(
    ("source", "saved_by", "loaded_by", "rare"),
    [
        ("zero3", 2, 1, False),
        ("bf16", 1, 2, False),
        *(
            pytest.param(*case, True, marks=pytest.mark.long)
            for case in (("zero1", 2, 1), ("zero0", 1, 2), ("zero3", 2, 1), ("bf16", 1, 2))
        ),
    ],
)
def test_weights_moments_and_count_of_steps_arrive_bit_for_bit(own, source, saved_by, loaded_by, rare):
    before = ZeroCheckpoint(find_checkpoint(own(source, saved_by, rare=rare)))
    expected = dict(before.named_states())
    assert len(expected) == 42
    assert all(states["exp_avg_sq"].abs().max() > 0 for states in expected.values())
    converted = sorted(own(source, saved_by, loaded_by, rare).iterdir())
    assert len(converted) == (10 if rare else 3 if loaded_by == 1 else 4)
    for folder in converted:
        after, kind = ZeroCheckpoint(folder), folder.name
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
