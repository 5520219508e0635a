"""Dropout on CPUs: how much it leaves out, that it is forgotten nowhere, and what it follows from."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import MPNetConfig

from mpnet_ds.deepspeed_workarounds import wrap_call
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.attention import cpu
from mpnet_ds.models.layers import random_bits
from mpnet_ds.models.layers.dropout import Dropout
from mpnet_ds.models.layers.dropout_seeds import dropout_seeds
from mpnet_ds.models.layers.random_bits import RandomBits, rounded
from tests.models.attention.cases import assert_same, make_case

SHAPE = (40, 30, 101)
COUNT = 40 * 30 * 101


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.0001, 0.9])
def test_the_share_that_is_left_out_is_the_probability(probability):
    kept = RandomBits(torch.arange(40)).keep_(torch.empty(SHAPE), probability)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    deviation = (COUNT * probability * (1 - probability)) ** 0.5
    assert (kept == 0).sum().item() == pytest.approx(COUNT * probability, abs=5 * deviation)


def test_draws_of_neighbours_and_of_near_seeds_do_not_depend_on_each_other():
    first, second = (RandomBits(seed + torch.arange(40)).keep_(torch.empty(SHAPE), 0.3) - 0.7 for seed in (7, 7 + 2**34))
    others = [second, *(first.roll(1, dims=dim) for dim in range(3)), first.roll(4, dims=2)]
    for other in others:
        assert abs((first * other).mean() / 0.21) < 5 / COUNT**0.5


def test_probabilities_are_rounded_to_a_65536th():
    assert rounded(0.1) == pytest.approx(0.1, abs=1e-5)
    assert rounded(0.1) * 65536 == 6554


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_and_backward_leaves_out_the_same(dtype):
    x = torch.ones(SHAPE, dtype=dtype, requires_grad=True)
    dropped = Dropout(0.1)(x, torch.arange(40))
    scale = torch.tensor(1 / (1 - rounded(0.1)), dtype=dtype)
    assert torch.equal(dropped, torch.where(dropped == 0, 0, scale))
    dropped.backward(torch.full_like(dropped, 2))
    assert torch.equal(x.grad, 2 * dropped)


def test_nothing_is_left_out_in_evaluation_or_at_0():
    x = torch.randn(50)
    assert torch.equal(Dropout(0.5).eval()(x, None), x)
    assert torch.equal(Dropout(0.0)(x, None), x)


@pytest.mark.parametrize("at_once", [cpu.SCORES_AT_ONCE, 1400, 1])
def test_attention_leaves_out_the_same_as_the_plain_formula(at_once, monkeypatch):
    """Of the six matrices of 21 by 16 scores all are computed at once, or four and two, or one by one."""
    monkeypatch.setattr(cpu, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(random_bits, "WORDS_AT_ONCE", 300)
    case = make_case("plm", tokens=16, predicted=5, heads=3)
    found = case.run("cpu", dropout=0.2)
    assert_same(found, case.run("eager", dropout=0.2), 1e-5)
    assert_same(found, case.run("sdpa", dropout=0.2), 1e-5)
    assert (found["out"] - case.run("cpu")["out"]).abs().max() > 0.1


def small_model(layers: int, attention: str = "cpu", heads: int = 2) -> MPNetForPretraining:
    sizes = {"num_hidden_layers": layers, "hidden_size": 32, "num_attention_heads": heads, "intermediate_size": 64}
    config = MPNetConfig(vocab_size=50, initializer_range=0.3, layer_norm_eps=1e-5, **sizes)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.1
    torch.manual_seed(0)
    return MPNetForPretraining(config, attention=attention).train()


def losses(model: MPNetForPretraining, sequences: int, micro: int, step: int = 3) -> Iterator[torch.Tensor]:
    """Of the micro-batches of a global batch; their sum is its loss."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(5, 50, (sequences, 9), generator=generator),
        "predicted_positions": torch.rand(sequences, 9, generator=generator).argsort(dim=1)[:, :3],
        "predicted_inputs": torch.full((sequences, 3), 4),
        "sequence_numbers": torch.arange(sequences),
    }
    for part in zip(*(array.split(micro) for array in batch.values()), strict=True):
        yield model(**dict(zip(batch, part, strict=True)), step=torch.tensor(step)).sums.sum() / (3 * sequences)


@pytest.mark.parametrize("attention", ["cpu", "eager", "sdpa"])
def test_ranks_and_micro_batches_do_not_matter(attention):
    """A global batch has the same loss and gradient whole, in halves and one by one."""
    model, found = small_model(2, attention), []
    for micro in (8, 4, 1):
        loss = sum(losses(model, 8, micro))
        found.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-5)


def test_layers_that_are_computed_again_leave_out_the_same():
    """Otherwise gradients would belong to other draws than the loss, and nobody would notice."""
    gradients = []
    for is_checkpointed in (False, True):
        model = small_model(2)
        for layer in model.layers() if is_checkpointed else []:
            wrap_call(layer, partial(checkpoint, use_reentrant=True, preserve_rng_state=False))
        sum(losses(model, 4, 2)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_another_step_and_another_seed_leave_out_others():
    model = small_model(1)
    found = [sum(losses(model, 2, 2, step)).item() for step in (3, 3, 4)]
    model.dropout_seed = 1
    found.append(sum(losses(model, 2, 2)).item())
    assert found[0] == found[1]
    assert len({round(loss, 4) for loss in found}) == 3


def test_seeds_are_different_for_any_step_sequence_and_place():
    seeds = [dropout_seeds(2**63 - 1, torch.tensor(step), torch.arange(100), 40) for step in (1, 2, 500_000)]
    assert len(torch.stack(seeds).unique()) == 3 * 100 * 40


def test_without_numbers_of_sequences_pytorchs_seed_repeats_a_draw():
    model = small_model(1)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found += [model.encode(torch.full((1, 9), 7)) for _ in range(2)]
    assert torch.equal(found[0], found[2])
    assert not any(torch.equal(found[0], other) for other in (found[1], found[4]))
