"""The page that documents every key of a run, made from the code: python -m mpnet_ds.config.document > docs/configuration.md

A recipe key's type, bounds and default are those of its field; its text is the docstring below it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from mpnet_ds.config.deepspeed_keys import HARMLESS, REFUSED, SERVED
from mpnet_ds.config.foreign_names import OTHERWISE, PROGRAM_FLAGS, RECIPE_KEYS, our_name
from mpnet_ds.config.overrides import FLAGS
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.objectives import OBJECTIVES, Objective

WORDS = {int: "integer", float: "number", str: "text", bool: "true or false"}
BLANK_LINE = "\n\n"
BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}

INTRODUCTION = """\
<!-- Made by: python -m mpnet_ds.config.document > docs/configuration.md -->
# Configuration

Two JSON files say what a run does. The *recipe* (`--recipe NAME|FILE`) says what is trained: model, objective, data,
optimisation. *DeepSpeed's JSON* (`--deepspeed_config NAME|FILE`) says how the engine does it: ZeRO stage, precision,
offloading; where it says `"auto"`, the recipe's value goes. Shipped files go by their names: recipes are in
`mpnet_ds/recipes`, DeepSpeed's in `ds_configs`.

Any value of a recipe can be given on the command line too, and then takes the file's place:

```
deepspeed launch/pretrain.py --deepspeed_config zero2 --data my-data \\
    --set optimization.weight_decay=0.1 model.hidden_size=512 objective.masking.whole_word=false
```

A value is read as JSON where it can be (`0.1`, `true`, `[0.9, 0.95]`), else as text. Some keys have a flag of their own,
which means the same. `--dry_run` checks everything and prints what a run would do.

## Recipe

What a recipe leaves out has the default below. Unknown keys and values out of bounds are refused, all at once.
"""
OBJECTIVE = """
### `objective`

What is corrupted and predicted: a name, or an object with `name` and the keys of that objective. `--objective NAME` replaces
the section. A module of `run.plugins` may register others.
"""
DEEPSPEED = """
## DeepSpeed's JSON

The file has DeepSpeed's own schema ([documentation](https://www.deepspeed.ai/docs/config-json/)). Keys of the top level that
begin with `_` are remarks. Every key is either served, or taken without effect because that misleads nobody, or refused.

`"auto"` means: batch sizes, `gradient_clipping` and the optimizer's `lr`, `betas`, `eps` and `weight_decay` are the
recipe's; `bf16.enabled` and `fp16.enabled` follow `optimization.precision`; `reduce_bucket_size` is hidden²,
`stage3_prefetch_bucket_size` 0.9 × hidden² and `stage3_param_persistence_threshold` 10 × hidden, as in transformers.

### Served
"""
HARMLESS_KEYS = """
### Taken without effect
"""
REFUSED_KEYS = """
### Refused

Unless switched off (`false`, `null` or `"enabled": false`), in which case the key is left out.
"""
FOREIGN = """
## Names of other programs

These are answered with ours, and never taken.
"""


def document() -> str:
    """The page, in Markdown."""
    sections = Recipe.__pydantic_fields__
    parts = [INTRODUCTION, *_table(_rows({name: sections[name] for name in ("name", "description")}, ""))]
    for name in ("model", "data", "optimization", "run"):
        kind = sections[name].annotation
        parts += [
            "",
            f"### `{name}`",
            "",
            _paragraph(kind.__doc__),
            "",
            *_table(_rows(kind.__pydantic_fields__, f"{name}.")),
        ]
    parts.append(OBJECTIVE)
    for name, kind in shipped_objectives().items():
        parts += [f"`{name}`: {_paragraph(kind.__doc__.partition(BLANK_LINE)[0])}", ""]
    parts += _table(_rows(_fields_of_objectives(), "objective."))
    served = (
        (place or "top level", ", ".join(f"`{key}`" for key in keys.split())) for place, keys in SERVED.items() if keys
    )
    parts += [DEEPSPEED, *_table(served, ("section", "keys"))]
    parts += [HARMLESS_KEYS, *_table(((f"`{key}`", why) for key, why in HARMLESS.items()), ("key", "why"))]
    parts += [REFUSED_KEYS, *_table(((f"`{key}`", why) for key, why in REFUSED.items()), ("key", "why"))]
    names = (*RECIPE_KEYS, *PROGRAM_FLAGS, *OTHERWISE)
    parts += [FOREIGN, *_table(((f"`{name}`", our_name(name)) for name in names), ("theirs", "here"))]
    return "\n".join(parts) + "\n"


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


def _table(rows: Iterable[tuple], head: tuple[str, ...] = ("key", "type", "default", "what it is")) -> list[str]:
    """Lines of a table in Markdown."""
    cells = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]


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
