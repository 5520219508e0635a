"""benchmarks/straightforward.py as an oracle: another way to write the step gives the same numbers."""

import sys
from pathlib import Path

import pytest
import torch

from mpnet_ds.models import MPNetForPretraining
from tests.models.test_parity import original_weights, tiny_config

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from straightforward import StraightforwardMPNet

SLOTS = 7


def batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(5, 199, (3, 30), generator=generator),
        "predicted_positions": torch.stack([torch.randperm(30, generator=generator)[:SLOTS] for _ in range(3)]),
        "predicted_inputs": torch.randint(5, 199, (3, SLOTS), generator=generator),
    }


def models(attention: str) -> tuple[StraightforwardMPNet, MPNetForPretraining]:
    pair = StraightforwardMPNet(tiny_config()), MPNetForPretraining(tiny_config(), attention=attention)
    for model in pair:
        model.load_state_dict(original_weights())
    return pair


@pytest.mark.parametrize("attention", ["cpu", "eager", "sdpa"])
def test_loss_and_gradients_are_those_of_the_straightforward_step(attention):
    straightforward, own = models(attention)
    expected, found = straightforward(**batch(0)), own(**batch(0)).loss
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    expected.backward()
    found.backward()
    for (name, ours), theirs in zip(own.named_parameters(), straightforward.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("attention", ["cpu", "eager"])
def test_in_bf16_the_gradients_point_the_same_way(attention):
    exact, own = models(attention)
    exact(**batch(1)).backward()
    own.bfloat16()(**batch(1)).loss.backward()
    for (name, ours), theirs in zip(own.named_parameters(), exact.parameters(), strict=True):
        assert (ours.grad.float() - theirs.grad).norm() < 0.05 * theirs.grad.norm() + 1e-3, name


def test_with_dropout_both_lose_as_much_on_average():
    pair = models("cpu")
    means = []
    for model in pair:
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
            elif hasattr(module, "num_heads"):
                module.dropout = 0.1
        torch.manual_seed(0)
        with torch.no_grad():
            losses = [model(**batch(seed % 4)) for seed in range(200)]
        means.append(torch.stack([getattr(loss, "loss", loss) for loss in losses]))
    error = (means[0].var() / 200 + means[1].var() / 200).sqrt()
    assert (means[0].mean() - means[1].mean()).abs() < 4 * error
