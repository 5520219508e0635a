"""DeepSpeed's JSON: reading it, checking its keys, and filling in "auto".

The file keeps DeepSpeed's own schema. Where it says "auto" the recipe's or the command line's value goes; where it gives
a number that contradicts them, that is an error which names both. Every key is served, harmless or refused by name (see
``deepspeed_keys.py``). Everything that is wrong is said at once.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

from mpnet_ds.config.batch_sizes import BatchSizes, fit
from mpnet_ds.config.deepspeed_keys import (
    ACCUMULATION,
    GLOBAL,
    HARMLESS,
    MICRO,
    MONITORS,
    OPTIONAL,
    REFUSED,
    SERVED,
    is_off,
    keys_of_section,
)
from mpnet_ds.config.deepspeed_optimizers import OPTIMIZERS, sound_optimizer
from mpnet_ds.config.recipe import OptimizationRecipe
from mpnet_ds.errors import UserError, collecting, did_you_mean
from mpnet_ds.validation import SoundPart, checked, examine_json_object, shorten


@dataclass(frozen=True)
class EngineConfig:
    """A resolved configuration."""

    engine: dict
    """What ``deepspeed.initialize`` gets: no "auto" left, no monitor sections."""
    monitors: dict
    """The monitor sections, which the trainer drives itself, so that nothing but logging waits for the device."""
    batch: BatchSizes
    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""

    @property
    def zero_stage(self) -> int:
        """0 to 3."""
        return self.engine.get("zero_optimization", {}).get("stage", 0)

    @property
    def uses_muon(self) -> bool:
        """Whether Muon updates the hidden matrices, see ``muon.py``."""
        return _uses_muon(self.engine)

    def offload(self, what: str) -> str:
        """Where ``offload_param`` or ``offload_optimizer`` puts things: ``none`` or ``cpu``."""
        return _offload(self.engine, what)


def load_deepspeed_config(name_or_file: str | Path) -> dict:
    """Read a configuration and check its keys; ``UserError`` with all findings."""
    sound, findings = examine_file(name_or_file)
    if findings:
        raise UserError(*findings)
    return sound


def examine_file(name_or_file: str | Path) -> tuple[dict | None, list[str]]:
    """The sound part of a shipped configuration, by name, or of any file, and what is wrong; None where nothing is read."""
    path = Path(name_or_file)
    if not path.is_file() and len(path.parts) == 1 and path.suffix != ".json":
        path = shipped_folder() / f"{name_or_file}.json"
    if not path.is_file():
        known = did_you_mean(Path(name_or_file).stem, [file.stem for file in shipped_folder().glob("*.json")])
        return None, [f"no DeepSpeed configuration {name_or_file}. Those of ds_configs/ go by their names. {known}"]
    content, findings = examine_json_object(path)
    if content is None:
        return None, findings
    sound, more = examine(content, str(name_or_file))
    return sound, findings + more


def shipped_folder() -> Path:
    """Folder of the shipped configurations: inside an installed package, at the top of a checkout."""
    package = Path(__file__).parent.parent
    return package / "ds_configs" if (package / "ds_configs").is_dir() else package.parent / "ds_configs"


def examine(content: dict, origin: str) -> tuple[dict, list[str]]:
    """The sound part of a configuration, and what is wrong with the rest: keys, and kinds of values.

    ``content`` is not changed; ``origin``: the file's name, for messages.
    """
    findings: list[str] = []
    sound = _sound_part(content, "", findings)
    with collecting(findings):
        if "optimizer" in sound:
            sound["optimizer"], more = sound_optimizer(sound["optimizer"])
            findings += more
    return sound, [f"{origin}: {text}" for text in findings]


def _sound_part(section: dict, place: str, findings: list[str]) -> SoundPart:
    """``section`` without what is harmless, unknown, refused or of another kind than it must be.

    Keys of the top level that begin with _ are the user's remarks.
    """
    sound, known = SoundPart(), keys_of_section(place)
    for key, value in section.items():
        where = f"{place}.{key}" if place else key
        if where in HARMLESS or (where in OPTIONAL and value is None) or (key.startswith("_") and not place):
            continue
        if where in REFUSED:
            if not is_off(where, value):
                findings.append(f"remove '{where}': {REFUSED[where]}.")
                sound.wrong.add(key)
        elif key not in known:
            findings.append(f"unknown key '{where}'. {did_you_mean(key, known)}")
            sound.doubt(key, known - section.keys())
        elif where in SERVED and not isinstance(value, dict):
            findings.append(f"'{where}' must be an object, not {shorten(json.dumps(value))}.")
            sound.wrong.add(key)
        elif where in SERVED:
            sound[key] = _sound_part(value, where, findings)
        elif value == "auto" and SERVED[place][key] is not dict:
            sound[key] = value
        else:
            try:
                value = checked(SERVED[place][key], value, where)
            except UserError as error:
                findings += error.findings
                sound.wrong.add(key)
            else:
                sound |= {} if value is None else {key: value}
    return sound


def name_deprecated(content: dict, origin: str) -> list[str]:
    """A sentence for each key of ``zero_optimization`` that DeepSpeed still takes, but calls deprecated."""
    fields, section = section_models()["zero_optimization"].model_fields, content.get("zero_optimization", {})
    extras = {name: fields[name].json_schema_extra or {} for name in section if name in fields}
    return [
        f"{origin}: zero_optimization.{key} is deprecated in DeepSpeed" + (f": use {instead} instead." if instead else ".")
        for key, instead in ((key, extra.get("new_param")) for key, extra in extras.items() if extra.get("deprecated"))
    ]


def section_models() -> dict[str, type]:
    """DeepSpeed's pydantic models of the sections that a file may have, by their place."""
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "bfloat16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        **{name: DeepSpeedMonitorConfig.model_fields[name].annotation for name in MONITORS},
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }


