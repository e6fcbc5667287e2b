"""Tests which changes of a schema file break publishers or clients."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest

from bridge.contract.catalog import PACKAGED
from tests.support.schema_changes import AFFECTED, Broken, compare

PUBLISHERS, CLIENTS = Broken.PUBLISHERS, Broken.CLIENTS

OBJECT: dict[str, Any] = {"type": "object"}
MAP: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "integer"}}
CLOSED: dict[str, Any] = {"type": "object", "properties": {"b": {}}, "additionalProperties": False}
RECURSIVE: dict[str, Any] = {
    "$defs": {"tree": {"properties": {"next": {"$ref": "#/$defs/tree"}, "value": {"type": "integer"}}}},
    "$ref": "#/$defs/tree",
}


def with_value(schema: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Returns the recursive schema with another schema for its values."""
    changed = copy.deepcopy(schema)
    changed["$defs"]["tree"]["properties"]["value"] = value
    return changed


def changes(
    old: dict[str, Any], new: dict[str, Any] | None, role: str | None = None, **others: dict[str, Any]
) -> list[str]:
    """Returns the changes of a file with a role, as texts. `others` are further files of both versions."""
    extra = {} if role is None else {"x-role": role}
    before = {"own": {**old, **extra}, **others}
    after = {**({} if new is None else {"own": {**new, **extra}}), **others}
    return [str(change) for change in compare(before, after)]


def broken(old: Any, new: Any, role: str | None = None) -> set[Broken]:
    """Returns who is affected by the change of a member."""
    found = compare(
        {"own": {"x-role": role, "properties": {"a": old}}}, {"own": {"x-role": role, "properties": {"a": new}}}
    )
    return {change.breaks for change in found}


# Each change of a member: its old and its new schema, and who is affected if the file describes an update type.

