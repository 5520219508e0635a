import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from mpnet_ds.config.deepspeed_config import check_accepted, examine, load_deepspeed_config, resolve
from mpnet_ds.config.recipe import OptimizationRecipe
from mpnet_ds.errors import UserError
from tests.runs import ROOT

CPU, GPU = {"fp32", "bf16"}, {"fp32", "bf16", "fast-bf16", "fp16"}
ZERO2 = ROOT / "ds_configs" / "zero2.json"


def resolved(world_size=1, supported=CPU, exact=False, changes=None, hidden_size=None, **optimization):
    raw = load_deepspeed_config(ZERO2) | (changes or {})
    return resolve(raw, OptimizationRecipe(**optimization), world_size, supported, "zero2.json", exact, hidden_size)


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_configuration_resolves_on_a_gpu_and_deepspeed_takes_it(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    config = resolve(load_deepspeed_config(path), OptimizationRecipe(), 1, GPU, path.name)
    assert "auto" not in json.dumps(config.engine)
    assert not any(key.startswith("_") for key in config.engine)
    accepted = DeepSpeedConfig(config.engine)
    assert accepted.zero_optimization_stage == config.zero_stage


def test_shipped_configurations_go_by_name_and_others_by_path(tmp_path, monkeypatch):
    assert load_deepspeed_config("zero2") == load_deepspeed_config(ZERO2)
    monkeypatch.chdir(tmp_path)
    assert load_deepspeed_config("zero2") == load_deepspeed_config(ZERO2)
    (tmp_path / "zero2").write_text('{"gradient_clipping": 7}')
    assert load_deepspeed_config("zero2") == {"gradient_clipping": 7}
    with pytest.raises(UserError, match=r"no DeepSpeed configuration zreo3.*Did you mean 'zero3'"):
        load_deepspeed_config("zreo3")
    with pytest.raises(UserError, match=r"no DeepSpeed configuration ds_configs/zero2\.json"):
        load_deepspeed_config("ds_configs/zero2.json")


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
        ({"gradient_accumulation_steps": 3}, r"gradient_accumulation_steps is 3, but 256 sequences / .* = 8"),
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


CONTIGUOUS = {"contiguous_memory_optimization": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer needs ZeRO 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param needs ZeRO 3, stage is 2"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype bf16 in fp32 at ZeRO 2 is not supported"),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
         "grad_accum_dtype fp32 in bf16 at ZeRO 1 is not supported: take fp32 at ZeRO 2 or 3"),
        ({"activation_checkpointing": CONTIGUOUS}, "give it partition_activations and number_checkpoints, or leave it out"),
        ({"activation_checkpointing": CONTIGUOUS | {"partition_activations": True}}, "give it number_checkpoints, or"),
    ],
)  # fmt: skip
def test_values_that_deepspeed_would_pass_over_or_fail_of_later_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        resolved(changes=changes)
    assert len(caught.value.findings) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 0}},
        {"activation_checkpointing": CONTIGUOUS | {"partition_activations": True, "number_checkpoints": 2}},
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
    ],
)
def test_what_they_need_makes_them_valid(changes):
    check_accepted(resolved(changes=changes), "x.json")


BUCKETS = ["reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"]


class TransformersConfig(HfTrainerDeepSpeedConfig):
    """What fills in "auto" in transformers, with the few methods that it has from accelerate, which is not needed here."""

    def __init__(self, config):
        self.config, self.mismatches = config, []

    def find_config_node(self, place):
        section, _, key = place.rpartition(".")
        return self.config.get(section), key

    def get_value(self, place):
        section, key = self.find_config_node(place)
        return (section or {}).get(key)

    def is_zero3(self):
        return True


@pytest.mark.parametrize("hidden_size", [768, 1000])
def test_auto_of_bucket_sizes_is_what_transformers_makes_of_it(hidden_size):
    zero = {"stage": 3, **dict.fromkeys(BUCKETS, "auto")}
    theirs = TransformersConfig({"zero_optimization": dict(zero)})
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden_size))
    theirs.trainer_config_finalize(SimpleNamespace(get_warmup_steps=lambda steps: 0), model, 1)
    ours = resolved(changes={"zero_optimization": zero}, hidden_size=hidden_size)
    assert ours.engine["zero_optimization"] == theirs.config["zero_optimization"]
    assert "auto" not in theirs.config["zero_optimization"].values()
    check_accepted(ours, "x.json")


def test_auto_that_nothing_sets_stays_an_error():
    for zero in ({"stage": 2, "allgather_bucket_size": "auto"}, {"stage": "auto"}):
        with pytest.raises(UserError, match='is "auto", but nothing else sets it'):
            resolved(changes={"zero_optimization": zero}, hidden_size=768)


def test_micro_batch_in_the_json_counts():
    assert resolved(changes={"train_micro_batch_size_per_gpu": 16}).batch.accumulation_steps == 16
    with pytest.raises(UserError, match="train_micro_batch_size_per_gpu is 16"):
        resolved(changes={"train_micro_batch_size_per_gpu": 16}, exact=True, micro_batch_size=8)


