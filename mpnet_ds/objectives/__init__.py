"""Pre-training objectives by name; base.py says what an objective is."""

import json
from dataclasses import fields

from pydantic.dataclasses import is_pydantic_dataclass

from mpnet_ds.errors import UNKNOWN, UserError, did_you_mean
from mpnet_ds.objectives.base import Objective
from mpnet_ds.objectives.clm import CLM
from mpnet_ds.objectives.mlm import MLM
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.objectives.plm import PLM
from mpnet_ds.validation import Origin, examine

__all__ = ["OBJECTIVES", "Objective", "objective_of", "register"]

OBJECTIVES: dict[str, type[Objective]] = {}
"""Class of each objective by its name in recipes."""


def register(objective: type[Objective]) -> type[Objective]:
    """Let recipes name an objective; may decorate its class."""
    OBJECTIVES[objective.name] = objective
    return objective


for _objective in (MPNet, PLM, MLM, CLM):
    register(_objective)


def objective_of(section: str | dict, origin: str | Origin = "objective") -> Objective:
    """Build the objective of a recipe's section: a name, or an object with ``name`` and the objective's keys.

    Args:
        origin: source of the section, for messages.
    Raises:
        UserError: an unknown name or key (with the nearest one), or a value that the objective does not accept.
    """
    objective, findings = examine_objective(section, origin)
    if findings:
        raise UserError(*findings)
    return objective


def examine_objective(section: str | dict, origin: str | Origin) -> tuple[Objective, list[str]]:
    """The valid part of an objective, and what is wrong with its section; arguments as for ``objective_of``."""
    origin = Origin(origin) if isinstance(origin, str) else origin
    if not isinstance(section, str | dict):
        value = json.dumps(section)
        return UNKNOWN, [f"{origin.of('objective')}: objective is {value}; it must be a name, or an object with a name."]
    keys = {"name": section} if isinstance(section, str) else dict(section)
    name = keys.pop("name", None)
    if not isinstance(name, str) or name not in OBJECTIVES:
        shown = "an objective without a name" if name is None else f"unknown objective '{name}'"
        return UNKNOWN, [f"{origin.of('objective.name')}: {shown}. {did_you_mean(str(name), OBJECTIVES)}"]
    known = [field.name for field in fields(OBJECTIVES[name])]
    unknown = [key for key in keys if key not in known]
    if unknown and not is_pydantic_dataclass(OBJECTIVES[name]):  # a plain dataclass would ignore them
        texts = (f"{origin.of('objective')}: unknown key 'objective.{key}'. {did_you_mean(key, known)}" for key in unknown)
        return UNKNOWN, list(texts)
    return examine(OBJECTIVES[name], keys, origin, "objective")
