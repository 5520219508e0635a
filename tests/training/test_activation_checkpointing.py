import deepspeed
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpnet_ds.models.module import PretrainingModule
from mpnet_ds.training.activation_checkpointing import checkpoint_layers, checkpointed_layers


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


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch):
    """DeepSpeed's settings stay as they are: to change them it needs a process group."""
    monkeypatch.setattr(deepspeed.checkpointing, "configure", lambda *_, **__: None)


@pytest.mark.parametrize(("section", "expected"), [({}, [0, 1, 2, 3]), ({"number_checkpoints": 2}, [0, 2])])
def test_only_the_chosen_layers_go_through_deepspeed(monkeypatch, section, expected):
    module, passed = Shifts(4), []

    def checkpoint(function, hidden, bias):
        passed.append(int((function(hidden, bias) - hidden).item()))
        return function(hidden, bias)

    monkeypatch.setattr(deepspeed.checkpointing, "checkpoint", checkpoint)
    checkpoint_layers(module, {"activation_checkpointing": section})
    assert module(torch.zeros(1, requires_grad=True)).item() == 0 + 1 + 2 + 3
    assert passed == expected


def test_hooks_of_a_layer_run_again_in_backward():
    """By them ZeRO 3 gathers the layer's weights."""
    module, calls = Shifts(2), []
    module.shifts[0].register_forward_pre_hook(lambda layer, arguments: calls.append(layer.number))
    checkpoint_layers(module, {"activation_checkpointing": {}, "train_batch_size": 1})
    module(torch.zeros(1, requires_grad=True)).backward()
    assert calls == [0, 0]


@pytest.mark.parametrize("engine", [{"zero_optimization": {"stage": 2}}, {"activation_checkpointing": {}}])
def test_without_the_section_or_without_gradients_all_is_as_it_was(monkeypatch, engine):
    module = Shifts(2)
    monkeypatch.setattr(deepspeed.checkpointing, "checkpoint", None)
    checkpoint_layers(module, engine)
    with torch.set_grad_enabled("activation_checkpointing" not in engine):
        assert module(torch.zeros(1)).item() == 1


class Shift(nn.Module):
    """Adds its number."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def forward(self, hidden, number_of_shifts, bias):
        return hidden + self.number * number_of_shifts + bias


class Shifts(PretrainingModule):
    """Layers that share an argument that is no tensor and one that is."""

    def __init__(self, count: int):
        super().__init__()
        self.shifts = nn.ModuleList(Shift(i) for i in range(count))

    def forward(self, hidden, **_):
        bias = torch.zeros(1)
        for layer in self.shifts:
            hidden = layer(hidden, 1, bias)
        return hidden

    def layers(self):
        return list(self.shifts)
