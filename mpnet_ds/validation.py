"""Values from JSON into dataclasses, with errors that name the key, what was found and what is accepted.

Functions called ``examine…`` return what is valid together with texts on everything that is not. What is valid can be
checked further: reading one of the other values raises a ``UserError`` without a text, which ends a check that would only
repeat what was said. A value that is not given is unknown too where an unknown key may have meant it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mpnet_ds.errors import UNKNOWN, UserError, collecting, did_you_mean, nearest

SECTION = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
"""How pydantic treats the dataclass of a section: no unknown keys, no text for a number and no 1 for true, also from Python,
where it raises its ``ValidationError``; a field's documentation is the docstring below it."""

Section = TypeVar("Section")
UNKNOWN_KEYS = ("unexpected_keyword_argument", "extra_forbidden")
MISSING_VALUE = ("missing", "missing_argument")
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


class SoundPart(dict):
    """The valid values of a JSON object; asking for one of the others by its key raises a ``UserError`` without a text.

    ``wrong``: keys of invalid values. Where ``is_complete`` is false all that are not given are wrong.
    """

    def __init__(self, *values, **more):
        super().__init__(*values, **more)
        self.wrong: set[str] = set()
        self.is_complete = True

    def doubt(self, unknown: str, missing: Iterable[str]) -> None:
        """Take for wrong what an unknown key may have meant: one of the ``missing`` keys, or all."""
        meant = nearest(unknown, missing)
        self.is_complete = self.is_complete and meant is not None
        self.wrong.add(meant)

    def _require(self, key: str) -> None:
        if key in self.wrong or not (self.is_complete or super().__contains__(key)):
            raise UserError

    def __contains__(self, key) -> bool:
        """Whether the key is given."""
        self._require(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        """Return the value at a key."""
        self._require(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        """Return the value at a key, by default another."""
        self._require(key)
        return super().get(key, default)

    def setdefault(self, key, default=None):
        """Return the value at a key, set to another before if there is none."""
        self._require(key)
        return super().setdefault(key, default)

    def pop(self, key, default=None):
        """Return the value at a key, by default another, and take it out."""
        self._require(key)
        return super().pop(key, default)


def read_json_object(path: Path) -> dict:
    """Content of a file that holds a JSON object; ``UserError`` if it holds something else, or gives a key twice."""
    content, findings = examine_json_object(path)
    if findings:
        raise UserError(*findings)
    return content


def examine_json_object(path: Path) -> tuple[dict | None, list[str]]:
    """Content of a file, None if it holds no JSON object, and what is wrong, keys that are given twice among it."""
    findings = []
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=partial(_object_of, findings))
    except (ValueError, RecursionError) as error:  # editors on Windows begin files with a mark, which utf-8-sig takes off
        return None, [f"{path} is not JSON: {error}."]
    if not isinstance(content, dict):
        return None, [f"{path} must hold a JSON object."]
    return content, [f"{path}: {text}" for text in findings]


def parse_json(text: str) -> Any:
    """Value of a JSON text; ``UserError`` where an object gives a key twice, of which Python would take the last."""
    findings = []
    value = json.loads(text, object_pairs_hook=partial(_object_of, findings))
    if findings:
        raise UserError(*findings)
    return value


def _object_of(findings: list[str], pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    for key in content if len(content) < len(pairs) else ():
        given = [shorten(json.dumps(value, ensure_ascii=False)) for name, value in pairs if name == key]
        if len(given) > 1:
            findings.append(f"'{key}' is given {len(given)} times in one object ({', '.join(given)}): keep one.")
    return content


def examine(
    cls: type[Section],
    content: Any,
    origin: str | Origin,
    where: str = "",
    is_complete: bool = True,
    made: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Section, list[str]]:
    """The valid part of a (pydantic) dataclass from what JSON gave, strictly: no text for a number, no 1 for true.

    Beside it a text for each unknown key, each value of another type or out of bounds, and each contradiction.

    Args:
        origin: where ``content`` comes from; a file's name is enough.
        where: key of ``content`` in its file, such as ``model``; empty for the whole.
        is_complete: whether a value that ``content`` lacks has its default, rather than being unknown.
        made: values of fields that ``content`` does not give, by name; ``UNKNOWN`` for one that was wrong.
    """
    origin = Origin(origin) if isinstance(origin, str) else origin
    found = []
    try:
        section = _validated(cls, content)
        if is_complete and UNKNOWN not in made.values():
            return (replace(section, **made) if made else section), []
    except ValidationError as error:
        found = [one for one in error.errors(include_url=False) if not _is_contradiction(cls, one)]
    found = [one for one in found if is_complete or one["type"] not in MISSING_VALUE]
    findings = [f"{origin.of(_join(where, *one['loc']))}: {_describe(cls, one, where, origin)}" for one in found]
    wrong = {tuple(one["loc"]) for one in found}
    keys = [*keys_of(cls, where), *origin.keys]
    for place in (one["loc"] for one in found if one["type"] in UNKNOWN_KEYS):
        meant = None if origin.explain(str(place[-1])) else _meant(_join(where, *place), keys)
        is_complete = is_complete and meant is not None
        path = tuple((meant or "").removeprefix(f"{where}.").split("."))
        if not _is_given(content, path):
            wrong.add(path)
    section, contradictions = _valid_part(cls, content, wrong, is_complete, made)
    findings += (f"{origin.of(_join(where, *place))}: {text}" for place, text in contradictions)
    return section, list(dict.fromkeys(findings))


def _is_given(content: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True


def _is_contradiction(cls: type, found: dict) -> bool:
    """Whether an error of pydantic's is one that a section raises about several of its values."""
    for name in found["loc"]:
        cls = get_type_hints(cls).get(name) if is_dataclass(cls) else None
    return found["type"] == "value_error" and is_dataclass(cls)


def _valid_part(
    cls: type, content: Any, wrong: set[tuple], is_complete: bool, made: Mapping[str, Any]
) -> tuple[Any, list[tuple[tuple, str]]]:
    """An object of ``cls`` with the valid values of ``content``, and contradictions between them, each with its place.

    ``wrong``: paths of the other values.
    """
    if () in wrong or not isinstance(content, dict):
        return UNKNOWN, []
    hints, values, unknown, contradictions = get_type_hints(cls, include_extras=True), dict(made), {}, []
    for one in fields(cls):
        name, kind = one.name, hints[one.name]
        inside = {path[1:] for path in wrong if path[0] == name}
        if name in content and is_dataclass(kind):
            values[name], more = _valid_part(kind, content[name], inside, is_complete, {})
            contradictions += (((name, *place), text) for place, text in more)
        elif name in content and not inside:
            values[name] = _validated(kind, content[name])
        elif name not in made and (inside or not is_complete):
            unknown[name] = property(lambda section: UNKNOWN.value)
        elif name not in made and one.default_factory is not MISSING:
            values[name] = one.default_factory()
    part = object.__new__(type(cls.__name__, (cls,), unknown))
    part.__dict__.update(values)
    if hasattr(cls, "__post_init__"):
        with collecting(texts := []):
            cls.__post_init__(part)
        contradictions += (((), text) for text in texts)
    return part, contradictions


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
        return f"unknown key '{key}'. {origin.explain(name) or _advise(key, [*keys_of(cls, where), *origin.keys])}"
    if found["type"] == "value_error":  # raised by the section itself, which names its keys
        return found["msg"].removeprefix("Value error, ")
    if found["type"] in MISSING_VALUE:
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


def _meant(unknown: str, keys: Sequence[str]) -> str | None:
    """What an unknown key may have meant: one of the same name in another section, or one beside it that looks like it."""
    section, _, name = unknown.rpartition(".")
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name]
    near = nearest(name, _names_in(section, keys))
    return elsewhere[0] if elsewhere else near and _join(section, near)


def _advise(unknown: str, keys: Sequence[str]) -> str:
    section, _, name = unknown.rpartition(".")
    meant = _meant(unknown, keys)
    if meant is None:
        return did_you_mean(name, _names_in(section, keys))
    return f"Did you mean '{meant.rpartition('.')[2] if meant.rpartition('.')[0] == section else meant}'?"


def _names_in(section: str, keys: Sequence[str]) -> list[str]:
    return [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == section]
