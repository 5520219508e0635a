import deepspeed
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpnet_ds.training.activation_checkpointing import checkpointed_layers, layer_runner


@pytest.mark.parametrize(
    ("num_layers", "number", "expected"),
    [(12, 6, [0, 2, 4, 6, 8, 10]), (12, 4, [0, 3, 6, 9]), (3, 2, [0, 1]), (2, 1, [0]), (3, None, [0, 1, 2]), (2, 6, [0, 1])],
)
def test_every_kth_layer_is_computed_again(num_layers, number, expected):
    assert checkpointed_layers(num_layers, number) == expected


@given(st.integers(1, 48), st.integers(1, 48))
def test_layers_are_spread_evenly_and_the_last_goes_last(num_layers, number):
    chosen = checkpointed_layers(num_layers, number)
    assert len(set(chosen)) == min(number, num_layers)
    gaps = {b - a for a, b in zip(chosen, [*chosen[1:], num_layers], strict=True)}
    assert max(gaps) - min(gaps) <= 1
    assert (num_layers - 1 in chosen) == (number >= num_layers)


@pytest.mark.parametrize(("section", "expected"), [({}, [0, 1, 2, 3]), ({"number_checkpoints": 2}, [0, 2])])
def test_only_the_chosen_layers_go_through_deepspeed(monkeypatch, section, expected):
    layers = nn.ModuleList(Shift(i) for i in range(4))
    passed = []

    def checkpoint(function, hidden, bias):
        passed.append(int((function(hidden, bias) - hidden).item()))
        return function(hidden, bias)

    monkeypatch.setattr(deepspeed.checkpointing, "configure", lambda *_, **__: None)
    monkeypatch.setattr(deepspeed.checkpointing, "checkpoint", checkpoint)
    run = layer_runner(layers, {"activation_checkpointing": section})
    hidden = torch.zeros(1)
    for layer in layers:
        hidden = run(layer, hidden, None, 1, 0, torch.zeros(1))
    assert passed == expected
    assert hidden.item() == 0 + 1 + 2 + 3


def test_without_the_section_all_activations_are_kept():
    assert layer_runner(nn.ModuleList(), {"zero_optimization": {"stage": 2}}) is None


class Shift(nn.Module):
    """Adds its number."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def forward(self, hidden, backend, num_content, first_row, bias):
        return hidden + self.number * num_content + first_row + bias
