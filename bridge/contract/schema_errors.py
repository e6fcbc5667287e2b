"""Explains to the author of a schema file why the file can't be used.

The messages of the library jsonschema_rs refer to the meta-schema instead of the author's file.
"""

import re
from collections.abc import Mapping

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind as Kind

from bridge.contract.similar import similar
from bridge.contract.text import json_pointer, printable

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

FORMATS = (
    *("date", "date-time", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
    *("uri", "uri-reference", "uri-template", "iri", "iri-reference", "uuid"),
    *("json-pointer", "relative-json-pointer", "regex"),
)
"""The formats of JSON Schema, draft 2020-12. The library validates all these formats."""

_ELSEWHERE = {
    "bool": "boolean",
    "decimal": "number",
    "dict": "object",
    "double": "number",
    "float": "number",
    "int": "integer",
    "list": "array",
    "long": "integer",
    "map": "object",
    "none": "null",
    "str": "string",
    "text": "string",
}
"""The names of JSON types in programming languages, each with its name in JSON Schema."""

_OF_A_TYPE = ["properties", "type", "anyOf"]
"""The part of the meta-schema that defines the values of `type`."""

_ABSENT = re.compile(r"^Resource '(.*?)' is not present in a registry|^Failed to resolve '(.*?)' against '", re.DOTALL)


def describe_error(error: Exception, ids: Mapping[str, str]) -> str:
    """Returns the problem with a schema file, and where in the file the problem is.

    `ids` maps the name of each schema file, without .json, to the file's `$id`.
    """
    message = str(getattr(error, "message", error))
    if (absent := absent_id(message)) is not None:
        return f"no schema file has the $id {printable(absent)!r}; {_which_id(absent, ids)}"
    if not isinstance(error, jsonschema_rs.ValidationError):
        return printable(message)
    words = message
    if list(error.schema_path)[-3:] == _OF_A_TYPE:
        words = _type_problem(error.instance)
    elif isinstance(error.kind, Kind.Custom) and message.startswith("Unknown format"):
        words = _format_problem(str(error.instance))
    place = json_pointer(list(error.instance_path)) or "the schema"
    return printable(f"{place}: {words}")


def absent_id(message: str) -> str | None:
    """Returns the `$id` in a `$ref` if no schema has this `$id`, or None if the library's message has another cause."""
    found = _ABSENT.match(message)
    return None if found is None else found[1] or found[2]


def _which_id(absent: str, ids: Mapping[str, str]) -> str:
    """Returns a hint about a `$ref`. In a `$ref`, authors sometimes write a file's name instead of its `$id`."""
    by_name = {f"{name}.json": schema_id for name, schema_id in ids.items()} | dict(ids)
    by_name |= {schema_id: schema_id for schema_id in ids.values()}
    close = similar(absent, by_name) or similar(absent.rpartition("/")[2], by_name)
    if close is None:
        return "$ref takes the $id of another file, such as urn:edk-bridge:schema:killmail"
    return f"did you mean {printable(by_name[close])}?"


def _type_problem(value: object) -> str:
    if not isinstance(value, list):
        return _unknown_type(value)
    unknown = [each for each in value if each not in TYPES]
    if unknown:
        return _unknown_type(unknown[0])
    return "a list of types must name each type once" if value else "a list of types must not be empty"


def _unknown_type(value: object) -> str:
    known = f"the types are {', '.join(TYPES)}"
    if not isinstance(value, str):
        return f"type must be the name of a type or a list of names; {known}"
    close = _ELSEWHERE.get(value.lower()) or similar(value, TYPES)
    hint = f"did you mean {close}? " if close else ""
    return f"{printable(value, 80)!r} is not a type; {hint}{known}"


def _format_problem(value: str) -> str:
    close = similar(value, FORMATS)
    hint = f"did you mean {close}?" if close else f"the formats are {', '.join(FORMATS)}"
    return f"{printable(value, 80)!r} is not a format; {hint}"
