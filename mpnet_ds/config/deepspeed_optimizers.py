"""Optimizers that DeepSpeed's JSON may name, and the parameters that each takes: those of its constructor."""

import inspect

from mpnet_ds.errors import did_you_mean

REFUSED_OPTIMIZERS = dict.fromkeys(
    ("muadam", "muadamw", "musgd"), "the schedule would overwrite their learning rates for each width"
)
"""Optimizers that would train, but not as their users expect: name in small letters → why."""
MUON = {"lr", "momentum", "betas", "eps", "weight_decay"}  # see muon.py: of DeepSpeed's, those that one learning rate leaves
ADAM = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}  # DeepSpeed's, beside the constructor's


def sound_optimizer(section: dict, on_host: bool) -> tuple[dict, list[str]]:
    """The section ``optimizer`` without what its kind does not take, and what is wrong with the rest.

    ``on_host``: the optimizer works in the host's memory (``offload_optimizer``).
    """
    kind, parameters = section.get("type", "AdamW"), section.get("params", {})
    if not isinstance(kind, str):
        return {}, ["'optimizer.type' must be a name."]
    if not isinstance(parameters, dict):
        return {}, ["'optimizer.params' must be an object."]
    if why := REFUSED_OPTIMIZERS.get(kind.lower()):
        return {}, [f"optimizer.type '{kind}' is refused: {why}. Use AdamW."]
    known = optimizer_parameters(kind, parameters, on_host)
    if not known:
        names = [name for name in optimizer_names() if name.lower() not in REFUSED_OPTIMIZERS]
        return {}, [f"unknown optimizer '{kind}'. {did_you_mean(kind, names)}"]
    unknown = sorted(set(parameters) - known)
    findings = [f"unknown key 'optimizer.params.{key}' for {kind}. {did_you_mean(key, known)}" for key in unknown]
    return section | {"params": {key: value for key, value in parameters.items() if key in known}}, findings


def optimizer_names() -> list[str]:
    """What DeepSpeed takes for ``optimizer.type``."""
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    return sorted({"Adam", "AdamW", *DEEPSPEED_OPTIMIZERS, *_torch_optimizers()})


def optimizer_parameters(kind: str, parameters: dict, on_host: bool) -> set[str]:
    """Keys that ``optimizer.params`` may hold; an empty set where there is no such optimizer.

    Args:
        kind: ``optimizer.type``.
        parameters: the section itself: ``torch_adam`` decides between PyTorch's optimizer and DeepSpeed's.
        on_host: as in ``sound_optimizer``.
    """
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    from torch.optim import Adagrad, AdamW

    name = kind.lower()
    if name == "muon":
        return MUON
    if name in ("adam", "adamw"):
        theirs = DeepSpeedCPUAdam if on_host else FusedAdam
        # The engine passes adamw_mode itself; a second one in the file is an error.
        return ADAM | (_arguments(AdamW if parameters.get("torch_adam", True) else theirs) - {"adamw_mode"})
    own = {"lamb": FusedLamb, "lion": FusedLion, "adagrad": Adagrad}
    own_on_host = {"lion": DeepSpeedCPULion, "adagrad": DeepSpeedCPUAdagrad}
    found = (own | own_on_host if on_host else own).get(name) or _torch_optimizers().get(kind)
    return _arguments(found) - ({"max_grad_norm"} if name == "lamb" else set()) if found else set()


def _torch_optimizers() -> dict[str, type]:
    """PyTorch's, where DeepSpeed looks up any other name and minds the case of letters."""
    from torch import optim

    classes = {name: kind for name, kind in vars(optim).items() if inspect.isclass(kind) and kind is not optim.Optimizer}
    return {name: kind for name, kind in classes.items() if issubclass(kind, optim.Optimizer)}


def _arguments(optimizer: type) -> set[str]:
    return set(inspect.signature(optimizer.__init__).parameters) - {"self", "params", "model_params"}
