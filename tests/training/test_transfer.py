import numpy as np
import pytest
import torch
from mpnet_ds.training.transfer import pack, unpack

CPU = torch.device("cpu")


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_arrives_as_it_was_and_travels_at_half_its_size(padded):
    random = np.random.default_rng(0)
    batch = {
        "input_ids": random.integers(0, 2**31, (2, 8)),
        "predicted_positions": random.integers(-1, 8, (2, 3)),
        "attention_mask": np.ones((2, 8), dtype=bool),
    }
    batch["attention_mask"][1, 6:] = not padded
    packed = pack(batch, CPU)
    assert ("attention_mask" in packed) == padded  # without padding the model takes it for granted
    assert sum(tensor.nbytes for tensor in packed.values()) == (2 * 8 + 2 * 3) * 4 + padded * 2 * 8
    arrived = unpack(packed, CPU)
    for name, tensor in arrived.items():
        assert tensor.dtype == (torch.bool if name == "attention_mask" else torch.int64)
        assert np.array_equal(tensor.numpy(), batch[name])
