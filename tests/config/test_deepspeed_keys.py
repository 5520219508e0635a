"""Every key that DeepSpeed knows is served, harmless or refused by name, and no others are taken."""

import importlib
import json
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
    decisions = [key in SERVED or name in SERVED.get(place, ()), key in HARMLESS, bool(refused)]
    assert sum(decisions) == 1, f"decide on {key} in config/deepspeed_keys.py"
    content = {"anything": 1}
    for part in reversed(parts):
        content = {part: content}
    said = str(examine(content, "x.json")[1])
    for refused_key in refused:
        assert f"x.json: remove '{refused_key}': {REFUSED[refused_key]}." in said
    assert f"unknown key '{key}'" not in said


def test_no_other_keys_are_decided_on():
    served = {f"{place}.{key}".lstrip(".") for place, keys in SERVED.items() for key in keys}
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
    assert dict(sound).get(key) in (None, {})
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"bf16": {"enabled": 1}}', "bf16.enabled is 1; it must be true or false."),
        ('{"bf16": {"enabled": "3"}}', 'bf16.enabled is "3"; it must be true or false.'),
        ('{"bf16": {"enabled": null}}', "bf16.enabled is null; it must be true or false."),
        ('{"fp16": null}', "'fp16' must be an object, not null."),
        ('{"optimizer": null}', "'optimizer' must be an object, not null."),
        ('{"optimizer": {"params": null}}', "optimizer.params is null; it must be an object."),
        ('{"optimizer": {"params": "auto"}}', 'optimizer.params is "auto"; it must be an object.'),
        ('{"zero_optimization": true}', "'zero_optimization' must be an object, not true."),
        ('{"zero_optimization": {"stage": "2"}}', 'zero_optimization.stage is "2"; it must be a whole number.'),
        ('{"zero_optimization": {"stage": true}}', "zero_optimization.stage is true; it must be a whole number."),
        ('{"zero_optimization": {"stage": 2.5}}', "zero_optimization.stage is 2.5; it must be a whole number."),
        ('{"zero_optimization": {"stage": NaN}}', "zero_optimization.stage is NaN; it must be a whole number."),
        ('{"zero_optimization": {"reduce_bucket_size": 1e999}}',
         "zero_optimization.reduce_bucket_size is Infinity; it must be a whole number."),
        ('{"zero_optimization": {"allgather_bucket_size": 3}}',
         "zero_optimization.allgather_bucket_size is 3; it must be a multiple of 2."),
        ('{"fp16": {"hysteresis": 0}}', "fp16.hysteresis is 0; it must be greater than 0."),
        ('{"gradient_clipping": true}', "gradient_clipping is true; it must be a number."),
        ('{"gradient_clipping": Infinity}', "gradient_clipping is Infinity; it must be a finite number."),
        ('{"train_batch_size": 1e30}',
         "train_batch_size is 1e+30; it must be at most 9223372036854775807."),
        ('{"communication_data_type": "int8"}', 'unknown communication_data_type "int8". Known: bf16, fp16, fp32.'),
        ('{"activation_checkpointing": {"number_checkpoints": 1.5}}',
         "activation_checkpointing.number_checkpoints is 1.5; it must be a whole number."),
        ('{"zero_optimization": {"offload_param": {"device": "nvme"}}}',
         'unknown zero_optimization.offload_param.device "nvme". Known: cpu, none.'),
        ('{"compile": {"deepcompile": 0}}', f"remove 'compile': {REFUSED['compile']}."),
        ('{"prescale_gradients": 0}', f"remove 'prescale_gradients': {REFUSED['prescale_gradients']}."),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_by_name(content, message):
    sound, findings = examine(json.loads(content), "x.json")
    assert findings == [f"x.json: {message}"]
    assert not list(leaves(sound))


def leaves(section: dict):
    for value in section.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize(("place", "key"), [(place, key) for place, kinds in SERVED.items() for key in kinds])
def test_no_value_is_taken_for_another(place, key):
    kinds = {"true or false": False, "a number": 1, "text": "x", "a list": [], "an object": {}}
    taken = [name for name, value in kinds.items() if examine(nested(place, {key: value}), "x")[1] == []]
    assert len(taken) <= 1


def nested(place: str, content: dict) -> dict:
    for part in reversed(place.split(".") if place else ()):
        content = {part: content}
    return content


def test_whole_numbers_may_be_written_with_an_exponent():
    sound, _ = examine({"zero_optimization": {"stage": 2.0, "reduce_bucket_size": 5e8}}, "x.json")
    assert sound == {"zero_optimization": {"stage": 2, "reduce_bucket_size": 500_000_000}}
    assert all(type(value) is int for value in sound["zero_optimization"].values())


def test_null_is_what_deepspeed_has_as_default_or_refused():
    content = {"zero_optimization": {"overlap_comm": None, "offload_optimizer": None}, "communication_data_type": None}
    assert examine(content, "x.json") == ({"zero_optimization": {}}, [])


def test_harmless_keys_do_not_reach_deepspeed():
    content = {"steps_per_print": "10", "checkpoint": {"tag_validation": "Fail"}, "gradient_clipping": 1}
    assert examine(content, "x.json") == ({"checkpoint": {}, "gradient_clipping": 1.0}, [])