def test_the_schedule_belongs_to_the_recipe(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"scheduler": {"type": "WarmupLR"}}))
    with pytest.raises(UserError, match="remove 'scheduler'"):
        load_deepspeed_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("[" * 100_000, "is not JSON"),
        (
            '{"bf16": {}, "bf16": {"enabled": true}}',
            r"'bf16' is given 2 times in one object \({}, {\"enabled\": true}\): keep",
        ),
        ('{"zero_optimization": {"stage": 1, "stage": 3}}', r"'stage' is given 2 times in one object \(1, 3\): keep one"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_deepspeed_config(path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8-sig")
    assert load_deepspeed_config(tmp_path / "config.json") == {"zero_optimization": {"stage": 1}}


def test_a_common_adamw_section_does_not_compile():
    parameters = resolved(changes={"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}).engine["optimizer"]["params"]
    assert parameters["torch_adam"] is True
    assert parameters["fused"] is True


@pytest.mark.parametrize("key", ["offload_optimizer", "cpu_offload"])
def test_an_offloaded_optimizer_does_not_compile_either(key):
    zero = {"stage": 2, key: {"device": "cpu"} if key == "offload_optimizer" else True}
    config = resolved(changes={"zero_optimization": zero, "optimizer": {"type": "AdamW"}})
    assert config.engine["optimizer"]["params"]["torch_adam"] is True
    assert config.offload("offload_optimizer") == "cpu"
    assert config.offload("offload_param") == "none"


def test_an_optimizer_is_not_given_what_only_others_take():
    assert "fused" not in resolved(changes={"optimizer": {"type": "NAdam"}}).engine["optimizer"]["params"]
    assert "eps" not in resolved(changes={"optimizer": {"type": "SGD"}}).engine["optimizer"]["params"]
    chosen = resolved(changes={"optimizer": {"type": "AdamW", "params": {"fused": False}}}).engine["optimizer"]["params"]
    assert chosen["fused"] is False


def test_gradients_that_are_not_finite_are_looked_for_in_bf16():
    assert resolved(supported=GPU).engine["bf16"]["check_grad_overflow"] is True
    _, findings = examine({"bf16": {"enabled": "auto", "check_grad_overflow": False}}, "x.json")
    assert findings == ["x.json: remove 'bf16.check_grad_overflow': a step whose gradient is not finite is skipped."]


def test_all_contradictions_are_found_at_once():
    changes = {"gradient_clipping": 3.0, "fp16": {"enabled": True}, "optimizer": {"params": {"eps": 1.0, "weight_decay": 7}}}
    with pytest.raises(UserError) as caught:
        resolved(changes=changes, exact=True, micro_batch_size=3)
    places = ["fp16", "micro_batch_size 3", "gradient_clipping is 3.0", "params.eps is 1.0", "weight_decay is 7"]
    assert len(caught.value.findings) == len(places)
    for place in places:
        assert place in str(caught.value)


ON_HOST = {"offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"zero_optimization": {"stage": 7} | ON_HOST}, ["stage is 7"]),
        ({"zero_optimization": {"stge": 2} | ON_HOST}, ["stge"]),
        ({"zero_optimisation": {"stage": 2}, "gradient_clipping": 9}, ["zero_optimisation", "gradient_clipping is 9"]),
        ({"zero_optimization": {"stage": 0} | ON_HOST, "bf16": {"enabled": 3}}, ["bf16.enabled", "offload_optimizer needs"]),
        ({"data_types": {"grad_accum_dtype": "fp16"}, "bf16": 3}, ["'bf16' must be an object"]),
        ({"train_batch_size": 7, "gradient_accumulation_steps": 5}, ["train_batch_size is 7"]),
        ({"train_batch_size": "7", "gradient_accumulation_steps": 5}, ['train_batch_size is "7"']),
        ({"optimizer": {"type": "Lamb", "params": {"lr": 9}}, "gradient_clipping": 9}, ["Lamb", "gradient_clipping is 9"]),
        ({"optimizer": {"params": {"learning_rate": 9, "eps": 9}}}, ["params.learning_rate", "params.eps is 9"]),
        ({"wall": 1, "train_batch_size": "auto"}, ["wall"]),
    ],
)
def test_what_follows_from_a_mistake_is_not_said_and_what_does_not_is(content, places):
    sound, findings = examine(content, "x.json")
    with pytest.raises(UserError) as caught:
        resolve(sound, OptimizationRecipe(), 1, {"fp32", "bf16"}, "x.json", is_sound=False)
    findings += caught.value.findings
    assert len(findings) == len(places), findings
    assert all(place in str(findings) for place in places), findings


@pytest.mark.parametrize(
    ("total", "micro", "ranks", "advice"),
    [
        (256, 24, 1, "take 240 or 264, or micro_batch_size 16 or 32."),
        (256, 24, 8, "take 192 or 384, or micro_batch_size 16 or 32."),
        (4, 8, 1, "take 8, or micro_batch_size 4."),
        (10, 4, 3, "take 12, or another number of ranks."),
    ],
)
def test_batch_sizes_that_do_not_divide_come_with_the_nearest_that_do(total, micro, ranks, advice):
    with pytest.raises(UserError, match="not a multiple") as caught:
        resolved(ranks, exact=True, global_batch_size=total, micro_batch_size=micro)
    assert str(caught.value).endswith(advice)


def test_deepspeeds_own_objections_name_their_places(tmp_path):
    config = resolved(changes={"zero_optimization": {"stage": 7, "reduce_bucket_size": -1}, "csv_monitor": {"enabled": "x"}})
    with pytest.raises(UserError) as caught:
        check_accepted(config, "x.json")
    objections = sorted(caught.value.findings)
    assert [text.removeprefix("x.json: DeepSpeed does not accept it: ").split(":")[0] for text in objections] == [
        "csv_monitor.enabled", "zero_optimization.reduce_bucket_size", "zero_optimization.stage"
    ]  # fmt: skip


def test_precision_of_the_recipe_and_of_the_json_must_agree():
    with pytest.raises(UserError, match=r"enables bf16, the recipe's optimization\.precision is fp32"):
        resolved(supported=GPU, changes={"bf16": {"enabled": True}}, precision="fp32")
