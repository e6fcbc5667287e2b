"""The members of an update's data that a schema declares, and those with a scalar type: a client may filter by them.

Only what stands at the top of the data counts, wherever the schema says it: in itself, in what it refers to, in the
branches that it is put together from. This file must never know what anybody asks for.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

RESERVED = frozenset({"type", "after"})
"""What these ask for in a query is something else: members of these names can't be filtered by."""

SCALARS = frozenset({"integer", "number", "string", "boolean", "null"})

_ANY = SCALARS | {"array", "object"}
"""All of JSON's types, as a schema that says nothing about it allows. Here a `number` is one that is no integer."""

_BRANCHES = ("allOf", "anyOf", "oneOf")
_CONDITIONAL = ("then", "else")
_REFERENCES = ("$ref", "$dynamicRef")

Path = tuple[tuple[str, str], ...]
"""The references that led here, each with what it is relative to."""


def filterable(schemas: Mapping[str, Any], registry: jsonschema_rs.Registry) -> dict[str, frozenset[str]]:
    """The members that any of the schemas (by their `$id`) declares, in order, each with all its scalar types.

    A `number` may be an integer as well, and stands alone then.
    """
    found: dict[str, set[str]] = {}
    for schema_id, schema in schemas.items():
        for name, types in _members(schema, registry.resolver(schema_id), set()):
            if types != _ANY and name not in RESERVED:
                found.setdefault(name, set()).update(types & SCALARS)
    return {
        name: frozenset(types - {"integer"} if "number" in types else types)
        for name, types in sorted(found.items())
        if types
    }


def declared(schema: object, resolver: jsonschema_rs.Resolver) -> dict[str, frozenset[str]]:
    """Every member that a schema declares, with all its types, whatever they are. `resolver` is that of its `$id`."""
    found: dict[str, frozenset[str]] = {}
    for name, types in _members(schema, resolver, set()):
        found[name] = found.get(name, frozenset()) | types
    return found


def _members(
    schema: object, resolver: jsonschema_rs.Resolver, seen: set[tuple[str, str]]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Every declaration of a member, with the types that it allows; several of one name are several choices."""
    if not isinstance(schema, dict):
        return
    resolver = _within(schema, resolver)
    for name, inner in schema.get("properties", {}).items():
        yield name, _types(inner, resolver, ())
    parts = [part for keyword in _BRANCHES for part in schema.get(keyword, [])]
    parts += [schema[keyword] for keyword in _CONDITIONAL if keyword in schema]
    for part in (*parts, *schema.get("dependentSchemas", {}).values()):
        yield from _members(part, resolver, seen)
    for step, target, there in _targets(schema, resolver):
        if step not in seen:
            seen.add(step)
            yield from _members(target, there, seen)


def _types(schema: object, resolver: jsonschema_rs.Resolver, path: Path) -> frozenset[str]:
    """The types that a value may have by all that the schema says of types."""
    if not isinstance(schema, dict):
        return _ANY if schema else frozenset()
    resolver = _within(schema, resolver)
    types = _ANY
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        types &= {*named, "integer"} if "number" in named else set(named)
    if "enum" in schema:
        types &= set(map(_type_of, schema["enum"]))
    if "const" in schema:
        types &= {_type_of(schema["const"])}
    for part in schema.get("allOf", []):
        types &= _types(part, resolver, path)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            types &= frozenset[str]().union(*(_types(part, resolver, path) for part in schema[keyword]))
    for step, target, there in _targets(schema, resolver):
        if step not in path:
            types &= _types(target, there, (*path, step))
    return types


def _targets(
    schema: Mapping[str, Any], resolver: jsonschema_rs.Resolver
) -> Iterator[tuple[tuple[str, str], object, jsonschema_rs.Resolver]]:
    """What the schema refers to."""
    for keyword in _REFERENCES:
        if keyword in schema and (found := _looked_up(schema[keyword], resolver)) is not None:
            yield (resolver.base_uri, schema[keyword]), found.contents, found.resolver


def _within(schema: Mapping[str, Any], resolver: jsonschema_rs.Resolver) -> jsonschema_rs.Resolver:
    """What resolves the references within the schema: an `$id` of its own changes what they are relative to."""
    found = _looked_up(schema["$id"], resolver) if "$id" in schema else None
    return resolver if found is None else found.resolver


def _looked_up(reference: str, resolver: jsonschema_rs.Resolver) -> jsonschema_rs.Resolved | None:
    """None where the registry does not find what the validator does: by an `$id` that is `#`, say."""
    try:
        return resolver.lookup(reference)
    except jsonschema_rs.ReferencingError:
        return None


def _type_of(value: object) -> str:
    """To JSON Schema, 1.0 is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return {float: "number", str: "string", list: "array", dict: "object"}.get(type(value), "null")
