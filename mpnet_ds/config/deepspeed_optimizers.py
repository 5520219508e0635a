"""Optimizers that DeepSpeed's JSON may name, and the parameters that each takes.

Few, each trained by a test at every ZeRO stage, rather than all that DeepSpeed and PyTorch have: some of those compile
kernels at their first step, some need a closure, sparse gradients or a single group of parameters.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from mpnet_ds.config.deepspeed_keys import Flag, Number, keys_by_kind
from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.validation import SoundPart, checked


def _not_deepspeeds(torch_adam: bool) -> bool:
    if not torch_adam:
        raise ValueError("optimizer.params.torch_adam false is refused: DeepSpeed would compile its own Adam. Leave it out.")
    return torch_adam


Share = Annotated[float, Field(ge=0, lt=1)]
_OF_ADAM = keys_by_kind(
    (Number, "lr eps weight_decay"), (Annotated[list[Share], Field(min_length=2, max_length=2)], "betas")
)
_ADAM = _OF_ADAM | {"torch_adam": Annotated[bool, AfterValidator(_not_deepspeeds)], "adam_w_mode": Flag, "fused": Flag}

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "AdamW": _ADAM,
    "Adam": _ADAM,
    "Muon": _OF_ADAM | {"momentum": Share},  # see muon.py: of DeepSpeed's, those that one learning rate leaves
    "NAdam": _OF_ADAM | keys_by_kind((Number, "momentum_decay"), (Flag, "decoupled_weight_decay")),
    "RAdam": _OF_ADAM | {"decoupled_weight_decay": Flag},
    "SGD": keys_by_kind((Number, "lr weight_decay"), (Share, "momentum")),
}
"""Name → its parameters, each with what its value must be. All but Muon are PyTorch's."""

REFUSED_OPTIMIZERS = {
    **dict.fromkeys(("muadam", "muadamw", "musgd"), "the schedule would overwrite their learning rates for each width"),
    **dict.fromkeys(("lamb", "lion"), "DeepSpeed would compile its kernels at the first step"),
    **dict.fromkeys(("onebitadam", "onebitlamb", "zerooneadam"), "DeepSpeed no longer has it"),
    "adafactor": "the recipe's optimization.eps is one number, it takes two",
    "adagrad": "at ZeRO 1 to 3 it takes one group of parameters, and biases have no weight decay here",
    "lbfgs": "it computes the loss several times in a step",
    "sparseadam": "gradients are dense here",
    **dict.fromkeys(("adadelta", "adamax", "asgd", "rmsprop", "rprop"), "it is not tested with ZeRO here"),
}
"""Other optimizers of DeepSpeed and PyTorch: name in small letters → why."""


def sound_optimizer(section: dict) -> tuple[SoundPart, list[str]]:
    """The section ``optimizer`` without what its kind does not take, and what is wrong with the rest."""
    kind, parameters = section.get("type", "AdamW"), section.get("params", {})
    name = {name.lower(): name for name in OPTIMIZERS}.get(kind.lower())
    sound, own, findings = SoundPart(), SoundPart(), []
    sound.is_complete = False
    if why := REFUSED_OPTIMIZERS.get(kind.lower()):
        return sound, [f"optimizer.type '{kind}' is refused: {why}. Use AdamW."]
    if name is None:
        return sound, [f"unknown optimizer '{kind}'. {did_you_mean(kind, OPTIMIZERS)}"]
    known, sound.is_complete = OPTIMIZERS[name], True
    for key, value in parameters.items():
        if key not in known:
            findings.append(f"unknown key 'optimizer.params.{key}' for {kind}. {did_you_mean(key, known)}")
            own.doubt(key, known.keys() - parameters.keys())
            continue
        try:
            own[key] = value if value == "auto" else checked(known[key], value, f"optimizer.params.{key}")
        except UserError as error:
            findings += error.findings
            own.wrong.add(key)
    sound |= ({"type": name} if "type" in section else {}) | {"params": own}
    return sound, findings
