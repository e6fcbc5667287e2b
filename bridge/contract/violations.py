"""Describes a violation of a schema in one sentence with the expected and the actual value, and shortens long values.

The messages of the library jsonschema_rs begin with the complete value, which may be long. This module does not depend
on what the schemas describe.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice

import jsonschema_rs
import orjson
from jsonschema_rs import ValidationErrorKind as Kind

from bridge.contract.text import printable

VALUE = 60
"""The maximum length of a value in a sentence, in characters."""

NAMES = 8
"""The maximum number of names or options in a sentence."""

PARSED_BYTES = 64 * 1024
"""The maximum length of a string that is parsed as JSON.

If a string is longer than `PARSED_BYTES`, only its start and its end are examined, which takes little time.
"""

SAMPLED_BYTES = 64
"""The number of items that are examined to decide whether an array contains bytes."""

BYTES = "looks like the bytes of a Buffer: publish the JSON itself"
_LISTED = "an array of {}: publish each item as a separate event (jq -c '.[]' writes one item on each line)"


COMPARED_MEMBERS = 32
COMPARED_CHARACTERS = 100
"""The maximum number and length of the names that are compared with the name of a missing member."""
CLOSE = 0.75
"""The minimum difflib ratio at which a name counts as a misspelling, such as `shipId` for `shipTypeId`."""

_DATE_TIME = "2024-10-22T10:30:00Z"
_NO_DATE_TIMES = ("", "2024-10-22", "x", "1729593000")


def describe(error: jsonschema_rs.ValidationError, declared: Container[str] = ()) -> str:
    """Returns a printable text of limited length that describes a violation, with the expected and the actual value.

    `declared` contains the names of the members that the schema declares. A declared name is never reported as a
    misspelling of another name.
    """
    kind, value = error.kind, error.instance
    if isinstance(kind, Kind.FalseSchema) and error.schema_path[-1:] == ["additionalProperties"]:
        # If a schema declares no members, the library's error does not contain the name of the additional member.
        return f"no other members are allowed; got one with the value {shown(value)}"
    words = printable(_words(kind, value, is_whole=not error.instance_path))
    if isinstance(kind, Kind.Required) and isinstance(value, dict):
        misspelled = _misspelled(kind.property, value, declared)
        if misspelled is not None:
            words += f"; is {listed([misspelled], 1)} a misspelling of it?"
    return words


def _misspelled(missing: str, value: Mapping[str, object], declared: Container[str]) -> str | None:
    """Returns the member of an object that is probably a misspelling of the missing member."""
    if len(missing) > COMPARED_CHARACTERS:
        return None
    members: dict[str, str] = {}
    for name in islice(value, COMPARED_MEMBERS):
        if name not in declared and len(name) <= COMPARED_CHARACTERS:
            members.setdefault(_spelling(name), name)
    spelling = _spelling(missing)
    found = [spelling] if spelling in members else get_close_matches(spelling, members, 1, CLOSE)
    return members[found[0]] if found else None


def _spelling(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def shown(value: object) -> str:
    """Returns a scalar as shortened JSON, or the kind of an array or object, such as `an empty array`."""
    match value:
        case dict():
            return "an object" if value else "an empty object"
        case list():
            return f"an array of {_counted(len(value))}" if value else "an empty array"
        case str() if len(value) > 2 * VALUE:
            value = value[:VALUE] + value[-VALUE:]
    return _json(value, VALUE)


def _counted(items: int) -> str:
    return "1 item" if items == 1 else f"{items} items"


def listed(names: Iterable[str], count: int) -> str:
    """Returns names as a printable list such as `'a', 'b' and 'c'`.

    If there are many names, the list has only the first names, and the number of the other names.
    """
    return _joined([f"'{printable(name, VALUE)}'" for name in islice(names, NAMES + 1)], "and", count)


def holds_bytes(value: Sequence[object]) -> bool:
    """Whether an array contains bytes, as Node writes a Buffer. Examines only the start of a long array."""
    return len(value) > 1 and all(type(item) is int and 0 <= item <= 255 for item in value[:SAMPLED_BYTES])


def holds_json(text: str) -> bool:
    """Whether a string is an object or an array encoded as JSON.

    A long string is not parsed: it counts as JSON if its start and its end look like JSON.
    """
    text = text.strip()
    if text[:1] + text[-1:] not in ("{}", "[]", '""'):
        return False
    if len(text) > PARSED_BYTES:
        return text[0] != '"' or text[1:2] in ("{", "[", "\\")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return not isinstance(value, str) or holds_json(value)


def _words(kind: Kind, value: object, *, is_whole: bool = False) -> str:
    match kind:
        case Kind.Type(types):
            return _mistyped(value, types, is_whole=is_whole)
        case Kind.Required(name):
            return f"the member {name!r} is missing"
        case Kind.AdditionalProperties(names) | Kind.UnevaluatedProperties(names):
            if len(names) == 1:
                return f"the member {listed(names, 1)} is not allowed"
            return f"the members {listed(names, len(names))} are not allowed"
        case Kind.PropertyNames(error):
            # Only the library's message contains the name of the invalid member.
            return f"a member's name is not allowed: {printable(error.message, 2 * VALUE)}"
        case Kind.Constant(expected):
            return f"expected {_json(expected, 2 * VALUE)}; got {shown(value)}"
        case Kind.Format("date-time"):
            return f"{shown(value)} is not a valid date-time: write it as {_DATE_TIME}"
        case Kind.Pattern(pattern) if _is_of_date_times(pattern):
            return f"{shown(value)} is not a valid date-time: write it as {_DATE_TIME}"
        case Kind.Enum(options):
            words = [_json(option, VALUE) for option in options[: NAMES + 1]]
            return f"{shown(value)} is not one of {_joined(words, 'or', len(options))}"
    return f"{shown(value)} {_predicate(kind)}"


@lru_cache(64)
def _is_of_date_times(pattern: str) -> bool:
    """Whether a schema's pattern accepts only date-times. The function tests the pattern with a few sample strings."""
    takes = jsonschema_rs.Draft202012Validator({"pattern": pattern}).is_valid
    return takes(_DATE_TIME) and not any(map(takes, _NO_DATE_TIMES))


