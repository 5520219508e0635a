"""Parameters of optimizers are those of their constructors."""

import pytest
import torch

from mpnet_ds.config.deepspeed_config import examine
from mpnet_ds.config.deepspeed_optimizers import REFUSED_OPTIMIZERS, optimizer_names, optimizer_parameters


@pytest.mark.parametrize("name", [name for name in optimizer_names() if name.lower() not in REFUSED_OPTIMIZERS])
def test_an_optimizers_parameters_are_those_of_its_constructor(name):
    assert "lr" in optimizer_parameters(name, {}, on_host=False)


def test_torchs_adam_and_deepspeeds_have_keys_of_their_own():
    torchs, fused = ({"torch_adam": chosen} for chosen in (True, False))
    assert "fused" in optimizer_parameters("AdamW", torchs, on_host=False)
    assert "bias_correction" not in optimizer_parameters("AdamW", torchs, on_host=False)
    assert "bias_correction" in optimizer_parameters("AdamW", fused, on_host=False)
    assert "fused" not in optimizer_parameters("AdamW", fused, on_host=True)
    keys = optimizer_parameters("AdamW", torchs, on_host=False) - {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}
    torch.optim.AdamW([torch.zeros(1)], **dict.fromkeys(keys & {"amsgrad", "maximize", "foreach", "capturable"}, False))


def test_an_unknown_optimizer_is_named_with_the_nearest():
    _, findings = examine({"optimizer": {"type": "AdmW"}}, "x.json")
    assert findings == ["x.json: unknown optimizer 'AdmW'. Did you mean 'AdamW'?"]


@pytest.mark.parametrize("name", ["MuAdam", "mUSGD", "MuAdamW"])
def test_an_optimizer_whose_learning_rates_would_be_overwritten_is_refused(name):
    sound, findings = examine({"optimizer": {"type": name, "params": {"lr": 0.02}}}, "x.json")
    assert len(findings) == 1
    assert findings[0].startswith(f"x.json: optimizer.type '{name}' is refused: the schedule would overwrite ")
    assert findings[0].endswith("Use AdamW.")
    assert sound["optimizer"] == {}
