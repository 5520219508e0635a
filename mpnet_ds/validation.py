"""Values from JSON into dataclasses, with errors that name the key, what was found and what is accepted."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mpnet_ds.errors import UserError, did_you_mean

SECTION = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
"""How pydantic treats the dataclass of a section: no unknown keys, no text for a number and no 1 for true, also from Python,
where it raises its ``ValidationError``; a field's documentation is the docstring below it."""

Section = TypeVar("Section")
UNKNOWN_KEYS = ("unexpected_keyword_argument", "extra_forbidden")
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
"""What a value must be, by pydantic's name of the error."""


@dataclass(frozen=True)
class Origin:
    """Where values come from, for messages."""

    name: str
    """The file."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Names of other sources, by the dotted key whose value they gave: ``{"run.seed": "--seed"}``."""
    keys: tuple[str, ...] = ()
    """Dotted keys of the file beyond the section, which an unknown key may have meant."""
    explain: Callable[[str], str | None] = lambda name: None
    """What to write instead of an unknown key, by its name; None where that is not known."""

    def of(self, key: str) -> str:
        """The source of the value at a key: of the value itself, of one inside it or of one around it."""
        related = (other for other in self.others if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}."))
        return next((self.others[other] for other in related), self.name)


def read_json_object(path: Path) -> dict:
    """Content of a file that holds a JSON object; ``UserError`` if it holds something else, or gives a key twice."""
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin files with a mark
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return content


def parse_json(text: str) -> Any:
    """Value of a JSON text; ``UserError`` where an object gives a key twice, of which Python would take the last."""
    return json.loads(text, object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    for key in content:
        given = [shorten(json.dumps(value, ensure_ascii=False)) for name, value in pairs if name == key]
        if len(given) > 1:
            raise UserError(f"'{key}' is given {len(given)} times in one object ({', '.join(given)}): keep one.")
    return content


def construct(cls: type[Section], content: Any, origin: str | Origin, where: str = "") -> Section:
    """A (pydantic) dataclass from what JSON gave, strictly: no text for a number, no 1 for true.

    Args:
        origin: where ``content`` comes from; a file's name is enough.
        where: key of ``content`` in its file, such as ``model``; empty for the whole.
    Raises:
        UserError: one text for each unknown key and each value of another type or out of bounds.
    """
    origin = Origin(origin) if isinstance(origin, str) else origin
    try:
        return _validated(cls, content)
    except ValidationError as error:
        texts = [
            f"{origin.of(_join(where, *found['loc']))}: {_describe(cls, found, where, origin)}"
            for found in error.errors(include_url=False)
        ]
        raise UserError(*dict.fromkeys(texts)) from None


def checked(kind: Any, value: Any, key: str) -> Any:
    """One value of JSON as a kind of value: a type, perhaps with bounds; ``UserError`` that names the key for others."""
    try:
        return _validated(kind, value)
    except ValidationError as error:
        texts = (_describe(kind, found, key, Origin(key)) for found in error.errors(include_url=False))
        raise UserError(*texts) from None


def _validated(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)


def keys_of(cls: type, where: str = "") -> Iterator[str]:
    """All keys of a section and of the sections inside it, dotted, as they follow each other."""
    hints = get_type_hints(cls)
    for one in fields(cls):
        yield _join(where, one.name)
        if is_dataclass(hints[one.name]):
            yield from keys_of(hints[one.name], _join(where, one.name))


def _join(*keys) -> str:
    return ".".join(map(str, filter(lambda key: key != "", keys)))


def _describe(cls: type, found: dict, where: str, origin: Origin) -> str:
    """One error of pydantic's, in words, without its source."""
    key = _join(where, *found["loc"])
    if found["type"] in UNKNOWN_KEYS:
        name = str(found["loc"][-1])
        return f"unknown key '{key}'. {origin.explain(name) or _nearest(key, [*keys_of(cls, where), *origin.keys])}"
    if found["type"] == "value_error":  # raised by the section itself, which names its keys
        return found["msg"].removeprefix("Value error, ")
    if found["type"] in ("missing", "missing_argument"):
        return f"{key} is missing."
    value = shorten(json.dumps(found["input"], ensure_ascii=False, default=str))
    context = {name: _as_whole(bound) for name, bound in found.get("ctx", {}).items()}
    if found["type"] == "literal_error":
        choices = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        return f"unknown {key} {value}. {did_you_mean(str(found['input']), choices)}"
    expected = EXPECTED.get(found["type"], found["msg"].removeprefix("Input should be ")).format(**context)
    return f"{key} is {value}; it must be {expected}."


def shorten(text: str, width: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _as_whole(bound):
    """A bound such as 0.0 as a person writes it: 0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _nearest(unknown: str, keys: list[str]) -> str:
    """What an unknown key may have meant: one of the same name in another section, or one beside it that looks like it."""
    section, _, name = unknown.rpartition(".")
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"Did you mean '{elsewhere[0]}'?"
    return did_you_mean(name, [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == section])