_PREDICATES: dict[type[Kind], str] = {
    Kind.Minimum: "is less than the minimum of {}",
    Kind.Maximum: "is greater than the maximum of {}",
    Kind.ExclusiveMinimum: "is not greater than {}",
    Kind.ExclusiveMaximum: "is not less than {}",
    Kind.MultipleOf: "is not a multiple of {}",
    Kind.MinLength: "is shorter than {} characters",
    Kind.MaxLength: "is longer than {} characters",
    Kind.MinItems: "has fewer than {} items",
    Kind.MaxItems: "has more than {} items",
    Kind.MinProperties: "has fewer than {} members",
    Kind.MaxProperties: "has more than {} members",
    Kind.Pattern: "does not match {}",
    Kind.Format: "is not a valid {}",
    Kind.UniqueItems: "has duplicates",
    Kind.FalseSchema: "is not allowed here",
    Kind.AdditionalItems: "has more items than are allowed",
    Kind.UnevaluatedItems: "has more items than are allowed",
    Kind.AnyOf: "matches none of the schemas in 'anyOf'",
    Kind.OneOfNotValid: "matches none of the schemas in 'oneOf'",
    Kind.OneOfMultipleValid: "matches more than one of the schemas in 'oneOf'",
}
"""The end of a sentence that begins with the invalid value. `{}` stands for the keyword's value in the schema."""


def _predicate(kind: Kind) -> str:
    predicate = _PREDICATES.get(type(kind), f"violates {kind.name!r} in the schema")
    if "{}" not in predicate:
        return predicate
    # The library's type stubs declare `__match_args__` for each kind of error, but not for the base class `Kind`.
    [name] = getattr(kind, "__match_args__")  # noqa: B009 - the type has no such attribute for mypy
    expected = getattr(kind, name)
    return (predicate.removesuffix("s") if expected == 1 else predicate).format(_json(expected, 3 * VALUE))


def _mistyped(value: object, types: Sequence[str], *, is_whole: bool) -> str:
    if isinstance(value, str) and not {"object", "array"}.isdisjoint(types) and holds_json(value):
        return "JSON in a JSON string: encode it only once"
    if not is_whole:
        return f"{shown(value)} is not of type {_joined([_json(name, VALUE) for name in types], 'or', len(types))}"
    if isinstance(value, list) and value and "object" in types:
        return BYTES if holds_bytes(value) else _LISTED.format(_counted(len(value)))
    actual = shown(value)
    match value:
        case "":
            actual = "an empty string"
        case str():
            actual = f"the string {actual}"
        case bool():
            actual = f"the boolean {actual}"
        case int() | float():
            actual = f"the number {actual}"
    return f"expected {_joined([_ARTICLES[name] for name in types], 'or', len(types))}; got {actual}"


_ARTICLES = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "a boolean",
    "null": "null",
}


def _json(value: object, limit: int) -> str:
    return printable(json.dumps(value, ensure_ascii=False, default=str), limit)


def _joined(words: Sequence[str], conjunction: str, total: int) -> str:
    """Joins words into a list for a sentence, such as `a, b or c`.

    `total` is the number of all words, including words that are not in `words`. `words` may contain only the first few
    words.
    """
    if total > NAMES:
        return f"{', '.join(words[:NAMES])} {conjunction} {total - NAMES} more"
    return f" {conjunction} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