MEMBER = {
    # Types
    "type gains null": ({"type": "integer"}, {"type": ["integer", "null"]}, {CLIENTS}),
    "type loses null": ({"type": ["integer", "null"]}, {"type": "integer"}, {PUBLISHERS}),
    "integer becomes number": ({"type": "integer"}, {"type": "number"}, {CLIENTS}),
    "number becomes integer": ({"type": "number"}, {"type": "integer"}, {PUBLISHERS}),
    "integer becomes string": ({"type": "integer"}, {"type": "string"}, {PUBLISHERS, CLIENTS}),
    "order of types": ({"type": ["null", "integer"]}, {"type": ["integer", "null"]}, set()),
    "type as a list": ({"type": "integer"}, {"type": ["integer"]}, set()),
    "number with integer": ({"type": "number"}, {"type": ["integer", "number"]}, set()),
    "type is added": ({}, {"type": "string"}, {PUBLISHERS}),
    "type is removed": ({"type": "string"}, {}, {CLIENTS}),
    # Values
    "enum gains a value": ({"enum": ["a", "b"]}, {"enum": ["a", "b", "c"]}, {CLIENTS}),
    "enum loses a value": ({"enum": ["a", "b"]}, {"enum": ["a"]}, {PUBLISHERS}),
    "order of an enum": ({"enum": ["a", "b"]}, {"enum": ["b", "a"]}, set()),
    "enum is added": ({"type": "string"}, {"type": "string", "enum": ["a"]}, {PUBLISHERS}),
    "enum is removed": ({"type": "string", "enum": ["a"]}, {"type": "string"}, {CLIENTS}),
    "enum becomes a pattern": ({"enum": ["a", "b"]}, {"type": "string", "pattern": "^[a-z]$"}, {CLIENTS}),
    "enum becomes a pattern that refuses a value": (
        {"enum": ["a", "B"]},
        {"type": "string", "pattern": "^[a-z]$"},
        {PUBLISHERS, CLIENTS},
    ),
    "enum becomes a format that refuses a value": (
        {"enum": ["2024-10-22", "today"]},
        {"type": "string", "format": "date"},
        {PUBLISHERS, CLIENTS},
    ),
    "enum becomes a schema for everything": ({"enum": ["a"]}, True, {CLIENTS}),
    "const becomes an enum": ({"const": "a"}, {"enum": ["a", "b"]}, {CLIENTS}),
    "enum becomes a const": ({"enum": ["a", "b"]}, {"const": "b"}, {PUBLISHERS}),
    "const changes": ({"const": 1}, {"const": 2}, {PUBLISHERS, CLIENTS}),
    "const null is added": ({"type": ["null", "string"]}, {"const": None}, {PUBLISHERS}),
    "const of one type gets this type": ({"const": 1.5}, {"type": "number"}, {CLIENTS}),
    "enum of values of all types": (
        {"enum": [None, True, 1, 1.5, "a", [], {}]},
        {"enum": [{}, [], "a", 1.5, 1, True, None]},
        set(),
    ),
    # Bounds
    "minimum rises": ({"minimum": 0}, {"minimum": 1}, {PUBLISHERS}),
    "minimum falls": ({"minimum": 1}, {"minimum": 0}, set()),
    "minimum is added": ({}, {"minimum": 0}, {PUBLISHERS}),
    "minimum is removed": ({"minimum": 0}, {}, set()),
    "minimum becomes exclusive": ({"minimum": 0}, {"exclusiveMinimum": 0}, {PUBLISHERS}),
    "exclusive minimum becomes inclusive": ({"exclusiveMinimum": 0}, {"minimum": 0}, set()),
    "lower exclusive minimum": ({"minimum": 1}, {"exclusiveMinimum": 0.5}, set()),
    "maximum falls": ({"maximum": 10}, {"maximum": 9}, {PUBLISHERS}),
    "maximum rises": ({"maximum": 9}, {"maximum": 10}, set()),
    "maximum becomes exclusive": ({"maximum": 9}, {"exclusiveMaximum": 9}, {PUBLISHERS}),
    "maxLength falls": ({"maxLength": 10}, {"maxLength": 9}, {PUBLISHERS}),
    "maxLength is removed": ({"maxLength": 10}, {}, set()),
    "minLength rises": ({"minLength": 0}, {"minLength": 1}, {PUBLISHERS}),
    "maxItems is added": ({}, {"maxItems": 100}, {PUBLISHERS}),
    "minItems is added": ({}, {"minItems": 1}, {PUBLISHERS}),
    "minProperties falls": ({"minProperties": 2}, {"minProperties": 1}, set()),
    "maxProperties falls": ({"maxProperties": 2}, {"maxProperties": 1}, {PUBLISHERS}),
    "multipleOf is added": ({}, {"multipleOf": 0.5}, {PUBLISHERS}),
    "multipleOf is a divisor": ({"multipleOf": 10}, {"multipleOf": 5}, set()),
    "multipleOf is no divisor": ({"multipleOf": 5}, {"multipleOf": 10}, {PUBLISHERS}),
    "multipleOf is removed": ({"multipleOf": 5}, {}, set()),
    "uniqueItems is added": ({}, {"uniqueItems": True}, {PUBLISHERS}),
    "uniqueItems is removed": ({"uniqueItems": True}, {"uniqueItems": False}, set()),
    # Patterns and formats
    "pattern is added": ({}, {"pattern": "^a"}, {PUBLISHERS}),
    "pattern changes": ({"pattern": "^a"}, {"pattern": "^[ab]"}, {PUBLISHERS}),
    "pattern is removed": ({"pattern": "^a"}, {}, set()),
    "format is added": ({}, {"format": "date-time"}, {PUBLISHERS}),
    "format is removed": ({"format": "date-time"}, {}, {CLIENTS}),
    "format changes": ({"format": "date-time"}, {"format": "date"}, {PUBLISHERS, CLIENTS}),
    # Members
    "required member is added": (OBJECT, {**OBJECT, "properties": {"b": {}}, "required": ["b"]}, {PUBLISHERS}),
    "member becomes required": (
        {"properties": {"b": {}}},
        {"properties": {"b": {}}, "required": ["b"]},
        {PUBLISHERS},
    ),
    "member is no longer required": (
        {"properties": {"b": {}}, "required": ["b"]},
        {"properties": {"b": {}}},
        {CLIENTS},
    ),
    "order of required members": ({"required": ["b", "c"]}, {"required": ["c", "b"]}, set()),
    "optional member is added": (OBJECT, {**OBJECT, "properties": {"b": {"type": "integer"}}}, set()),
    "member is removed": ({**OBJECT, "properties": {"b": {"type": "integer"}}}, OBJECT, {CLIENTS}),
    "member of a closed object is removed": (CLOSED, {**CLOSED, "properties": {}}, {PUBLISHERS, CLIENTS}),
    "member of a closed object is added": (CLOSED, {**CLOSED, "properties": {"b": {}, "c": {}}}, set()),
    "object is closed": (OBJECT, {**OBJECT, "additionalProperties": False}, {PUBLISHERS}),
    "object is opened": (CLOSED, {**CLOSED, "additionalProperties": True}, set()),
    "member of a member changes": (
        {"properties": {"b": {"properties": {"c": {"type": "integer"}}}}},
        {"properties": {"b": {"properties": {"c": {"type": "string"}}}}},
        {PUBLISHERS, CLIENTS},
    ),
    "values of a map widen": (MAP, {**MAP, "additionalProperties": {"type": "number"}}, {CLIENTS}),
    "values of a map narrow": (MAP, {**MAP, "additionalProperties": {"type": "integer", "minimum": 0}}, {PUBLISHERS}),
    "map is opened": (MAP, OBJECT, {CLIENTS}),
    "object becomes a map": (OBJECT, MAP, {PUBLISHERS}),
    "member of a map is declared otherwise": (MAP, {**MAP, "properties": {"b": {"type": "string"}}}, {PUBLISHERS}),
    "member of a map is declared alike": (MAP, {**MAP, "properties": {"b": {"type": "integer"}}}, set()),
    # Items
    "items widen": ({"items": {"type": "integer"}}, {"items": {"type": "number"}}, {CLIENTS}),
    "items narrow": ({"items": {"type": "number"}}, {"items": {"type": "integer"}}, {PUBLISHERS}),
    "items are added": ({"type": "array"}, {"type": "array", "items": {"type": "integer"}}, {PUBLISHERS}),
    "items are removed": ({"type": "array", "items": {"type": "integer"}}, {"type": "array"}, {CLIENTS}),
    "items are forbidden": ({"type": "array"}, {"type": "array", "items": False}, {PUBLISHERS}),
    # Schemas that are booleans
    "everything becomes nothing": (True, False, {PUBLISHERS}),
    "everything becomes the negation of everything": ({}, {"not": {}}, {PUBLISHERS}),
    "nothing becomes everything": (False, True, {CLIENTS}),
    "nothing stays nothing": (False, {"not": {}}, set()),
    "everything stays everything": (True, {}, set()),
    # Conditions, and annotations
    "anyOf changes": ({"anyOf": [{"minimum": 1}]}, {"anyOf": [{"minimum": 2}]}, {PUBLISHERS, CLIENTS}),
    "not is added": ({}, {"not": {"const": 1}}, {PUBLISHERS, CLIENTS}),
    "not is removed": ({"not": {"const": 1}}, {}, {PUBLISHERS, CLIENTS}),
    "patternProperties change": (
        {"patternProperties": {"^a": {"type": "integer"}}},
        {"patternProperties": {"^a": {"type": "string"}}},
        {PUBLISHERS, CLIENTS},
    ),
    "prefixItems are added": ({}, {"prefixItems": [{"type": "integer"}]}, {PUBLISHERS, CLIENTS}),
    "dependentRequired changes": (
        {"dependentRequired": {"b": ["c"]}},
        {"dependentRequired": {"b": ["d"]}},
        {PUBLISHERS, CLIENTS},
    ),
    "description in a condition": (
        {"anyOf": [{"type": "integer", "description": "A."}]},
        {"anyOf": [{"type": "integer", "description": "B."}]},
        set(),
    ),
    "member with the name of an annotation in a condition": (
        {"anyOf": [{"properties": {"title": {"type": "integer"}}}]},
        {"anyOf": [{"properties": {"title": {"type": "string"}}}]},
        {PUBLISHERS, CLIENTS},
    ),
    "boolean in a condition": ({"anyOf": [True, {}]}, {"anyOf": [False, {}]}, {PUBLISHERS, CLIENTS}),
    "annotations": (
        {"title": "A", "description": "A.", "examples": [1], "default": 1, "x-own": 1},
        {"title": "B", "description": "B.", "examples": [2], "default": 2, "x-own": 2},
        set(),
    ),
}


