"""Finds the members of an update's data by which clients can filter.

Clients can filter by the top-level members that a schema declares as scalars. A schema can declare a member directly,
in a branch such as `anyOf`, or in another schema to which it refers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

SCALARS = frozenset({"integer", "number", "string", "boolean", "null"})

_ANY = SCALARS | {"array", "object"}
"""All JSON types.

A schema that does not name any types allows all types. Here, `number` means a number that is not an integer.
"""

_BRANCHES = ("allOf", "anyOf", "oneOf")
_CONDITIONAL = ("then", "else")
_REFERENCES = ("$ref", "$dynamicRef")

_ReferencePath = tuple[tuple[str, str], ...]
"""The references that were followed from the schema to the part that is examined now, each with its base URI."""


def filterable(schemas: Mapping[str, Any], registry: jsonschema_rs.Registry) -> dict[str, frozenset[str]]:
    """Returns the members that at least one of the schemas (by `$id`) declares, sorted, with their scalar types.

    If the result has the type `number` for a member, it does not also have `integer`, because `number` includes
    integers.
    """
    found: dict[str, set[str]] = {}
    for schema_id, schema in schemas.items():
        for name, types in _members(schema, registry.resolver(schema_id), set()):
            if types != _ANY:
                found.setdefault(name, set()).update(types & SCALARS)
    return {
        name: frozenset(types - {"integer"} if "number" in types else types)
        for name, types in sorted(found.items())
        if types
    }


def declared(schema: object, resolver: jsonschema_rs.Resolver) -> dict[str, frozenset[str]]:
    """Returns every top-level member that a schema declares, with all its types.

    `resolver` resolves references relative to the schema's `$id`.
    """
    found: dict[str, frozenset[str]] = {}
    for name, types in _members(schema, resolver, set()):
        found[name] = found.get(name, frozenset()) | types
    return found


def _members(
    schema: object, resolver: jsonschema_rs.Resolver, seen: set[tuple[str, str]]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Yields each declaration of a member, with its types.

    If a member has several declarations, they are alternatives.
    """
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


def _types(schema: object, resolver: jsonschema_rs.Resolver, path: _ReferencePath) -> frozenset[str]:
    """Returns the types that a schema allows."""
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
    """Yields the target of each reference in the schema, with the followed reference and the target's resolver."""
    for keyword in _REFERENCES:
        if keyword in schema and (found := _looked_up(schema[keyword], resolver)) is not None:
            yield (resolver.base_uri, schema[keyword]), found.contents, found.resolver


def _within(schema: Mapping[str, Any], resolver: jsonschema_rs.Resolver) -> jsonschema_rs.Resolver:
    """Returns the resolver for references within the schema.

    A schema's `$id` changes the base URI of the references.
    """
    found = _looked_up(schema["$id"], resolver) if "$id" in schema else None
    return resolver if found is None else found.resolver


def _looked_up(reference: str, resolver: jsonschema_rs.Resolver) -> jsonschema_rs.Resolved | None:
    """Returns the target of a reference, or None if the resolver can't find it.

    For example, the resolver can't find the `$id` `#`.
    """
    try:
        return resolver.lookup(reference)
    except jsonschema_rs.ReferencingError:
        return None


def _type_of(value: object) -> str:
    """Returns the type of a JSON value. In JSON Schema, 1.0 is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return {float: "number", str: "string", list: "array", dict: "object"}.get(type(value), "null")
