"""Compares two versions of the schema files, and finds the changes that break publishers or clients.

Who is affected depends on the role of a file:

- The data of an update comes from publishers, and goes to clients unchanged. Its schema must neither narrow nor widen.
- Publishers send a source format, and clients never receive it. Its schema must not narrow.
- The bridge writes envelopes, own messages and responses. Their schemas must not widen.

A schema narrows if it refuses a value that it accepted. It widens if a client can receive a value for which its code
has no place: a type that it does not expect, or a missing member. The following changes break nobody, because the
contract announces them:

- a new optional member, even if a publisher has already sent another member of this name
- a wider bound (`minimum`, `maxLength`, `pattern` and others), or a new member where `additionalProperties` was false

The module compares each keyword. It can't judge changes of conditions, such as `anyOf` and `not`, and of patterns: it
reports them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
import orjson

from bridge.contract.catalog import schema_id
from bridge.contract.keywords import PLAIN, Steps, subschemas
from bridge.contract.text import json_pointer, unescape

Files = Mapping[str, Mapping[str, Any]]
"""The content of each schema file, by the file's name without its suffix."""


class Broken(StrEnum):
    """Who is affected by a change."""

    PUBLISHERS = "publishers"
    CLIENTS = "clients"


AFFECTED = {
    None: tuple(Broken),
    "definitions": tuple(Broken),
    "form": (Broken.PUBLISHERS,),
    "envelope": (Broken.CLIENTS,),
    "message": (Broken.CLIENTS,),
    "response": (Broken.CLIENTS,),
}
"""Who is affected by the changes of a file, by the file's role (`x-role`)."""

IDENTIFYING = ("$id", "x-role", "x-form-of", "x-identity")
"""The keywords that give a file its meaning."""

_BOUNDS: Mapping[str, tuple[str | None, int]] = {
    "minimum": ("exclusiveMinimum", 1),
    "maximum": ("exclusiveMaximum", -1),
    **dict.fromkeys(("minLength", "minItems", "minProperties"), (None, 1)),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), (None, -1)),
}
"""The keywords of bounds. Each has the keyword that excludes the bound itself, and the sign of a narrower bound."""

_CONDITIONS = (
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependentRequired"),
    *("patternProperties", "propertyNames", "unevaluatedProperties", "contains", "minContains", "maxContains"),
    *("prefixItems", "unevaluatedItems", "contentEncoding", "contentMediaType", "contentSchema"),
)
"""The keywords whose changes this module can't judge."""

_ANNOTATIONS = frozenset(
    ("title", "description", "$comment", "default", "deprecated", "readOnly", "writeOnly", "examples")
)

_ALL_TYPES = frozenset({"null", "boolean", "object", "array", "string", "integer", "fraction"})
"""All types of values. In JSON Schema, the type `number` consists of integers and fractions."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a schema file that breaks publishers or clients."""

    file: str
    pointer: str
    """A JSON Pointer into the schema file."""
    detail: str
    breaks: Broken

    def __str__(self) -> str:
        where = f"{self.file}.json: {self.pointer}" if self.pointer else f"{self.file}.json"
        return f"{where}: {self.detail} (breaks {self.breaks})"


