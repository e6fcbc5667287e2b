"""Schemas of draft 2020-12 are embedded in one document, in draft 7 or unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.contract.documents.embedding import Dialect, embed

PLACE = "#/components/schemas"
OTHER: dict[str, Any] = {
    "$id": "https://example.org/schemas/other.json",
    "type": "object",
    "$defs": {"count": {"$anchor": "count", "type": "integer"}, "never": False},
    "properties": {"a/b ü": {"type": "string"}},
}


def converted(schema: dict[str, Any], dialect: Dialect = Dialect.DRAFT_07) -> Any:
    """Converts a schema, which can refer to the schema OTHER."""
    return embed({"mine": {"$id": "urn:example:mine", **schema}, "other": OTHER}, PLACE, dialect)["mine"]


def test_keywords_of_both_drafts_are_unchanged() -> None:
    schema = {
        "title": "T",
        "description": "D",
        "x-identity": "/id",
        "type": ["object", "null"],
        "required": ["id"],
        "examples": [{"id": 1}],
        "properties": {"id": {"type": "integer", "minimum": 0, "enum": [1, 2]}, "any": True},
        "additionalProperties": {"const": None},
        "oneOf": [{"minProperties": 1}, {"not": {"maxProperties": 0}}],
        "dependencies": {"a": ["b"], "c": {"required": ["d"]}},
    }
    assert converted(schema) == schema


def test_unknown_keywords_are_removed() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$vocabulary": {},
        "schema": 1,
        "additionalItems": 7,
        "discriminator": {"propertyName": "kind"},
        "title": "T",
    }
    assert converted(schema) == {"title": "T"}


def test_definitions_and_tuples_get_their_old_names() -> None:
    schema = {
        "$defs": {"a": {"type": "string"}},
        "properties": {
            "pair": {"prefixItems": [{"type": "string"}, {"$ref": "#/$defs/a"}], "items": {"type": "integer"}},
            "list": {"items": {"type": "number"}},
        },
    }
    assert converted(schema) == {
        "definitions": {"a": {"type": "string"}},
        "properties": {
            "pair": {
                "items": [{"type": "string"}, {"$ref": f"{PLACE}/mine/definitions/a"}],
                "additionalItems": {"type": "integer"},
            },
            "list": {"items": {"type": "number"}},
        },
    }


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("#", "/mine"),
        ("#/properties/list/prefixItems/0", "/mine/properties/list/items/0"),
        ("#/properties/list/items", "/mine/properties/list/additionalItems"),
        ("urn:example:mine", "/mine"),
        ("https://example.org/schemas/other.json", "/other"),
        ("https://example.org/schemas/other.json#", "/other"),
        ("https://example.org/schemas/other.json#count", "/other/definitions/count"),
        ("https://example.org/schemas/other.json#/$defs/never", "/other/definitions/never"),
        ("https://example.org/schemas/other.json#/properties/a~1b%20%C3%BC", "/other/properties/a~1b%20%C3%BC"),
        ("urn:example:inner", "/mine/definitions/inner"),
        ("urn:example:inner#/$defs/x", "/mine/definitions/inner/definitions/x"),
        ("#/$defs/inner/$defs/x", "/mine/definitions/inner/definitions/x"),
        ("#tree", "/mine/definitions/tree"),
    ],
)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_reference_names_the_place_of_its_target(keyword: str, reference: str, place: str) -> None:
    schema = {
        "$defs": {
            "inner": {"$id": "urn:example:inner", "$defs": {"x": {"type": "string"}}},
            "tree": {"$dynamicAnchor": "tree"},
        },
        "properties": {"list": {"prefixItems": [{}], "items": {}}, "it": {keyword: reference}},
    }
    assert converted(schema)["properties"]["it"] == {"$ref": PLACE + place}


def test_reference_is_relative_to_its_schema() -> None:
    inner = {"$id": "https://example.org/schemas/inner.json", "allOf": [{"$ref": "other.json"}, {"$ref": "#/$defs/x"}]}
    schema = {"$defs": {"inner": {**inner, "$defs": {"x": {}}}, "x": {}}}
    assert converted(schema)["definitions"]["inner"]["allOf"] == [
        {"$ref": f"{PLACE}/other"},
        {"$ref": f"{PLACE}/mine/definitions/inner/definitions/x"},
    ]


@pytest.mark.parametrize("reference", ["https://json-schema.org/draft/2020-12/schema", "#/x-own/shape", "#nowhere"])
def test_reference_to_an_unknown_schema_accepts_everything(reference: str) -> None:
    assert converted({"items": {"$ref": reference}})["items"] == {"$comment": f"see {reference}"}


def test_keywords_next_to_a_reference_still_apply() -> None:
    schema = {"description": "D", "allOf": [{"minProperties": 1}], "$ref": "#/$defs/a", "$defs": {"a": {}}}
    assert converted(schema) == {
        "description": "D",
        "definitions": {"a": {}},
        "allOf": [{"minProperties": 1}, {"$ref": f"{PLACE}/mine/definitions/a"}],
    }
    assert schema["allOf"] == [{"minProperties": 1}]


def test_value_that_tools_would_resolve_is_removed() -> None:
    schema = {
        "examples": [{"a": [{"$ref": "nowhere"}]}],
        "default": {"$ref": 1},
        "properties": {"$ref": {"type": "string"}, "a": {}},
    }
    assert converted(schema) == {"default": {"$ref": 1}, "properties": {"a": {}}}


@pytest.mark.parametrize("name", ["a~b", "a/b", "~1", "~0~/"])
def test_member_name_with_a_tilde_or_a_slash_is_one_step_of_a_reference(name: str) -> None:
    """RFC 6901, section 3, requires ~ to be written as ~0, and / as ~1."""
    step = name.replace("~", "~0").replace("/", "~1")
    schema = {"properties": {name: {"type": "string"}, "it": {"$ref": f"#/properties/{step}"}}}
    assert converted(schema)["properties"]["it"] == {"$ref": f"{PLACE}/mine/properties/{step}"}


def test_schema_whose_own_name_has_a_tilde_is_found() -> None:
    schemas: dict[str, dict[str, Any]] = {
        "a~/b": {"$id": "urn:a"},
        "other": {"$id": "urn:other", "items": {"$ref": "urn:a"}},
    }
    assert embed(schemas, PLACE, Dialect.DRAFT_07)["other"]["items"] == {"$ref": f"{PLACE}/a~0~1b"}


def test_other_keywords_next_to_a_tuple_keep_their_names() -> None:
    schema = {"prefixItems": [{}], "contains": {"type": "string"}, "not": {"maxItems": 0}}
    assert converted(schema) == {"items": [{}], "contains": {"type": "string"}, "not": {"maxItems": 0}}


# Draft 2020-12


def unchanged(schema: dict[str, Any]) -> Any:
    return converted(schema, Dialect.DRAFT_2020_12)


def test_keywords_of_draft_2020_12_keep_their_names() -> None:
    schema = {
        "$defs": {"a": {"type": "string"}},
        "x-identity": "/id",
        "properties": {
            "pair": {"prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
            "b": {"const": 1, "unevaluatedProperties": False, "dependentSchemas": {"c": {"minProperties": 2}}},
        },
    }
    assert unchanged(schema) == schema


def test_only_keywords_of_draft_2020_12_are_kept() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$anchor": "top",
        "discriminator": {"propertyName": "kind"},
        "example": 1,
        "title": "T",
    }
    assert unchanged(schema) == {"title": "T"}


def test_reference_keeps_the_keywords_next_to_it() -> None:
    schema = {"$defs": {"a": {}}, "items": {"description": "D", "$ref": "#/$defs/a", "minimum": 1}}
    assert unchanged(schema)["items"] == {"description": "D", "minimum": 1, "$ref": f"{PLACE}/mine/$defs/a"}


def test_reference_to_a_part_of_a_tuple_names_its_place() -> None:
    schema = {"properties": {"pair": {"prefixItems": [{}, {}], "items": {}}, "it": {"$ref": "#/properties/pair/items"}}}
    assert unchanged(schema)["properties"]["it"] == {"$ref": f"{PLACE}/mine/properties/pair/items"}


def test_two_references_must_both_match() -> None:
    references = {"$ref": "#", "$dynamicRef": "urn:nowhere"}
    assert unchanged({"items": references})["items"] == {
        "allOf": [{"$ref": f"{PLACE}/mine"}, {"$comment": "see urn:nowhere"}]
    }


def test_comment_is_kept_next_to_a_reference_to_an_unknown_schema() -> None:
    assert unchanged({"items": {"$comment": "C", "$ref": "urn:nowhere"}})["items"] == {
        "$comment": "C",
        "allOf": [{"$comment": "see urn:nowhere"}],
    }