def resolve(
    raw: dict,
    optimization: OptimizationRecipe,
    world_size: int,
    supported: set[str],
    origin: str,
    exact_micro_batch: bool = False,
    hidden_size: int | None = None,
    is_sound: bool = True,
) -> EngineConfig:
    """Fills in "auto" and checks what must agree; ``UserError`` with all findings.

    Args:
        raw: from ``load_deepspeed_config``, or the sound part of a file.
        optimization: the recipe's values, the command line's already in them.
        supported: precisions that the device computes in.
        origin: the file's name, for messages.
        exact_micro_batch: the command line asked for this micro batch size; do not lower it to fit.
        hidden_size: of the model, from which "auto" of bucket sizes follows.
        is_sound: false where ``raw`` or ``optimization`` is only the valid part of what was given: then a ``UserError`` is
            raised in any case.
    """
    config = copy.deepcopy(raw)
    monitors = {name: config.pop(name) for name in raw if name in MONITORS}
    findings, precision, batch = [], None, None
    with collecting(findings):
        precision = _resolve_precision(config, optimization, supported, findings)
    with collecting(findings):
        batch = _resolve_batch(config, optimization, world_size, exact_micro_batch, findings)
    with collecting(findings):
        _settle(config, "gradient_clipping", optimization.gradient_clipping, "gradient_clipping", findings)
    with collecting(findings):
        _resolve_optimizer(config, optimization, findings)
    if hidden_size is not None:
        with collecting(findings):
            _resolve_buckets(config.get("zero_optimization", {}), hidden_size)
    for contradiction in _CONTRADICTIONS:
        with collecting(findings):
            findings += contradiction(config, precision)
    config |= {"steps_per_print": 2**31, "zero_allow_untested_optimizer": True}
    if is_sound:
        _find_leftover_auto(config | monitors, "", findings)
    if findings or not is_sound:
        raise UserError(*(f"{origin}: {text}" for text in findings))
    return EngineConfig(json.loads(json.dumps(config)), monitors, batch, precision)


# What is wrong with values that are each allowed: most would be passed over in silence, some fail at the first step.
def _find_misplaced_optimizer(config: dict, precision: str | None) -> list[str]:
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if _uses_muon(config) and (stage or _is_on_host(config)):
        why = "Muon takes whole matrices, on their device: ZeRO 1 to 3 cut them, offload_optimizer takes them elsewhere"
        return [f"{why}. Take ZeRO 0 without it, as ds_configs/muon.json does, or AdamW."]
    if _is_on_host(config) and not stage:
        return ["zero_optimization.offload_optimizer needs ZeRO 1, 2 or 3: give zero_optimization.stage."]
    return []


