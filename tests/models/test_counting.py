"""Sizes of modules that are counted on tensors without numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mpnet_ds.config.recipe import load_recipe, recipe_from_dict
from mpnet_ds.models.counting import count
from mpnet_ds.models.module import ComputeSetting, PretrainingModule, Scores
from mpnet_ds.objectives import objective_of
from mpnet_ds.objectives.base import Objective
from mpnet_ds.tokenizer_layouts import LAYOUTS
from tests.runs import RECIPE

V, D, LAYERS, B, N = 50, 64, 4, 3, 128
NARROW = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


class Tower(PretrainingModule):
    """A table and square linear maps, whose outputs autograd keeps."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, D)
        self.maps = nn.ModuleList(nn.Sequential(nn.Linear(D, D, bias=False), nn.Tanh()) for _ in range(LAYERS))

    def forward(self, *, ids, **_):
        hidden = self.table(ids)
        for layer in self.maps:
            hidden = layer(hidden)
        return Scores(sums=hidden.sum()[None])

    def layers(self):
        return list(self.maps)


BATCH = {"ids": np.zeros((B, N), dtype=np.int64), "sequence_numbers": np.arange(B), "step": np.array(0)}


def test_sizes_are_those_of_the_module():
    plan = count(Tower, BATCH)
    assert plan.parameters == V * D + LAYERS * D * D
    assert plan.hidden_numbers == LAYERS * D * D
    assert plan.flops_per_sequence == 3 * LAYERS * 2 * N * D * D  # forward, and twice as much in backward
    hidden = 4 * B * N * D  # bytes
    assert LAYERS * hidden < plan.activation_bytes < (LAYERS + 4) * hidden  # one of each layer, and a few gradients


def test_half_the_bytes_in_16_bit_and_less_where_layers_are_recomputed():
    full = count(Tower, BATCH).activation_bytes
    assert count(Tower, BATCH, ComputeSetting(bytes_per_number=2)).activation_bytes == pytest.approx(full / 2, rel=0.05)
    recomputed = count(Tower, BATCH, ComputeSetting(checkpointed_layers=LAYERS))
    assert recomputed.activation_bytes <= full
    assert recomputed.flops_per_sequence == count(Tower, BATCH).flops_per_sequence  # what is executed twice counts once
    assert torch.get_default_dtype() == torch.float32


def test_counted_parameters_of_mpnet_are_those_of_its_formulas(tokenizer):
    objective, model = objective_of("mlm"), load_recipe(str(RECIPE)).model
    counted, computed = Objective.sizes(objective, model, tokenizer, 32, 4), objective.sizes(model, tokenizer, 32, 4)
    assert (counted.parameters, counted.hidden_numbers) == (computed.parameters, computed.hidden_numbers)


@pytest.mark.parametrize(
    ("objective", "model"),
    [
        ("mlm", {"model_type": "bert", "num_hidden_layers": 14} | NARROW),
        ("clm", {"model_type": "gpt2", "n_layer": 14, "n_embd": 16, "n_head": 2}),
        ("mlm", {"model_type": "modernbert", "num_hidden_layers": 15} | NARROW),
    ],
    ids=["bert", "gpt2", "modernbert"],
)
def test_deep_models_are_counted_by_shallow_ones(objective, model):
    recipe = recipe_from_dict({"name": "x", "objective": objective, "model": model, "data": {"seq_length": 32}}, "x")
    tokenizer = SimpleNamespace(vocab_size=99, pad_id=0, begin_id=2, end_id=3, unknown_id=1, mask_id=4)
    tokenizer.layout, tokenizer.special_ids = LAYOUTS["bert"], [0, 1, 2, 3, 4]
    tokenizer.sentinel_ids, tokenizer.language_ids = (), ()
    tokenizer.words = SimpleNamespace(starts=np.ones(99, dtype=bool), ends=np.zeros(99, dtype=bool))
    found = recipe.objective.sizes(recipe.model, tokenizer, 32, 4)
    whole = Objective.sizes(recipe.objective, recipe.model, tokenizer, 32, 4)
    assert (found.parameters, found.hidden_numbers) == (whole.parameters, whole.hidden_numbers)
    assert found.flops_per_sequence == pytest.approx(whole.flops_per_sequence, rel=1e-6)
    assert found.activation_bytes == pytest.approx(whole.activation_bytes, rel=0.02)