@pytest.mark.parametrize("name", MEMBER)
def test_change_of_a_member_of_an_update_breaks(name: str) -> None:
    old, new, affected = MEMBER[name]
    assert broken(old, new) == affected


@pytest.mark.parametrize("name", MEMBER)
def test_change_breaks_only_those_who_are_affected_by_the_role(name: str) -> None:
    old, new, affected = MEMBER[name]
    for role, possible in AFFECTED.items():
        found = broken(old, new, role)
        assert affected & set(possible) <= found <= set(possible)
        if role not in {"form", "definitions"}:
            assert found == affected & set(possible)


@pytest.mark.parametrize("name", MEMBER)
def test_member_that_stays_the_same_breaks_nobody(name: str) -> None:
    for schema in MEMBER[name][:2]:
        assert broken(schema, copy.deepcopy(schema)) == set()


def test_new_member_of_a_source_format_refuses_what_publishers_have_sent() -> None:
    new = {**OBJECT, "properties": {"b": {"type": "integer"}}}
    assert broken(OBJECT, new, "form") == {PUBLISHERS}
    assert broken(OBJECT, {**OBJECT, "properties": {"b": {"description": "B."}}}, "form") == set()


def test_texts_name_the_place_and_the_change() -> None:
    old = {
        "required": ["a"],
        "properties": {"a": {"type": ["integer", "null"]}, "b/c": {"items": {"minimum": 0}}, "d": {"enum": ["x", 1]}},
    }
    new = {"properties": {"a": {"type": "number"}, "b/c": {"items": {"minimum": 1}}, "d": {"enum": ["x"]}}}
    assert changes(old, new) == [
        "own.json: /properties/a: it no longer accepts null (breaks publishers)",
        "own.json: /properties/b~1c/items: minimum is narrower (breaks publishers)",
        "own.json: /properties/d: it no longer accepts 1 (breaks publishers)",
        "own.json: the member 'a' is no longer required (breaks clients)",
        "own.json: /properties/a: it can be a number with a fraction now (breaks clients)",
    ]
    assert changes({"type": "number"}, {"type": ["string"]}) == [
        "own.json: it no longer accepts number (breaks publishers)",
        "own.json: it can be string now (breaks clients)",
    ]
    assert changes({"type": "object"}, {}, "message") == [
        "own.json: it can be array or boolean or null or number or string now (breaks clients)"
    ]
    assert changes({"items": {}}, {"items": False}, "form") == [
        "own.json: /items: it accepts no value any more (breaks publishers)"
    ]
    assert changes({"properties": {"a": {}}}, {}, "message") == [
        "own.json: /properties/a: the member is gone (breaks clients)"
    ]