def _find_misplaced_parameters(config: dict, precision: str | None) -> list[str]:
    if _offload(config, "offload_param") == "none" or (stage := config["zero_optimization"].get("stage", 0)) == 3:
        return []
    return [f"zero_optimization.offload_param needs ZeRO 3, stage is {stage}: set it to 3, or leave it out."]


def _find_wrong_sum(config: dict, precision: str | None) -> list[str]:
    summed_in = config.get("data_types", {}).get("grad_accum_dtype", precision)
    if precision is None or summed_in == precision:
        return []
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if summed_in == "fp32" and stage in (2, 3):
        return []
    what = f"data_types.grad_accum_dtype {summed_in} in {precision} at ZeRO {stage}"
    return [f"{what} is not supported: take fp32 at ZeRO 2 or 3, or leave it out."]


def _find_missing_checkpoints(config: dict, precision: str | None) -> list[str]:
    activations = config.get("activation_checkpointing", {})
    if not activations.get("contiguous_memory_optimization"):
        return []
    missing = [key for key in ("partition_activations", "number_checkpoints") if not activations.get(key)]
    cure = f"give it {' and '.join(missing)}, or leave it out"
    return [f"activation_checkpointing.contiguous_memory_optimization is not possible so: {cure}."] if missing else []


_CONTRADICTIONS = (_find_misplaced_optimizer, _find_misplaced_parameters, _find_wrong_sum, _find_missing_checkpoints)


def check_accepted(config: EngineConfig, origin: str) -> None:
    """Lets DeepSpeed itself check a resolved configuration; raises ``UserError`` with its objections."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    sections, objections = config.engine | config.monitors, []
    for place, model in section_models().items():
        if "." not in place and isinstance(sections.get(place), dict):
            try:
                model(**sections[place])
            except ValidationError as error:
                objections += [f"{'.'.join(map(str, (place, *e['loc'])))}: {e['msg']}" for e in error.errors()]
            except Exception as error:  # assertions, ValueError: whatever kind each section raises
                objections.append(f"{place}: {error}")
    if not objections:
        try:
            # Without the global batch: before the ranks are connected, DeepSpeed takes this one for the only one.
            DeepSpeedConfig({key: value for key, value in config.engine.items() if key != GLOBAL})
        except Exception as error:  # its first objection to the whole, of whatever kind
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            objections = [" ".join(lines[:3]).rstrip(".")]
    if objections:
        raise UserError(*(f"{origin}: DeepSpeed does not accept it: {text}." for text in objections))


_OF_RECIPE = {"lr": "learning_rate", "betas": "betas", "eps": "eps", "weight_decay": "weight_decay"}


def _resolve_optimizer(config: dict, optimization: OptimizationRecipe, findings: list[str]) -> None:
    optimizer = config.setdefault("optimizer", {})
    kind, parameters = optimizer.setdefault("type", "AdamW"), optimizer.setdefault("params", {})
    for name, field in _OF_RECIPE.items():
        if name in OPTIMIZERS[kind]:
            with collecting(findings):
                value = getattr(optimization, field)
                _settle(parameters, name, list(value) if name == "betas" else value, f"optimizer.params.{name}", findings)
    if kind == "Muon":
        parameters.setdefault("momentum", 0.95)
    if kind in ("Adam", "AdamW"):
        # DeepSpeed's own, on a GPU or on the host, compiles for minutes, without a word, at its first use.
        parameters["torch_adam"] = True
        parameters.setdefault("fused", True)


def _resolve_buckets(zero: dict, hidden_size: int) -> None:
    """Fill in the sizes whose "auto" is transformers' word, with what its Trainer makes of it."""
    meanings = {
        "reduce_bucket_size": hidden_size**2,
        "prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "param_persistence_threshold": 10 * hidden_size,
    }
    for name, value in meanings.items():
        for key in (name, f"stage3_{name}"):
            if zero.get(key) == "auto":
                zero[key] = value


def _uses_muon(config: dict) -> bool:
    return config["optimizer"]["type"] == "Muon"


