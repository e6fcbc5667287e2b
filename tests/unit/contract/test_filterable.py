"""Clients can filter by the top-level members that a schema declares with scalar types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from bridge.contract import catalog

if TYPE_CHECKING:
    from pathlib import Path

DEFS = {
    "id": {"type": ["integer", "null"]},
    "anchored": {"$anchor": "word", "type": "string"},
    "loop": {"$ref": "#/$defs/loop"},
    "half": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/half"}]},
    "inner": {"$id": "urn:inner", "$ref": "#/$defs/id", "$defs": {"id": {"type": "boolean"}}},
    "with members": {"properties": {"a": {"type": "string"}}},
}
OTHER = {"x-role": "definitions", "$defs": {"flag": {"type": "boolean"}}, "properties": {"a": {"type": "boolean"}}}


def declared(folder: Path, **schemas: dict[str, Any]) -> dict[str, set[str]]:
    """Returns the filterable members of types with these schemas."""
    for name, schema in schemas.items():
        (folder / f"{name}.json").write_bytes(orjson.dumps(schema))
    return {name: set(types) for name, types in catalog.load([folder]).filterable.items()}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, "integer"),
        ({"type": "number"}, "number"),
        ({"type": ["number", "integer"]}, "number"),
        ({"type": ["integer", "null"]}, "integer null"),
        ({"type": ["string", "array"]}, "string"),
        ({"enum": [1, 2.0, "x", None, True]}, "integer string null boolean"),
        ({"enum": [1, 1.5, [], {}]}, "number"),
        ({"const": False}, "boolean"),
        ({"type": "string", "enum": ["x", 1]}, "string"),
        ({"anyOf": [{"type": "string"}, {"const": None}]}, "string null"),
        ({"oneOf": [{"type": "integer"}, {"type": "array"}, False]}, "integer"),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "null"]}, True]}, "string"),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, "integer"),
        ({"$ref": "#/$defs/id"}, "integer null"),
        ({"$ref": "#/$defs/id", "type": "integer"}, "integer"),
        ({"$ref": "#word"}, "string"),
        ({"$dynamicRef": "#word"}, "string"),
        ({"$ref": "urn:inner"}, "boolean"),
        ({"$ref": "urn:edk-bridge:schema:other#/$defs/flag"}, "boolean"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "boolean"),
        ({"type": "integer", "$ref": "#/$defs/loop"}, "integer"),
    ],
    ids=repr,
)
def test_member_has_the_scalar_types_that_all_of_its_schema_allows(
    tmp_path: Path, schema: dict[str, Any], types: str
) -> None:
    own = {"$defs": DEFS, "properties": {"a": schema}}
    assert declared(tmp_path, own=own, other=OTHER) == {"a": set(types.split())}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        False,
        {},
        {"description": "Anything."},
        {"type": "array"},
        {"type": ["object", "array"]},
        {"enum": [[]]},
        {"anyOf": [{"type": "string"}, {}]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"$ref": "#/$defs/half"},
    ],
    ids=repr,
)
def test_member_without_a_scalar_type_is_not_filterable(tmp_path: Path, schema: bool | dict[str, Any]) -> None:
    assert declared(tmp_path, own={"$defs": DEFS, "properties": {"a": schema}}) == {}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string"}}},
        {"$ref": "#/$defs/with%20members"},
        {"allOf": [{"$ref": "#/$defs/with%20members"}, {"$ref": "#/$defs/with%20members"}]},
        {"anyOf": [{"type": "null"}, {"properties": {"a": {"type": "string"}}}, True]},
        {"oneOf": [{"$ref": "#"}, {"properties": {"a": {"type": "string"}}}]},
        {"if": {"properties": {"b": {"const": 1}}}, "then": {"properties": {"a": {"type": "string"}}}},
        {"if": {}, "else": {"properties": {"a": {"type": "string"}}}},
        {"dependentSchemas": {"b": {"properties": {"a": {"type": "string"}}}}},
        {"properties": {"a": {}}, "$ref": "#/$defs/with%20members"},
        {"properties": {"b": {"properties": {"c": {"type": "string"}}}}, "$ref": "#/$defs/with%20members"},
    ],
    ids=repr,
)
def test_member_is_found_wherever_the_schema_declares_it(tmp_path: Path, schema: dict[str, Any]) -> None:
    assert declared(tmp_path, own={"$defs": DEFS, **schema}) == {"a": {"string"}}


def test_several_declarations_are_several_choices(tmp_path: Path) -> None:
    one = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    two = {"properties": {"a": {"type": "string"}, "b": {"type": "number"}}, "allOf": [{"$ref": "urn:x"}]}
    three = {"$id": "urn:x", "properties": {"a": {"const": True}}}
    assert declared(tmp_path, one=one, two=two, three=three) == {"a": {"integer", "string", "boolean"}, "b": {"number"}}


def test_only_update_types_have_members(tmp_path: Path) -> None:
    assert declared(tmp_path, own={}, other=OTHER) == {}
    assert declared(tmp_path, own={"$ref": "urn:edk-bridge:schema:other"}) == {"a": {"boolean"}}


def test_member_with_the_name_of_a_parameter_is_filterable(tmp_path: Path) -> None:
    properties = {name: {"type": "string"} for name in ("type", "after", "before")}
    assert declared(tmp_path, own={"properties": properties}) == {name: {"string"} for name in properties}


@pytest.mark.parametrize("schema_id", ["urn:f#", "weather", "./a", "", "#"])
def test_unusual_id_is_not_an_error(tmp_path: Path, schema_id: str) -> None:
    own = {"$id": schema_id, "properties": {"a": {"type": "string"}}, "$ref": "#/$defs/more", "$defs": {"more": {}}}
    assert declared(tmp_path, own=own) == {"a": {"string"}}


def test_ids_of_a_killmail_are_integers_and_those_of_the_victim_may_be_null() -> None:
    found = catalog.load([catalog.PACKAGED]).filterable
    assert found["killmailId"] == {"integer"}
    assert found["victimAllianceId"] == {"integer", "null"}
    assert found["iskDestroyed"] == {"number"}
    # `systemId` is a member of an event, not of a source format.
    assert found["systemId"] == {"integer", "null"}
    assert not {"killmailIds", "topSystems", "killmail_id", "zkb", "complete"} & found.keys()


def test_schema_declares_members_of_every_type(tmp_path: Path) -> None:
    own = {"properties": {"type": {"type": "string"}}, "allOf": [{"$ref": "urn:edk-bridge:schema:other"}]}
    other = {**OTHER, "properties": {"data": {"type": "object"}, "list": {"type": "array"}}}
    for name, schema in (("own", own), ("other", other)):
        (tmp_path / f"{name}.json").write_bytes(orjson.dumps(schema))
    assert catalog.load([tmp_path]).declared == {
        "urn:edk-bridge:schema:own": {"type", "data", "list"},
        "urn:edk-bridge:schema:other": {"data", "list"},
    }
