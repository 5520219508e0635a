"""The page that documents every key of a run, made from the code: python -m mpnet_ds.config.document > docs/configuration.md

The text is configuration_template.md; types, bounds, defaults and descriptions of a recipe's keys are those of its fields.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from string import Template
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from mpnet_ds.config.deepspeed_keys import HARMLESS, REFUSED, SERVED
from mpnet_ds.config.deepspeed_optimizers import OPTIMIZERS, REFUSED_OPTIMIZERS
from mpnet_ds.config.foreign_names import OTHERWISE, PROGRAM_FLAGS, RECIPE_KEYS, our_name
from mpnet_ds.config.overrides import FLAGS
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.objectives import OBJECTIVES, Objective
from mpnet_ds.objectives.model_section import MPNetSection

WORDS = {int: "integer", float: "number", str: "text", bool: "true or false"}
BLANK_LINE = "\n\n"
BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}

TEMPLATE = Path(__file__).with_name("configuration_template.md")


def document() -> str:
    """The page, in Markdown."""
    recipe = Recipe.__pydantic_fields__
    sections = {name: recipe[name].annotation for name in ("data", "optimization", "run")} | {"model": MPNetSection}
    served = ((place or "top level", ", ".join(f"`{key}`" for key in keys)) for place, keys in SERVED.items() if keys)
    foreign = ((f"`{name}`", our_name(name)) for name in (*RECIPE_KEYS, *PROGRAM_FLAGS, *OTHERWISE))
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        names=_table(_rows({name: recipe[name] for name in ("name", "description")}, "")),
        **{f"{name}_text": _paragraph(kind.__doc__) for name, kind in sections.items()},
        **{name: _table(_rows(kind.__pydantic_fields__, f"{name}.")) for name, kind in sections.items()},
        objectives="\n\n".join(
            f"`{name}`: {_paragraph(kind.__doc__.partition(BLANK_LINE)[0])}" for name, kind in shipped_objectives().items()
        ),
        objective=_table(_rows(_fields_of_objectives(), "objective.")),
        served=_table(served, ("section", "keys")),
        optimizers=_table(
            ((kind, _names(keys)) for kind, keys in OPTIMIZERS.items()), ("optimizer.type", "optimizer.params")
        ),
        refused_optimizers=_table(REFUSED_OPTIMIZERS.items(), ("optimizer.type", "why")),
        harmless=_table(((f"`{key}`", why) for key, why in HARMLESS.items()), ("key", "why")),
        refused=_table(((f"`{key}`", why) for key, why in REFUSED.items()), ("key", "why")),
        foreign=_table(foreign, ("theirs", "here")),
    )


def _names(keys: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


def shipped_objectives() -> dict[str, type[Objective]]:
    """Objectives of the package, by name; those that a plugin has registered are not documented here."""
    return {name: kind for name, kind in OBJECTIVES.items() if kind.__module__.startswith("mpnet_ds.")}


def _fields_of_objectives() -> dict:
    """Fields of all objectives; those of one name are documented once."""
    return {name: field for kind in shipped_objectives().values() for name, field in kind.__pydantic_fields__.items()}


def _rows(fields: dict, place: str) -> Iterator[tuple[str, ...]]:
    """Key, type, default and text of each field, those of the sections inside included."""
    for name, field in fields.items():
        key, kind = f"{place}{name}", _without_none(field.annotation)
        if is_dataclass(kind):
            yield from _rows(kind.__pydantic_fields__, f"{key}.")
        else:
            flag = f" (`{FLAGS[key]}`)" if key in FLAGS else ""
            yield f"`{key}`{flag}", _describe_type(kind, field.metadata), _show(field.default), _paragraph(field.description)


def _table(rows: Iterable[tuple], head: tuple[str, ...] = ("key", "type", "default", "what it is")) -> str:
    """A table in Markdown."""
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)


def _paragraph(text: str | None) -> str:
    """A docstring on one line, in Markdown."""
    return " ".join((text or "").split()).replace("``", "`")


def _without_none(annotation: Any) -> Any:
    """``X`` of ``X | None``."""
    if get_origin(annotation) in (Union, UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _describe_type(kind: Any, metadata: Iterable) -> str:
    """A type and its bounds, in words."""
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        metadata = [*metadata, *more]
    metadata = [inner for outer in metadata for inner in getattr(outer, "metadata", [outer])]
    found = ((rule, name) for rule in metadata for name in BOUNDS if hasattr(rule, name))
    bounds = ", ".join(BOUNDS[name].format(_bound(rule, name)) for rule, name in found)
    if get_origin(kind) is Literal:
        word = ", ".join(f"`{value}`" for value in get_args(kind))
    elif get_origin(kind) is tuple:
        first, *others = get_args(kind)
        described = _describe_type(first, [])
        word = f"list of {described}" if others == [...] else f"[{described}] × {1 + len(others)}"
    else:
        word = WORDS[kind]
    return f"{word} {bounds}".strip()


def _bound(rule: Any, name: str) -> str:
    value = getattr(rule, name)
    return "2⁶³ - 1" if value == 2**63 - 1 else f"{value:g}"


def _show(default: Any) -> str:
    if default is PydanticUndefined:
        return "the file's name"  # the one key that has no default of its own
    return "–" if default is None else f"`{json.dumps(default)}`"


if __name__ == "__main__":
    print(document(), end="")
