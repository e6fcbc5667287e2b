"""Explains to its author why a schema file can't be used. The library's own texts are about the meta-schema."""

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
"""What the library validates, which is what draft 2020-12 defines."""

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
"""What programming languages call these types."""

_OF_A_TYPE = ["properties", "type", "anyOf"]
"""Where the meta-schema says what `type` may be."""

_ABSENT = re.compile(r"^Resource '(.*?)' is not present in a registry|^Failed to resolve '(.*?)' against '", re.DOTALL)


def describe_error(error: Exception, ids: Mapping[str, str]) -> str:
    """What is wrong, and where in the file. `ids` are the `$id` of all schema files, by their names without .json."""
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
    """The `$id` that a `$ref` names and no schema has, if this is what the library complains of; else None."""
    found = _ABSENT.match(message)
    return None if found is None else found[1] or found[2]


def _which_id(absent: str, ids: Mapping[str, str]) -> str:
    """Returns what to write instead. Authors sometimes write the name of the file instead of its `$id`."""
    by_name = {f"{name}.json": schema_id for name, schema_id in ids.items()} | dict(ids)
    by_name |= {schema_id: schema_id for schema_id in ids.values()}
    close = similar(absent, by_name) or similar(absent.rpartition("/")[2], by_name)
    if close is None:
        return "$ref takes the $id of another file, as in urn:edk-bridge:schema:killmail"
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
        return f"a type must be one of the names of types, or a list of them; {known}"
    close = _ELSEWHERE.get(value.lower()) or similar(value, TYPES)
    hint = f"did you mean {close}? " if close else ""
    return f"{printable(value, 80)!r} is no type; {hint}{known}"


def _format_problem(value: str) -> str:
    close = similar(value, FORMATS)
    hint = f"did you mean {close}?" if close else f"the formats are {', '.join(FORMATS)}"
    return f"{printable(value, 80)!r} is no format; {hint}"
