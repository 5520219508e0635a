"""Values from JSON into dataclasses, with errors that name the key, what was found and what is accepted."""

import json
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mpnet_ds.errors import UserError, did_you_mean

Section = TypeVar("Section")
UNKNOWN_KEYS = ("unexpected_keyword_argument", "extra_forbidden")


def construct(cls: type[Section], content: Any, origin: str, where: str = "") -> Section:
    """A (pydantic) dataclass from what JSON gave, strictly: no text for a number, no 1 for true.

    Args:
        origin: names the source in errors.
        where: key of ``content`` in its file, such as ``model``; empty for the whole.
    Raises:
        UserError: one text for each unknown key and each value of another type or out of bounds.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise UserError(*(_describe(cls, found, origin, where) for found in error.errors(include_url=False))) from None


def _describe(cls: type, found: dict, origin: str, where: str) -> str:
    """One error of pydantic's, in words."""
    key = ".".join([*filter(None, [where]), *map(str, found["loc"])])
    if found["type"] in UNKNOWN_KEYS:
        *parents, last = found["loc"]
        return f"{origin}: unknown key '{key}'. {did_you_mean(str(last), _keys_of(cls, parents))}"
    if found["type"] == "value_error":  # raised by the section itself, which names its keys
        return f"{origin}: {found['msg'].removeprefix('Value error, ')}"
    value = json.dumps(found["input"], default=str)
    message = found["msg"].removeprefix("Input should be ")
    return f"{origin}: '{key}' is {value}; it must be {message}."


def _keys_of(cls: type, parents: list) -> list[str]:
    """Known keys of the section that ``parents`` lead to."""
    for name in parents:
        cls = get_type_hints(cls).get(name, cls)
    return [field.name for field in fields(cls)] if is_dataclass(cls) else []
