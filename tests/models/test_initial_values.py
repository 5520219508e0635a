"""``model.start``: ``usual`` leaves the original's values, ``near`` changes the table of relative positions and no other."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MPNetModel

from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.objectives import objective_of
from mpnet_ds.objectives.model_section import MPNetSection

TOKENIZER = SimpleNamespace(vocab_size=50, mask_id=49)
TABLE = "mpnet.encoder.relative_attention_bias.weight"
DISTANCES = [*((d, d) for d in range(8)), (8, 11), (12, 15), (16, 22), (23, 31), (32, 45), (46, 63), (64, 90), (91, 128)]
"""First and last of the buckets of one side, as relative_position.py tabulates them."""


def section(heads: int = 4, **start) -> MPNetSection:
    return MPNetSection(
        num_hidden_layers=2, hidden_size=8 * heads, num_attention_heads=heads, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=34, **start,
    )  # fmt: skip


def build(model: MPNetSection, objective: str = "mpnet") -> MPNetForPretraining:
    torch.manual_seed(0)
    return objective_of(objective).build(model, TOKENIZER, 32)


def usual(model: MPNetSection) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return MPNetForPretraining(model.sizes(TOKENIZER.vocab_size)).state_dict()


@pytest.mark.parametrize("objective", ["mpnet", "plm", "mlm"])
def test_a_usual_start_has_every_bit_of_the_originals_values(objective):
    found, expected = build(section(), objective).state_dict(), usual(section())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@settings(max_examples=20)
@given(heads=st.integers(1, 16), strength=st.floats(0.01, 8))
def test_a_near_start_adds_its_formula_to_the_table_of_relative_positions_alone(heads, strength):
    model = section(heads, start="near", start_strength=strength)
    found, expected = build(model).state_dict(), usual(model)
    added = found.pop(TABLE) - expected.pop(TABLE)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for bucket in range(32):
        first, last = DISTANCES[bucket % 16]
        for head in range(heads):
            bias = -strength * math.log(1 + (first + last) / 2)
            if (bucket >= 16) == (head % 2 == 0):  # even heads look to the left
                bias -= 2 * strength
            assert added[bucket, head].item() == pytest.approx(bias, abs=1e-4), (bucket, head)


def test_the_strength_is_2_by_default():
    assert section(start="near") == section(start="near", start_strength=2.0)
    assert section().start_strength is None


def plain_model(module: MPNetForPretraining) -> MPNetModel:
    config = module.config
    config._attn_implementation = "eager"
    theirs = MPNetModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict({
        name.removeprefix("mpnet."): tensor for name, tensor in module.state_dict().items() if name.startswith("mpnet.")
    })  # fmt: skip
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_transformers_attends_to_what_is_near_on_one_side(strength):
    ids = torch.randint(5, 49, (3, 32))
    theirs = plain_model(build(section(start="near", start_strength=strength)))
    found = theirs(ids, output_attentions=True).attentions[0]
    for head in range(4):
        for query in range(32):
            weights = []
            for key in range(32):
                is_behind = key > query if head % 2 == 0 else key <= query
                middle = sum(DISTANCES[max(i for i in range(16) if DISTANCES[i][0] <= abs(key - query))]) / 2
                weights.append((1 + middle) ** -strength * (math.exp(-2 * strength) if is_behind else 1))
            expected = torch.tensor(weights) / sum(weights)
            assert (found[:, head, query] - expected).abs().max() < 0.03, (head, query)
    left, right = (torch.full((32, 32), 1.0).tril(), torch.full((32, 32), 1.0).triu(1))
    for head, side in enumerate((left, right, left, right)):
        assert ((found[:, head] * side).sum(-1)[:, 2:-2] > 0.6).all()
    flat = plain_model(build(section()))(ids, output_attentions=True).attentions[0]
    assert (flat - 1 / 32).abs().max() < 0.01, "what the usual start does instead"


@torch.no_grad()
def test_hidden_states_are_those_of_transformers():
    module = build(section(start="near", start_strength=4.0)).eval()
    ids, mask = torch.randint(5, 49, (2, 32)), torch.ones(2, 32, dtype=torch.bool)
    ids[1, 20:], mask[1, 20:] = 1, False
    expected = plain_model(module)(ids, mask.long()).last_hidden_state
    torch.testing.assert_close(module.encode(ids, mask)[mask], expected[mask], atol=1e-5, rtol=0)


def test_a_near_start_is_built_without_memory():
    with torch.device("meta"):
        module = build(section(start="near"))
    assert all(parameter.is_meta for parameter in module.parameters())
