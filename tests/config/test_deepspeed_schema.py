"""The keys that are known are those that DeepSpeed reads: no fewer, and none that it does not know."""

import importlib
import pkgutil

import deepspeed
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel

from mpnet_ds.config.deepspeed_config import REFUSED_OPTIMIZERS, examine
from mpnet_ds.config.deepspeed_schema import READ_BY_GET, key_tree, models, optimizer_names, optimizer_parameters

NOT_OF_THE_JSON = ("deepspeed.inference", "deepspeed.monitor.config.DeepSpeedMonitorConfig")
NOT_READ_BY_THE_CONFIG = {"optimizer", "pipeline"}  # their keys are read by name elsewhere


class Recorder(dict):
    """A section that remembers which of its keys were asked for."""

    def __init__(self, *content):
        super().__init__(*content)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __copy__(self):
        return self

    def keys(self):
        return self


def section(tree: dict, place: str):
    for key in place.split("."):
        tree = dict.__getitem__(tree, key)
    return tree


@pytest.fixture(scope="module")
def read_by_deepspeed() -> Recorder:
    """A configuration with an empty section of each kind, after DeepSpeed has read it."""
    config = Recorder({"train_batch_size": 1})
    for place in sorted(set(READ_BY_GET) - NOT_READ_BY_THE_CONFIG):
        *parents, last = place.split(".")
        parent = config
        for key in parents:
            parent = dict.__getitem__(parent, key)
        dict.__setitem__(parent, last, Recorder())
    DeepSpeedConfig(config)
    return config


@pytest.mark.parametrize("place", sorted(set(READ_BY_GET) - NOT_READ_BY_THE_CONFIG))
def test_sections_without_a_model_have_the_keys_that_deepspeed_reads(read_by_deepspeed, place):
    assert set(section(key_tree(), place)) == section(read_by_deepspeed, place).asked


def test_every_key_of_the_top_level_that_deepspeed_reads_is_known(read_by_deepspeed):
    assert read_by_deepspeed.asked <= set(key_tree())


def test_every_model_of_deepspeeds_configuration_is_in_the_tree():
    for module in pkgutil.walk_packages(deepspeed.__path__, "deepspeed."):
        if module.name.rsplit(".", 1)[-1].endswith("config") and not module.name.startswith("deepspeed.inference"):
            importlib.import_module(module.name)
    known = {id(kind) for model in models().values() for kind in with_inner(model)}
    missing = [
        f"{kind.__module__}.{kind.__name__}" for kind in DeepSpeedConfigModel.__subclasses__() if id(kind) not in known
    ]
    assert [name for name in missing if not name.startswith(NOT_OF_THE_JSON)] == []


def with_inner(model):
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(kind, "model_fields"):
                yield from with_inner(kind)


def test_every_field_and_alias_of_a_model_is_a_key():
    for place, model in models().items():
        keys = set(section(key_tree(), place))
        assert keys == {name for name, _ in model.model_fields.items()} | {
            field.alias for field in model.model_fields.values() if field.alias
        }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"zero_optimization": {"offload_param": {"devicee": "cpu"}}},
         ("zero_optimization.offload_param.devicee", "device")),
        ({"zero_optimization": {"stage3_max_live_parameter": 1}},
         ("zero_optimization.stage3_max_live_parameter", "stage3_max_live_parameters")),
        ({"bf16": {"enable": True}}, ("bf16.enable", "enabled")),
        ({"fp16": {"los_scale": 0}}, ("fp16.los_scale", "loss_scale")),
        ({"activation_checkpointing": {"cpu_checkpoint": True}},
         ("activation_checkpointing.cpu_checkpoint", "cpu_checkpointing")),
        ({"checkpoint": {"parallel_write": {"pipeline_stages": True}}},
         ("checkpoint.parallel_write.pipeline_stages", "pipeline_stage")),
        ({"checkpoint": {"writer": {"typ": "fast"}}}, ("checkpoint.writer.typ", "type")),
        ({"tensorboard": {"output_pathh": ""}}, ("tensorboard.output_pathh", "output_path")),
        ({"timers": {"throughput": {"synchronize": True}}}, ("timers.throughput.synchronize", "synchronized")),
        ({"optimizer": {"typ": "Adam"}}, ("optimizer.typ", "type")),
        ({"optimizer": {"params": {"weight_dekay": 0}}}, ("optimizer.params.weight_dekay", "weight_decay")),
        ({"aio": {"queue_dept": 1}}, ("aio.queue_dept", "queue_depth")),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_named_with_its_place_and_the_nearest(content, expected):
    sound, findings = examine(content | {"gradient_clipping": 1.0}, "x.json")
    assert len(findings) == 1
    assert findings[0].startswith(f"x.json: unknown key '{expected[0]}'")
    assert findings[0].endswith(f"Did you mean '{expected[1]}'?")
    assert sound["gradient_clipping"] == 1.0
    assert expected[0].rsplit(".", 1)[-1] not in str(sound)


def test_remarks_and_null_sections_pass():
    assert examine({"_why": {"any": 1}, "zero_optimization": {"offload_param": None}}, "x")[1] == []


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
