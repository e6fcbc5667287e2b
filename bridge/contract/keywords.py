"""The keywords of JSON Schema draft 2020-12, and a function that finds the subschemas of a schema."""

from collections.abc import Iterator, Mapping
from typing import Any

Steps = tuple[str | int, ...]

REFERENCES = ("$ref", "$dynamicRef")
ANCHORS = ("$anchor", "$dynamicAnchor")
BY_NAME = frozenset(("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"))
"""The keywords whose value is an object that maps names to subschemas.

The keyword `dependencies`, which is from older drafts, has no effect.
"""

PLAIN = frozenset[str]().union(
    ("$comment", "title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples"),
    ("type", "enum", "const", "format", "contentEncoding", "contentMediaType"),
    ("multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"),
    ("maxLength", "minLength", "pattern"),
    ("maxItems", "minItems", "uniqueItems", "maxContains", "minContains"),
    ("maxProperties", "minProperties", "required", "dependentRequired"),
)
"""The keywords that contain no subschemas, and that have the same meaning in draft 7 as in draft 2020-12."""

_SINGLE = frozenset[str]().union(
    ("items", "contains", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"),
    ("if", "then", "else", "not", "contentSchema"),
)
_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))

KEYWORDS = (PLAIN | _SINGLE | BY_NAME | _LISTS).union(REFERENCES, ANCHORS, ("$schema", "$id", "$vocabulary")) - {
    "dependencies"
}
"""All keywords that have a meaning in draft 2020-12."""


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[Steps, object]]:
    """Yields each direct subschema of a schema, with the path from the schema to the subschema.

    The schema must match the meta-schema.
    """
    for keyword, value in schema.items():
        if keyword in _SINGLE:
            yield (keyword,), value
        elif keyword in BY_NAME:
            yield from (((keyword, name), part) for name, part in value.items())
        elif keyword in _LISTS:
            yield from (((keyword, at), part) for at, part in enumerate(value))