# Files


@pytest.mark.parametrize(("role", "affected"), AFFECTED.items())
def test_file_that_is_gone_breaks_those_who_use_it(role: str | None, affected: tuple[Broken, ...]) -> None:
    assert changes(OBJECT, None, role) == [f"own.json: the file is gone (breaks {each})" for each in affected]


def test_new_file_breaks_nobody() -> None:
    assert list(compare({}, {"own": OBJECT})) == []


@pytest.mark.parametrize(
    ("keyword", "old", "new"),
    [
        ("$id", None, "urn:x"),
        ("x-role", None, "form"),
        ("x-identity", "/a", "/b"),
        ("x-identity", "/a", None),
        ("x-form-of", "a", "b"),
    ],
)
def test_other_meaning_of_a_file_breaks_everybody(keyword: str, old: str | None, new: str | None) -> None:
    found = list(compare({"own": {keyword: old}}, {"own": {keyword: new}}))
    assert [(change.pointer, change.breaks) for change in found] == [(f"/{keyword}", each) for each in Broken]
    assert "absent" in found[0].detail or None not in {old, new}


def test_packaged_schemas_are_compatible_with_themselves() -> None:
    files = {file.stem: orjson.loads(file.read_bytes()) for file in PACKAGED.glob("*.json")}
    assert list(compare(files, copy.deepcopy(files))) == []


