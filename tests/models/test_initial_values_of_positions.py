"""Heads of models with learned absolute positions that begin by looking at a neighbour."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mpnet_ds.errors import UserError
from mpnet_ds.models.initial_values import look_near_by_sinusoids

V, D, N = 50, 96, 64
OFFSETS = (-1, 1, -3, 3)


def build(kind: str, heads: int, seed: int = 0):
    """A small model as transformers begins it, with two layers."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        sizes = {"n_embd": D, "n_layer": 2, "n_head": heads, "n_positions": N}
        ids = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 2}
        return GPT2LMHeadModel(GPT2Config(attn_implementation="eager", **sizes, **ids)).eval()
    model, config = {"bert": (BertForMaskedLM, BertConfig), "roberta": (RobertaForMaskedLM, RobertaConfig)}[kind]
    sizes = {"num_hidden_layers": 2, "hidden_size": D, "intermediate_size": D, "max_position_embeddings": N + 2}
    return model(config(vocab_size=V, num_attention_heads=heads, attn_implementation="eager", **sizes)).eval()


def look_near(model, heads: int, **settings) -> None:
    """Call the function with a model's tables and weights."""
    if isinstance(model, GPT2LMHeadModel):
        body = model.transformer
        fused = [layer.attn.c_attn.weight.t() for layer in body.h]
        attention = [(weight[:D], weight[D : 2 * D]) for weight in fused]
        return look_near_by_sinusoids(body.wpe.weight, [body.wte.weight], attention, heads, **settings)
    tables = model.base_model.embeddings
    words = [tables.word_embeddings.weight, tables.token_type_embeddings.weight]
    selves = [layer.attention.self for layer in model.base_model.encoder.layer]
    attention = [(each.query.weight, each.key.weight) for each in selves]
    return look_near_by_sinusoids(tables.position_embeddings.weight, words, attention, heads, **settings)


def random_ids():
    return torch.randint(5, V, (4, N), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_only_tables_queries_and_keys_differ_and_only_in_the_dimensions_of_positions(kind):
    heads, first = 4, D - 24  # 12 pairs fill a head of width 24
    usual, near = build(kind, heads).state_dict(), build(kind, heads)
    look_near(near, heads)
    for name, value in near.state_dict().items():
        is_matrix = name.endswith(("query.weight", "key.weight"))
        if is_matrix or "_embeddings.weight" in name or name.endswith("decoder.weight"):  # the decoder is the words' table
            assert torch.equal(value[:, :first], usual[name][:, :first])
            assert not torch.equal(value[:, first:], usual[name][:, first:])
            assert is_matrix or "position" in name or not value[:, first:].any()
        else:
            assert torch.equal(value, usual[name])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_begins_at_its_offset(kind, heads, dtype):
    model = build(kind, heads).to(dtype)
    look_near(model, heads)
    output = model(random_ids(), output_attentions=True)
    assert output.logits.isfinite().all()
    for layer, attention in enumerate(output.attentions):
        for head in range(heads):
            assert_looks_at(attention[:, head].float(), OFFSETS[(layer * heads + head) % len(OFFSETS)])


def test_a_causal_model_with_fused_weights_begins_at_tokens_before():
    model = build("gpt2", 3)
    look_near(model, 3, offsets=(-1, -2, -4))
    attention = model(random_ids(), output_attentions=True).attentions[0]
    for head, offset in enumerate((-1, -2, -4)):
        assert_looks_at(attention[:, head, 8:, 8:], offset)


def assert_looks_at(attention, offset):
    """Attention [B, n, n] has the largest weight at an offset, and 0.4 of all."""
    weights = {other: torch.diagonal(attention, other, 1, 2).mean().item() for other in range(-8, 9)}
    assert max(weights, key=weights.get) == offset
    assert weights[offset] > 0.4


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(96, 300),
    heads=st.integers(1, 4),
    num_positions=st.integers(100, 600),
    deviation=st.sampled_from([0.01, 0.02, 1.0]),
    strength=st.floats(0.1, 10),
    offset=st.integers(-5, 5),
)
def test_strength_means_the_same_at_all_widths_heads_and_amplitudes(
    width, heads, num_positions, deviation, strength, offset
):
    head_width = width // heads
    generator = torch.Generator().manual_seed(0)
    positions, words = (torch.randn(num_positions, width, generator=generator) * deviation for _ in range(2))
    query, key = torch.zeros(2, heads * head_width, width)
    look_near_by_sinusoids(positions, [words], [(query, key)], heads, strength, [offset])
    hidden = F.layer_norm(positions + words, [width])
    for head in range(heads):
        q, k = (hidden @ weight.unflatten(0, (heads, -1))[head].t() for weight in (query, key))
        logits = q @ k.t() / math.sqrt(head_width)

        def at(distance, logits=logits):
            return torch.diagonal(logits, offset + distance).mean().item()

        for distance in (4, 8, 16):
            assert at(0) - at(distance) == pytest.approx(2 * strength * (math.log(distance) + 0.58), rel=0.25)


def test_what_neighbours_tell_is_learned_sooner():
    usual, near = loss_after_training(near=False), loss_after_training(near=True)
    assert usual > math.log(29) - 0.1  # what guessing among 29 tokens costs
    assert near < usual - 0.5


def loss_after_training(near: bool) -> float:
    """Train a model of one layer for 120 steps on noisy sequences that count in threes; the mean loss of the last 10."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 32}
    no_dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    model = BertForMaskedLM(BertConfig(vocab_size=30, num_attention_heads=2, **sizes, **no_dropout))
    if near:
        look_near(model, 2)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-3), []
    for _ in range(120):
        ids = 1 + (torch.randint(29, (16, 1)) + 3 * torch.arange(32)) % 29
        ids = torch.where(torch.rand(ids.shape) < 0.1, torch.randint(1, 30, ids.shape), ids)
        is_masked = torch.rand(ids.shape) < 0.15
        loss = F.cross_entropy(model(ids.masked_fill(is_masked, 0)).logits[is_masked], ids[is_masked])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def test_the_start_survives_saving(tmp_path):
    model = build("bert", 3)
    look_near(model, 3)
    model.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        expected, found = (each.base_model(random_ids()).last_hidden_state for each in (model, loaded))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("strength", [0, -1.0, math.inf, math.nan])
def test_a_strength_that_is_no_positive_number_is_refused(strength):
    with pytest.raises(UserError, match="strength is"):
        look_near(build("bert", 3), 3, strength=strength)


def test_heads_of_one_dimension_are_refused():
    with pytest.raises(UserError, match="too narrow"):
        look_near(build("bert", D), D)