def _offload(config: dict, what: str) -> str:
    zero = config.get("zero_optimization", {})
    deprecated = {"offload_optimizer": "cpu_offload", "offload_param": "cpu_offload_param"}[what]
    if zero.get(deprecated) is True:
        return "cpu"
    return str((zero.get(what) or {}).get("device", "none"))


def _is_on_host(config: dict) -> bool:
    return _offload(config, "offload_optimizer") != "none"


def _settle(section: dict, key: str, value, place: str, findings: list[str]) -> bool:
    """Puts ``value`` where the file is silent or says "auto"; another value is a contradiction: returns false."""
    found = section.get(key, "auto")
    if found == "auto":
        section[key] = value
    elif found != value:
        cure = 'write "auto" there, or change the recipe'
        findings.append(f"{place} is {json.dumps(found)}, the recipe or command line says {json.dumps(value)}: {cure}.")
    return section[key] == value


def _resolve_precision(config: dict, optimization: OptimizationRecipe, supported: set[str], findings: list[str]) -> str:
    if "bfloat16" in config:
        config["bf16"] = config.pop("bfloat16")
    enabled = {name: config.get(name, {}).get("enabled", False) for name in ("bf16", "fp16")}
    chosen = [name for name, value in enabled.items() if value is True]
    if len(chosen) > 1:
        findings.append("fp16 and bf16 are both enabled; keep one.")
    wanted = optimization.precision
    if chosen:
        precision = chosen[-1]
    elif "auto" in enabled.values():
        precision = wanted if wanted != "auto" else ("bf16" if "fast-bf16" in supported else "fp32")
    else:
        precision = "fp32"
    if wanted not in ("auto", precision):
        findings.append(f"it enables {precision}, the recipe's optimization.precision is {wanted}: make them agree.")
    if precision not in supported:
        others = "take ds_configs/bf16.json or ds_configs/zero2.json"
        cure = others if precision == "fp16" else "set optimization.precision to fp32"
        findings.append(f"{precision} is enabled, but this device does not support it: {cure}.")
    if precision == "bf16":  # a step with gradients that are not finite is skipped
        config.setdefault("bf16", {}).setdefault("check_grad_overflow", True)
    for name in ("bf16", "fp16"):
        if name in config:
            config[name]["enabled"] = name == precision
    return precision


def _resolve_batch(
    config: dict, optimization: OptimizationRecipe, world_size: int, exact: bool, findings: list[str]
) -> BatchSizes | None:
    """The sizes, also put into ``config``; None where they do not fit."""
    agree = _settle(config, GLOBAL, optimization.global_batch_size, GLOBAL, findings)
    micro = optimization.micro_batch_size
    if isinstance(config.get(MICRO), int):
        agree = (not exact or _settle(config, MICRO, micro, MICRO, findings)) and agree
        micro, exact = config[MICRO], True
    found = config.pop(ACCUMULATION, "auto")
    config[MICRO] = micro
    if not agree:
        return None
    sizes = fit(config[GLOBAL], micro, world_size, exact)
    if found not in ("auto", sizes.accumulation_steps):
        arithmetic = f"{sizes.global_batch_size} sequences / (micro batch {sizes.micro_batch_size} × {world_size} ranks)"
        cure = 'write "auto" there, or change the batch sizes'
        findings.append(f"{ACCUMULATION} is {found}, but {arithmetic} = {sizes.accumulation_steps}: {cure}.")
    config |= {MICRO: sizes.micro_batch_size, ACCUMULATION: sizes.accumulation_steps}
    return sizes


def _find_leftover_auto(section, place: str, findings: list[str]) -> None:
    items = section.items() if isinstance(section, dict) else enumerate(section) if isinstance(section, list) else ()
    for key, value in items:
        where = f"{place}.{key}" if place else str(key)
        if value == "auto":
            findings.append(f"'{where}' is \"auto\", but nothing else sets it: give a value, or leave it out.")
        _find_leftover_auto(value, where, findings)


def layout(engine: dict) -> dict:
    """What decides, besides ZeRO stage, precision and ranks, how shards are laid out; ``engine`` is DeepSpeed's JSON."""
    zero = engine.get("zero_optimization", {})
    keys = ("round_robin_gradients", "sub_group_size", "parameter_alignment")
    return {"optimizer": engine["optimizer"]["type"].lower()} | {key: zero[key] for key in keys if key in zero}