@pytest.mark.parametrize("name", sorted(file.stem for file in PACKAGED.glob("*.json")))
def test_each_required_member_of_a_packaged_schema_is_a_promise(name: str) -> None:
    files = {file.stem: orjson.loads(file.read_bytes()) for file in PACKAGED.glob("*.json")}
    for member in files[name]["required"]:
        without = copy.deepcopy(files)
        without[name]["required"].remove(member)
        del without[name]["properties"][member]
        found = {change.breaks for change in compare(files, without)}
        assert found == set(AFFECTED[files[name].get("x-role")]) & {CLIENTS}
        assert {change.breaks for change in compare(without, files)} - {CLIENTS} == (
            set(AFFECTED[files[name].get("x-role")]) - {CLIENTS}
        )


# References


def test_reference_and_its_target_are_the_same() -> None:
    old = {"properties": {"a": {"type": "integer"}}}
    new = {"$defs": {"id": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/id", "description": "A."}}}
    assert changes(old, new) == changes(new, old) == []


def test_keywords_next_to_a_reference_count() -> None:
    old = {"$defs": {"id": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/id"}}}
    new = {**old, "properties": {"a": {"$ref": "#/$defs/id", "minimum": 1}}}
    assert changes(old, new) == ["own.json: /properties/a: minimum is narrower (breaks publishers)"]


def test_keyword_that_occurs_in_the_target_too_is_not_judged() -> None:
    old = {"$defs": {"id": {"minimum": 0}}, "properties": {"a": {"$ref": "#/$defs/id"}}}
    new = {**old, "properties": {"a": {"$ref": "#/$defs/id", "minimum": 1}}}
    assert [change.partition(": it")[0] for change in changes(old, new)] == ["own.json: /properties/a/allOf"] * 2
    assert changes(new, copy.deepcopy(new)) == []


@pytest.mark.parametrize(
    "reference", ["urn:edk-bridge:schema:shared#/$defs/id", "urn:edk-bridge:schema:shared#/$defs/list/allOf/0"]
)
def test_target_in_another_file_counts(reference: str) -> None:
    own = {"properties": {"a": {"$ref": reference}}}
    shared: dict[str, Any] = {
        "x-role": "message",
        "$defs": {"id": {"type": "integer"}, "list": {"allOf": [{"type": "integer"}]}},
    }
    wider = copy.deepcopy(shared)
    wider["$defs"]["id"]["type"] = wider["$defs"]["list"]["allOf"][0]["type"] = "number"
    old, new = {"own": own, "shared": shared}, {"own": copy.deepcopy(own), "shared": wider}
    assert list(map(str, compare(old, new))) == [
        "own.json: /properties/a: it can be a number with a fraction now (breaks clients)"
    ]


def test_target_in_a_condition_counts() -> None:
    own = {"$defs": {"id": {"type": "integer"}}, "anyOf": [{"$ref": "#/$defs/id"}]}
    wider = {**own, "$defs": {"id": {"type": "number"}}}
    assert len(changes(own, wider)) == 2
    assert changes(own, {"anyOf": [{"type": "integer"}]}) == []


def test_recursive_schemas_are_compared_once() -> None:
    assert changes(RECURSIVE, copy.deepcopy(RECURSIVE)) == []
    assert changes(RECURSIVE, with_value(RECURSIVE, {"type": "number"})) == [
        "own.json: /properties/next/properties/value: it can be a number with a fraction now (breaks clients)"
    ]
    own = {"anyOf": [{"$ref": "#/$defs/tree"}], "$defs": RECURSIVE["$defs"]}
    assert changes(own, copy.deepcopy(own)) == []


def test_recursive_map_is_compared_with_an_open_object() -> None:
    tree: dict[str, Any] = {"type": "object", "additionalProperties": {"$ref": "#"}}
    others = "array or boolean or null or number or string"
    assert changes({}, tree) == [
        f"own.json: it no longer accepts {others} (breaks publishers)",
        f"own.json: /additionalProperties: it no longer accepts {others} (breaks publishers)",
    ]
    assert changes(tree, {}) == [
        f"own.json: it can be {others} now (breaks clients)",
        f"own.json: /additionalProperties: it can be {others} now (breaks clients)",
    ]


def test_reference_without_a_target_is_an_error() -> None:
    with pytest.raises(LookupError):
        changes({"$ref": "#/$defs/none"}, OBJECT)
    with pytest.raises(LookupError):
        changes({"$ref": "urn:nowhere"}, OBJECT)
