"""Optimizers are few and typed: every other one of DeepSpeed and PyTorch is refused by name."""

import pytest
import torch
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

from mpnet_ds.config.deepspeed_config import examine
from mpnet_ds.config.deepspeed_optimizers import OPTIMIZERS, REFUSED_OPTIMIZERS

TORCHS = [name for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name != "Optimizer"]


def findings_of(kind: str, **parameters) -> list[str]:
    return examine({"optimizer": {"type": kind, "params": parameters}}, "x.json")[1]


@pytest.mark.parametrize("name", sorted({*DEEPSPEED_OPTIMIZERS, *TORCHS}))
def test_every_optimizer_of_deepspeed_and_pytorch_is_served_or_refused(name):
    served = name.lower() in map(str.lower, OPTIMIZERS)
    assert served is not (name.lower() in REFUSED_OPTIMIZERS), f"decide on {name} in config/deepspeed_optimizers.py"
    assert (findings_of(name) == []) is served


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Muon"])
def test_an_optimizers_parameters_are_those_of_its_constructor(name):
    values = {"betas": (0.9, 0.98), "lr": 0.1, "eps": 1e-6, "weight_decay": 0.0, "momentum": 0.9, "momentum_decay": 0.1}
    keys = set(OPTIMIZERS[name]) - {"torch_adam", "adam_w_mode"}  # DeepSpeed's own, beside the constructor's
    optimizer = getattr(torch.optim, name)([torch.zeros(1)], **{key: values.get(key, False) for key in keys})
    assert keys <= set(optimizer.defaults)


@pytest.mark.parametrize(("name", "canonical"), [("adamw", "AdamW"), ("ADAM", "Adam"), ("muon", "Muon"), ("sgd", "SGD")])
def test_case_does_not_matter(name, canonical):
    assert examine({"optimizer": {"type": name}}, "x.json") == ({"optimizer": {"type": canonical, "params": {}}}, [])


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("AdamW", "fused", 1, "fused is 1; it must be true or false."),
        ("AdamW", "torch_adam", "true", 'torch_adam is "true"; it must be true or false.'),
        ("Adam", "torch_adam", False, "torch_adam false is refused: DeepSpeed would compile its own Adam. Leave it out."),
        ("AdamW", "lr", "5e-4", 'lr is "5e-4"; it must be a number.'),
        ("AdamW", "lr", True, "lr is true; it must be a number."),
        ("AdamW", "eps", None, "eps is null; it must be a number."),
        ("AdamW", "weight_decay", float("nan"), "weight_decay is NaN; it must be a finite number."),
        ("NAdam", "betas", 0.9, "betas is 0.9; it must be a list."),
        ("RAdam", "betas", [0.9, 1], "betas.1 is 1; it must be less than 1."),
        ("SGD", "momentum", 2, "momentum is 2; it must be less than 1."),
    ],
)
def test_a_parameter_of_another_kind_is_refused_by_name(kind, key, value, message):
    assert findings_of(kind, **{key: value}) == [f"x.json: optimizer.params.{message}"]


def test_auto_stands_for_any_parameter():
    assert findings_of("AdamW", lr="auto", betas="auto", eps="auto", weight_decay="auto") == []


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


@pytest.mark.parametrize("name", ["Lamb", "lion", "Adagrad", "OneBitAdam", "LBFGS", "SparseAdam", "Adafactor"])
def test_an_optimizer_that_would_fail_later_is_refused_with_a_cure(name):
    (text,) = findings_of(name, lr="auto")
    assert text.startswith(f"x.json: optimizer.type '{name}' is refused: ")
    assert text.endswith(". Use AdamW.")