def compare(old: Files, new: Files) -> Iterator[Change]:
    """Yields the changes from the old to the new files that break publishers or clients.

    Raises LookupError if a reference has no target.
    """
    for name, before in old.items():
        role = before.get("x-role")
        after = new.get(name)
        for breaks in AFFECTED[role]:
            if after is None:
                yield Change(name, "", "the file is gone", breaks)
                continue
            for keyword in IDENTIFYING:
                was, now = before.get(keyword), after.get(keyword)
                if was != now:
                    detail = f"{keyword} was {_shown(was)}, and is now {_shown(now)}"
                    yield Change(name, json_pointer([keyword]), detail, breaks)
            comparison = _COMPARISONS[breaks](old, new, is_update=role is None)
            for steps, detail in comparison.compare(_Part(before, name), _Part(after, name), ()):
                yield Change(name, json_pointer(list(steps)), detail, breaks)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a schema file."""

    schema: Any
    """A JSON Schema: an object, or a boolean."""
    file: str
    """The name of the file, to which references without an `$id` refer."""

    @property
    def accepts_nothing(self) -> bool:
        return self.schema is False or self.schema == {"not": {}}

    @property
    def members(self) -> Mapping[str, Any]:
        members: Mapping[str, Any] = self.get("properties", {})
        return members

    @property
    def required(self) -> frozenset[str]:
        return frozenset(self.get("required", ()))

    def get(self, keyword: str, default: Any) -> Any:
        """Returns the value of a keyword. A boolean has no keywords."""
        return self.schema.get(keyword, default) if isinstance(self.schema, dict) else default

    def below(self, schema: Any) -> "_Part":
        """Returns a part of this part."""
        return _Part(schema, self.file)


Finding = tuple[Steps, str]


class _Comparison(ABC):
    """Compares parts of two versions of the schema files, for one side: publishers or clients."""

    def __init__(self, old: Files, new: Files, *, is_update: bool) -> None:
        self._old = old
        self._new = new
        self._is_update = is_update
        self._seen: set[tuple[int, int]] = set()

    def compare(self, old: _Part, new: _Part, steps: Steps) -> Iterator[Finding]:
        """Yields the changes that break this side. Two parts are compared only once, so that recursive schemas end."""
        pair = (id(old.schema), id(new.schema))
        if old.schema is new.schema is True or pair in self._seen:
            return
        self._seen.add(pair)
        old, new = _resolved(old, self._old), _resolved(new, self._new)
        if old.accepts_nothing or new.accepts_nothing:
            if old.accepts_nothing != new.accepts_nothing:
                yield from ((steps, detail) for detail in self._nothing(old))
            return
        yield from ((steps, detail) for detail in self._keywords(old, new))
        for keyword in _CONDITIONS:
            if _condition(old, keyword, self._old) != _condition(new, keyword, self._new):
                yield (*steps, keyword), "it has changed, and this check can't judge whether it is narrower or wider"
        for name in sorted({*old.members, *new.members}):
            yield from self._member(name, old, new, (*steps, "properties", name))
        yield from self._others(old, new, (*steps, "additionalProperties"))
        was, now = (each.below(each.get("items", True)) for each in (old, new))
        yield from self.compare(was, now, (*steps, "items"))

    @abstractmethod
    def _nothing(self, old: _Part) -> Iterator[str]:
        """Yields what breaks this side if only one of the parts accepts nothing."""

    @abstractmethod
    def _keywords(self, old: _Part, new: _Part) -> Iterator[str]:
        """Yields the changes of keywords that contain no schemas."""

    @abstractmethod
    def _member(self, name: str, old: _Part, new: _Part, steps: Steps) -> Iterator[Finding]:
        """Yields the changes of a member."""

    @abstractmethod
    def _others(self, old: _Part, new: _Part, steps: Steps) -> Iterator[Finding]:
        """Yields the changes of undeclared members."""


class _Narrowing(_Comparison):
    """Finds values that the old schema accepts, and the new schema does not."""

    def _nothing(self, old: _Part) -> Iterator[str]:
        if not old.accepts_nothing:
            yield "it accepts no value any more"

    def _keywords(self, old: _Part, new: _Part) -> Iterator[str]:
        if (values := _values(old)) is not None:
            keywords = {keyword: new.schema[keyword] for keyword in PLAIN if new.get(keyword, None) is not None}
            lost = [value for value in values if not jsonschema_rs.is_valid(keywords, value, validate_formats=True)]
            if lost:
                yield f"it no longer accepts {' or '.join(map(_shown, lost))}"
            return
        if missing := _types(old) - _types(new):
            yield f"it no longer accepts {_type_words(missing)}"
        if (values := _values(new)) is not None:
            yield f"it accepts only {_shown(values)} now"
        for keyword, (exclusive, sign) in _BOUNDS.items():
            was, now = (_bound(each, keyword, exclusive, sign) for each in (old, new))
            if now > was:
                yield f"{keyword} is narrower"
        for keyword in ("pattern", "format"):
            if (now := new.get(keyword, None)) is not None and now != old.get(keyword, None):
                yield f"the {keyword} is not the same: it may refuse values that were accepted"
        was, now = (each.get("multipleOf", None) for each in (old, new))
        if now is not None and (was is None or was % now != 0):
            yield "multipleOf is narrower"
        if new.get("uniqueItems", False) and not old.get("uniqueItems", False):
            yield "the items must be unique now"
        for name in sorted(new.required - old.required):
            yield f"the member {name!r} is required now"

    def _member(self, name: str, old: _Part, new: _Part, steps: Steps) -> Iterator[Finding]:
        others = old.get("additionalProperties", True)
        if name not in old.members and others is True and self._is_update:
            return
        was = old.members.get(name, others)
        now = new.members.get(name, new.get("additionalProperties", True))
        yield from self.compare(old.below(was), new.below(now), steps)

    def _others(self, old: _Part, new: _Part, steps: Steps) -> Iterator[Finding]:
        was, now = (each.below(each.get("additionalProperties", True)) for each in (old, new))
        yield from self.compare(was, now, steps)


class _Widening(_Comparison):
    """Finds values that a client can receive under the new schema, and that its code may not expect."""

    def _nothing(self, old: _Part) -> Iterator[str]:
        if old.accepts_nothing:
            yield "it can have a value now"

    def _keywords(self, old: _Part, new: _Part) -> Iterator[str]:
        if gained := _types(new) - _types(old):
            yield f"it can be {_type_words(gained)} now"
        were, are = _values(old), _values(new)
        if were is not None and not (are is not None and set(map(_shown, are)) <= set(map(_shown, were))):
            yield f"it can have other values than {_shown(were)} now"
        if (was := old.get("format", None)) is not None and was != new.get("format", None):
            yield f"it no longer has the format {was}"
        for name in sorted(old.required - new.required):
            yield f"the member {name!r} is no longer required"

    def _member(self, name: str, old: _Part, new: _Part, steps: Steps) -> Iterator[Finding]:
        if name not in new.members:
            yield steps, "the member is gone"
        elif name in old.members:
            yield from self.compare(old.below(old.members[name]), new.below(new.members[name]), steps)

    def _others(self, old: _Part, new: _Part, steps: Steps) -> Iterator[Finding]:
        was, now = (each.below(each.get("additionalProperties", True)) for each in (old, new))
        # New members may be added, so a client ignores undeclared members, unless they are values of a map.
        if isinstance(was.schema, dict) and not was.accepts_nothing:
            yield from self.compare(was, now, steps)


_COMPARISONS: Mapping[Broken, type[_Comparison]] = {Broken.PUBLISHERS: _Narrowing, Broken.CLIENTS: _Widening}


# References


def _resolved(part: _Part, files: Files) -> _Part:
    """Replaces a reference with its target, together with the keywords next to the reference."""
    while isinstance(part.schema, dict) and "$ref" in part.schema:
        beside = {keyword: value for keyword, value in part.schema.items() if keyword not in {"$ref", *_ANNOTATIONS}}
        target = _target(part.schema["$ref"], part.file, files)
        if not beside:
            part = target
        elif isinstance(target.schema, dict) and beside.keys().isdisjoint(target.schema) and target.file == part.file:
            part = target.below({**target.schema, **beside})
        else:
            return part.below({"allOf": [{"$ref": part.schema["$ref"]}, beside]})
    return part


def _target(reference: str, file: str, files: Files) -> _Part:
    uri, _, fragment = reference.partition("#")
    owners = {schema.get("$id", schema_id(name)): name for name, schema in files.items()}
    file = owners[uri] if uri else file
    schema: Any = files[file]
    for step in unquote(fragment).split("/")[1:]:
        schema = schema[int(step)] if isinstance(schema, list) else schema[unescape(step)]
    return _Part(schema, file)


def _condition(part: _Part, keyword: str, files: Files) -> Any:
    value = part.get(keyword, None)
    return None if value is None else _meaning(part.below({keyword: value}), files)


def _meaning(part: _Part, files: Files, above: tuple[int, ...] = ()) -> Any:
    """Returns a value that is equal for schemas that differ only in annotations and references."""
    if id(part.schema) in above:
        return f"recursion to {above.index(id(part.schema))}"
    above = (*above, id(part.schema))
    part = _resolved(part, files)
    if not isinstance(part.schema, dict):
        return part.schema
    plain = {keyword: value for keyword, value in part.schema.items() if keyword in PLAIN - _ANNOTATIONS}
    parts = {steps: _meaning(part.below(inner), files, above) for steps, inner in subschemas(part.schema)}
    return plain, parts


# Types, values and bounds


def _types(part: _Part) -> frozenset[str]:
    named = part.get("type", None)
    types = _ALL_TYPES
    if named is not None:
        types = frozenset[str]().union(*map(_parts_of_type, [named] if isinstance(named, str) else named))
    values = _values(part)
    return types if values is None else types & frozenset(map(_type_of, values))


def _parts_of_type(name: str) -> frozenset[str]:
    return frozenset({"integer", "fraction"}) if name == "number" else frozenset({name})


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "fraction"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object" if isinstance(value, dict) else "null"


def _type_words(types: Iterable[str]) -> str:
    names = set(types)
    if {"integer", "fraction"} <= names:
        names = names - {"integer", "fraction"} | {"number"}
    return " or ".join(sorted("a number with a fraction" if name == "fraction" else name for name in names))


def _values(part: _Part) -> list[Any] | None:
    """Returns the only values that a schema accepts, or None if it does not list them."""
    if "const" in (part.schema if isinstance(part.schema, dict) else ()):
        return [part.schema["const"]]
    values: list[Any] | None = part.get("enum", None)
    return values


def _bound(part: _Part, keyword: str, exclusive: str | None, sign: int) -> tuple[float, bool]:
    """Returns the bound as a tuple that is larger if the bound is narrower."""
    inclusive = part.get(keyword, None)
    bounds = [(-math.inf, False)] if inclusive is None else [(sign * inclusive, False)]
    if exclusive is not None and (excluded := part.get(exclusive, None)) is not None:
        bounds.append((sign * excluded, True))
    return max(bounds)


def _shown(value: object) -> str:
    return "absent" if value is None else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
