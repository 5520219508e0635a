import threading
import time
from types import SimpleNamespace as Namespace

import numpy as np
import pytest
import torch

from mpnet_ds.training import prefetch
from mpnet_ds.training.prefetch import pack, prefetched, unpack


def test_items_come_in_order_and_each_once():
    assert [item for item, _ in prefetched(lambda number: number * 10, 3, 9)] == [30, 40, 50, 60, 70, 80, 90]
    assert list(prefetched(lambda number: number, 5, 4)) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_the_depth_are_drawn_ahead(depth):
    drawn = []
    for item, _ in prefetched(lambda number: drawn.append(number) or number, 1, 12, depth):
        deadline = time.monotonic() + 20
        while len(drawn) < min(item + depth, 12) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)  # in which one too many would be drawn
        assert len(drawn) == min(item + depth, 12)


def test_waiting_is_measured_and_hidden_behind_other_work(monkeypatch):
    """By a clock that only drawing moves: the first item while it is waited for, the second while the first is in use."""
    now, is_waiting, is_held, is_drawn = [0], threading.Event(), threading.Event(), threading.Event()

    def draw(number):
        assert (is_waiting if number == 1 else is_held).wait(20)
        now[0] += 5
        if number == 2:
            is_drawn.set()
        return number

    clock = Namespace(perf_counter=lambda: (is_waiting.set(), now[0])[1])
    monkeypatch.setattr(prefetch, "time", clock)
    items = prefetched(draw, 1, 2)
    assert next(items) == (1, 5)
    is_held.set()
    assert is_drawn.wait(20)
    assert next(items) == (2, 0)


def test_an_exception_is_raised_when_its_item_is_due():
    def draw(number):
        if number == 3:
            raise ValueError("number three")
        return number

    items = prefetched(draw, 1, 6)
    assert [next(items)[0], next(items)[0]] == [1, 2]
    with pytest.raises(ValueError, match="number three"):
        next(items)


def test_the_thread_ends_with_its_reader():
    items = prefetched(lambda number: number, 1, 1000)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


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
    batch["far"] = np.array([2**40 + 3])  # does not fit into int32
    packed = pack(batch, CPU, ("attention_mask",))
    assert ("attention_mask" in packed) == padded  # without padding the model takes it for granted
    assert sum(tensor.nbytes for tensor in packed.values()) == (2 * 8 + 2 * 3) * 4 + 8 + padded * 2 * 8
    arrived = unpack(packed, CPU)
    for name, tensor in arrived.items():
        assert tensor.dtype == (torch.bool if name == "attention_mask" else torch.int64)
        assert np.array_equal(tensor.numpy(), batch[name])
