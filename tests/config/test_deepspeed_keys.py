"""Every key that DeepSpeed knows is served, harmless or refused by name, and no others are taken."""

import importlib
import pkgutil

import deepspeed
import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.runtime.config import DeepSpeedConfig, HybridEngineConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig

from mpnet_ds.config.deepspeed_config import examine, section_models
from mpnet_ds.config.deepspeed_keys import HARMLESS, REFUSED, SERVED, is_off, keys_of_section

NOT_OF_THE_JSON = ("deepspeed.inference", "deepspeed.monitor.config.DeepSpeedMonitorConfig")
READ_ELSEWHERE = {"optimizer": "type params legacy_fusion", "autotuning": "enabled", "pipeline": "stages"}
"""Sections whose keys DeepSpeed's configuration does not read itself."""
READ_BY_GET = [
    "activation_checkpointing",
    "aio",
    "checkpoint",
    "checkpoint.writer",
    "checkpoint.parallel_write",
    "data_types",
    "flops_profiler",
    "timers",
    "torch_autocast",
]
"""Sections that DeepSpeed reads with ``dict.get``."""
REFUSED_MODELS = {
    "comms_logger": CommsLoggerConfig,
    "compile": CompileConfig,
    "hybrid_engine": HybridEngineConfig,
    "tensor_parallel": TPTrainingConfig,
    "weight_quantization": WeightQuantConfig,
}
MODELS = section_models() | REFUSED_MODELS


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


def keys_of_model(model, place: str) -> set[str]:
    """Dotted names and aliases of a model's fields, and of the models inside it."""
    keys = set()
    for name, field in model.model_fields.items():
        inner = [k for k in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(k, "model_fields")]
        for key in filter(None, (name, field.alias)):
            keys.add(f"{place}.{key}")
            keys |= {below for kind in inner for below in keys_of_model(kind, f"{place}.{key}")}
    return keys


def keys_of_deepspeed() -> set[str]:
    """All dotted keys that DeepSpeed takes from its JSON: those of its models, and those that it asks a recorder for."""
    config = Recorder({"train_batch_size": 1})
    sections = {"": config}
    for place in READ_BY_GET:
        parent, _, name = place.rpartition(".")
        sections[place] = Recorder()
        dict.__setitem__(sections[parent], name, sections[place])
    DeepSpeedConfig(config)
    asked = {f"{place}.{key}".lstrip(".") for place, recorder in sections.items() for key in recorder.asked}
    elsewhere = {f"{place}.{key}" for place, keys in READ_ELSEWHERE.items() for key in keys.split()}
    return asked | elsewhere | {key for place, model in MODELS.items() for key in keys_of_model(model, place)} | set(MODELS)


KEYS = sorted(keys_of_deepspeed())


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_deepspeed_is_served_harmless_or_refused(key):
    place, _, name = key.rpartition(".")
    parts = key.split(".")
    ancestors = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    refused = ancestors & set(REFUSED)
    decisions = [key in SERVED or name in SERVED.get(place, "").split(), key in HARMLESS, bool(refused)]
    assert sum(decisions) == 1, f"decide on {key} in config/deepspeed_keys.py"
    content = {"anything": 1}
    for part in reversed(parts):
        content = {part: content}
    said = str(examine(content, "x.json")[1])
    for refused_key in refused:
        assert f"x.json: remove '{refused_key}': {REFUSED[refused_key]}." in said
    assert f"unknown key '{key}'" not in said


def test_no_other_keys_are_decided_on():
    served = {f"{place}.{key}".lstrip(".") for place, keys in SERVED.items() for key in keys.split()}
    assert (served | set(HARMLESS) | set(REFUSED)) - set(KEYS) == set()


def test_every_model_of_deepspeeds_configuration_is_known_here():
    for module in pkgutil.walk_packages(deepspeed.__path__, "deepspeed."):
        if module.name.rsplit(".", 1)[-1].endswith("config") and not module.name.startswith("deepspeed.inference"):
            importlib.import_module(module.name)
    known = {id(kind) for model in MODELS.values() for kind in with_inner(model)}
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


@pytest.mark.parametrize(
    ("content", "is_refused"),
    [
        ({"compile": {"deepcompile": True}}, True),
        ({"compile": {"deepcompile": False, "offload_activation": True}}, False),
        ({"autotuning": {"enabled": True}}, True),
        ({"autotuning": {"enabled": False}}, False),
        ({"tensor_parallel": {"autotp_size": 2}}, True),
        ({"pipeline": {"stages": 2}}, True),
        ({"pipeline": {}}, False),
        ({"amp": {"enabled": False}}, False),
        ({"amp": True}, True),
        ({"sparse_gradients": False}, False),
        ({"managed_gradient_accumulation": True}, False),
        ({"managed_gradient_accumulation": False}, True),
        ({"gradient_allreduce_op": "mean"}, False),
        ({"gradient_allreduce_op": "sum"}, True),
        ({"zero_optimization": {"compute_grad_norm": False}}, True),
        ({"zero_optimization": {"compute_grad_norm": True}}, False),
        ({"zero_optimization": {"zenflow": None}}, False),
        ({"checkpoint": {"use_node_local_storage": False}}, False),
        ({"checkpoint": {"use_node_local_storage": True}}, True),
        ({"scheduler": {"type": "WarmupLR"}}, True),
        ({"elasticity": {"enabled": "auto"}}, True),
    ],
)
def test_what_is_switched_off_is_left_out_and_what_is_on_is_refused(content, is_refused):
    sound, findings = examine(content | {"gradient_clipping": 1.0}, "x.json")
    assert len(findings) == is_refused
    (key,) = content
    assert sound.get(key) in (None, {})
    assert sound["gradient_clipping"] == 1.0


def test_a_refused_section_is_on_unless_it_says_off():
    assert all(not is_off(key, {"anything": 1}) and not is_off(key, "auto") for key in REFUSED)


def test_a_key_of_a_later_deepspeed_is_refused_as_unknown():
    assert "of_a_later_release" not in keys_of_section("zero_optimization")
    assert len(examine({"zero_optimization": {"of_a_later_release": 1}}, "x.json")[1]) == 1


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
        ({"checkpoint": {"tag_validations": "WARN"}}, ("checkpoint.tag_validations", "tag_validation")),
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
