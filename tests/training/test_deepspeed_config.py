import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.errors import UserError
from mpnet_ds.training.deepspeed_config import load_deepspeed_config, resolve
from mpnet_ds.training.recipe import OptimizationRecipe
from tests.runs import ROOT

CPU, GPU = {"fp32", "bf16"}, {"fp32", "bf16", "fast-bf16", "fp16"}
ZERO2 = ROOT / "ds_configs" / "zero2.json"


def resolved(world_size=1, supported=CPU, exact=False, changes=None, **optimization):
    raw = load_deepspeed_config(ZERO2) | (changes or {})
    return resolve(raw, OptimizationRecipe(**optimization), world_size, supported, "zero2.json", exact)


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_configuration_resolves_on_a_gpu_and_deepspeed_takes_it(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    config = resolve(load_deepspeed_config(path), OptimizationRecipe(), 1, GPU, path.name)
    assert "auto" not in json.dumps(config.engine)
    assert not any(key.startswith("_") for key in config.engine)
    accepted = DeepSpeedConfig(config.engine)
    assert accepted.zero_optimization_stage == config.zero_stage


def test_auto_takes_the_recipes_values():
    engine = resolved(learning_rate=3e-4, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.02, gradient_clipping=2.0).engine
    parameters = engine["optimizer"]["params"]
    found = [parameters["lr"], parameters["betas"], parameters["eps"], parameters["weight_decay"]]
    assert found == [3e-4, [0.8, 0.9], 1e-7, 0.02]
    assert engine["gradient_clipping"] == 2.0


@pytest.mark.parametrize(
    ("supported", "wanted", "expected"),
    [(CPU, "auto", "fp32"), (GPU, "auto", "bf16"), (CPU, "bf16", "bf16"), (GPU, "fp32", "fp32"), ({"fp32"}, "auto", "fp32")],
)
def test_precision_follows_the_device_unless_the_recipe_says_more(supported, wanted, expected):
    config = resolved(supported=supported, precision=wanted)
    assert config.precision == expected
    assert config.engine["bf16"]["enabled"] is (expected == "bf16")


def test_precision_that_the_device_lacks_is_refused():
    with pytest.raises(UserError, match="fp16 is enabled, but this device does not support it"):
        resolved(changes={"fp16": {"enabled": True}, "bf16": {"enabled": False}})
    with pytest.raises(UserError, match="both enabled"):
        resolved(supported=GPU, changes={"fp16": {"enabled": True}, "bf16": {"enabled": True}})


@given(st.integers(1, 4096), st.integers(1, 256), st.integers(1, 64))
def test_batch_sizes_multiply_to_the_global_batch_or_are_refused(total, micro, ranks):
    if total % ranks:
        with pytest.raises(UserError, match="not a multiple"):
            resolved(ranks, global_batch_size=total, micro_batch_size=micro)
    else:
        batch = resolved(ranks, global_batch_size=total, micro_batch_size=micro).batch
        assert batch.micro_batch_size * batch.accumulation_steps * ranks == batch.global_batch_size == total
        assert batch.micro_batch_size <= micro


@given(st.integers(1, 512), st.integers(1, 64), st.integers(1, 8))
def test_a_micro_batch_that_was_asked_for_is_never_changed(total, micro, ranks):
    if total % (micro * ranks):
        with pytest.raises(UserError, match="not a multiple"):
            resolved(ranks, exact=True, global_batch_size=total, micro_batch_size=micro)
    else:
        assert resolved(ranks, exact=True, global_batch_size=total, micro_batch_size=micro).batch.micro_batch_size == micro


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 512}, "train_batch_size is 512, the recipe or command line says 256"),
        ({"gradient_accumulation_steps": 3}, r"gradient_accumulation_steps is 3, but 256 rows / .* = 8"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, r"optimizer\.params\.lr is 0\.1"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}},
            r"zero_optimization\.reduce_bucket_size' is \"auto\"",
        ),
    ],
)
def test_contradictions_name_both_sides(changes, message):
    with pytest.raises(UserError, match=message):
        resolved(changes=changes)


def test_micro_batch_in_the_json_counts():
    assert resolved(changes={"train_micro_batch_size_per_gpu": 16}).batch.accumulation_steps == 16
    with pytest.raises(UserError, match="train_micro_batch_size_per_gpu is 16"):
        resolved(changes={"train_micro_batch_size_per_gpu": 16}, exact=True, micro_batch_size=8)


def test_the_schedule_belongs_to_the_recipe(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"scheduler": {"type": "WarmupLR"}}))
    with pytest.raises(UserError, match="remove 'scheduler'"):
        load_deepspeed_config(path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "must hold a JSON object")])
def test_files_that_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_deepspeed_config(path)


def test_a_common_adamw_section_does_not_compile():
    parameters = resolved(changes={"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}).engine["optimizer"]["params"]
    assert parameters["torch_adam"] is True
    assert parameters["fused"] is True


def test_precision_of_the_recipe_and_of_the_json_must_agree():
    with pytest.raises(UserError, match=r"enables bf16, the recipe's optimization\.precision is fp32"):
        resolved(supported=GPU, changes={"bf16": {"enabled": True}}, precision="fp32")
