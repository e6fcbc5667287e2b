"""Tests what causes a warning about a schema file, what the warning says, and which files cause no warning."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.contract.schema_lint import MOST_PER_FILE, SchemaWarning, lint, not_read, unusual_name
from bridge.contract.similar import COMPARED_NAMES

DECLARED = {"moveId": {"integer"}, "fleet": {"object"}, "note": {"string", "null"}}


def details(schema: dict[str, Any]) -> list[str]:
    return [f"{pointer}: {detail}" for pointer, detail in lint(schema, DECLARED)]


# Files


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("event.JSON", "name ends with .json"),
        ("event.Json", "name ends with .json"),
        ("event.json ", "name ends with .json"),
        ("event.json.txt", "name ends with .json"),
        ("event.json5", "name ends with .json"),
        ("event.jsonc", "name ends with .json"),
        ("event.jsn", "name ends with .json"),
        ("event.schema", "name ends with .json"),
        ("event.jsonschema", "name ends with .json"),
        ("event.yaml", "name ends with .json"),
        ("event.YML", "name ends with .json"),
        ("._event.json", "begins with a dot"),
        (".#event.json", "begins with a dot"),
        (".json", "begins with a dot"),
        (".event.YAML", "begins with a dot"),
        ("ev\udcffent.json", "is not UTF-8"),
        ("ev\nent.json", "not printable"),
        ("event\u200b.json", "not printable"),
        ("\ufeffevent.json", "not printable"),
        ("x" * 256 + ".json", "at most 255 bytes"),
        ("ä" * 128 + ".json", "at most 255 bytes"),
    ],
)
def test_file_that_only_looks_like_a_schema_file_gets_a_reason(name: str, words: str) -> None:
    reason = not_read(name)
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize(
    "name",
    [
        *("event.json", "fleet-move.json", "x" * 255 + ".json", "shared parts.json", "a.b.json", "ärger.json"),
        *("README.md", "event.json~", "event.json.bak", ".event.json.swp", "events.ndjson", "Makefile", "..data"),
    ],
)
def test_name_of_a_schema_file_or_of_another_file_gets_no_reason(name: str) -> None:
    assert not_read(name) is None


@pytest.mark.parametrize(
    "name", ["event.json.bak", "event.json~", "event.json.orig", "Event.JSON.2", "event.json.disabled", "event.jsonl"]
)
def test_backup_of_a_schema_file_gets_a_reason_in_a_folder_without_schema_files(name: str) -> None:
    assert not_read(name, alone=True) == "not read: a schema file contains JSON, and its name ends with .json"
    assert not_read(name) is None


@pytest.mark.parametrize("name", ["event.json", "README.md", "events.ndjson", "Makefile"])
def test_name_of_another_file_gets_no_reason_in_a_folder_without_schema_files(name: str) -> None:
    assert not_read(name, alone=True) is None


@pytest.mark.parametrize(
    ("stem", "meant"),
    [
        ("killmail.schema", "killmail"),
        ("killmail.Schema", "killmail"),
        ("killmail.json", "killmail"),
        (" killmail", "killmail"),
        ("killmail ", "killmail"),
        ("killmail (1)", "killmail"),
        ("killmail - Copy", "killmail"),
        ("killmail copy 2", "killmail"),
        ("Copy of killmail", "killmail"),
    ],
)
def test_warning_about_an_unusual_name_names_the_probable_type(stem: str, meant: str) -> None:
    assert unusual_name(stem) == (
        f"the file's name gives the update type {stem!r}; if you mean {meant!r}, rename the file to {meant}.json"
    )


def test_warning_about_a_name_of_blanks_names_no_type() -> None:
    assert unusual_name("  ") == "the file's name gives the update type '  '; rename the file"


@pytest.mark.parametrize(
    "stem", ["killmail", "fleet-move", "fleet move", "v1.2", "schema", "json", "copy", "fleet.move"]
)
def test_usual_name_causes_no_warning(stem: str) -> None:
    assert unusual_name(stem) is None


# Keywords


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("requierd", "required"),
        ("Required", "required"),
        ("propertys", "properties"),
        ("additional_properties", "additionalProperties"),
        ("maxlength", "maxLength"),
        ("tpye", "type"),
        ("anyof", "anyOf"),
        ("ref", "$ref"),
        ("exmaples", "examples"),
        ("comment", "$comment"),
        ("x_identity", "x-identity"),
        ("X-Role", "x-role"),
    ],
)
def test_warning_about_an_unknown_keyword_names_a_similar_keyword(keyword: str, meant: str) -> None:
    assert details({keyword: 1}) == [
        f"/{keyword}: the keyword {keyword!r} is unknown and has no effect; did you mean {meant}?"
    ]


@pytest.mark.parametrize("keyword", ["version", "", "\x1b[2J", "日本"])
def test_unknown_keyword_without_a_similar_keyword_causes_a_warning(keyword: str) -> None:
    [line] = details({keyword: 1})
    assert line.endswith("is unknown and has no effect; prefix your own keywords with x-")
    assert line.isprintable()


@pytest.mark.parametrize(
    ("keyword", "instead"),
    [
        ("dependencies", "dependentRequired or dependentSchemas"),
        ("additionalItems", "items, with prefixItems"),
        ("id", "$id"),
        ("nullable", '"null" in a list of types'),
        ("example", "examples, a list"),
        ("$recursiveRef", "$dynamicRef"),
        ("divisibleBy", "multipleOf"),
    ],
)
def test_warning_about_a_keyword_of_another_draft_or_of_openapi_names_its_replacement(
    keyword: str, instead: str
) -> None:
    [line] = details({keyword: {}})
    assert f"the keyword {keyword!r} has no effect in draft 2020-12; use {instead}" in line


@pytest.mark.parametrize("keyword", ["x-identiy", "x-Identity", "x-identifier", "x-rol"])
def test_misspelled_own_keyword_causes_a_warning(keyword: str) -> None:
    [line] = details({keyword: "/moveId"})
    assert "has no effect; did you mean x-" in line


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"properties": {"a/b": {"requierd": []}}}, "/properties/a~1b/requierd"),
        ({"$defs": {"a": {"requierd": []}}}, "/$defs/a/requierd"),
        ({"allOf": [{}, {"requierd": []}]}, "/allOf/1/requierd"),
        ({"if": {"not": {"requierd": []}}}, "/if/not/requierd"),
        ({"items": {"prefixItems": [{"requierd": []}]}}, "/items/prefixItems/0/requierd"),
        ({"dependentSchemas": {"a": {"requierd": []}}}, "/dependentSchemas/a/requierd"),
        ({"patternProperties": {"^a": {"requierd": []}}}, "/patternProperties/^a/requierd"),
        ({"unevaluatedProperties": {"requierd": []}}, "/unevaluatedProperties/requierd"),
        ({"contentSchema": {"requierd": []}}, "/contentSchema/requierd"),
    ],
)
def test_unknown_keyword_is_found_in_every_kind_of_subschema(schema: dict[str, Any], pointer: str) -> None:
    assert [found for found, _ in lint(schema, DECLARED)] == [pointer]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"requierd": {}, "id": {}, "nullable": True}, "patternProperties": {"id": {}}},
        {"$defs": {"requierd": {}}, "definitions": {"id": {}}},
        {"const": {"requierd": 1}, "enum": [{"id": 1}], "default": {"id": 1}, "examples": [{"nullable": 1}]},
        {"dependentRequired": {"id": ["nullable"]}, "dependentSchemas": {"id": {}}},
        {"x-unit": "ISK", "x-anything": {"requierd": 1}, "x-form-of": "killmail"},
        {"$schema": "", "$id": "", "$anchor": "a", "$comment": "", "$vocabulary": {}, "$dynamicAnchor": "b"},
        {"x-identity": None},
    ],
    ids=repr,
)
def test_names_values_and_extensions_are_not_keywords(schema: dict[str, Any]) -> None:
    assert details(schema) == []


@pytest.mark.parametrize("keyword", ["x-identity", "x-role"])
def test_own_keyword_in_a_subschema_causes_a_warning(keyword: str) -> None:
    assert details({"properties": {"a": {keyword: "/b"}}}) == [
        f"/properties/a/{keyword}: {keyword} has an effect only at the top level of a schema file"
    ]


def test_deeply_nested_schema_is_searched_completely() -> None:
    schema: dict[str, Any] = {"requierd": []}
    for _ in range(5000):
        schema = {"not": schema}
    [(pointer, _)] = lint(schema, DECLARED)
    assert pointer.endswith("/not/requierd")


@pytest.mark.parametrize(("count", "said"), [(MOST_PER_FILE, MOST_PER_FILE), (MOST_PER_FILE + 1, MOST_PER_FILE)])
def test_number_of_warnings_of_a_file_is_bounded(count: int, said: int) -> None:
    found = lint({f"wrong{number}": 1 for number in range(count)}, DECLARED)
    assert len(found) == said
    assert (("", "the file has more problems of this kind") in found) == (count > MOST_PER_FILE)


# Members


def test_warning_about_an_undeclared_identity_names_a_similar_member() -> None:
    assert details({"x-identity": "/moveID"}) == [
        "/x-identity: the schema declares no member 'moveID', so updates are probably not identified; "
        "did you mean 'moveId'?"
    ]
    assert details({"x-identity": "/pilot"}) == [
        "/x-identity: the schema declares no member 'pilot', so updates are probably not identified; "
        "declare it in properties"
    ]


def test_identity_is_compared_with_a_bounded_number_of_members() -> None:
    def hint(members: int) -> str:
        declared = dict.fromkeys(["moveId", *map(str, range(members - 1))], frozenset({"integer"}))
        [(_, detail)] = lint({"x-identity": "/moveID"}, declared)
        return detail.rpartition("; ")[2]

    assert hint(COMPARED_NAMES) == "did you mean 'moveId'?"
    assert hint(COMPARED_NAMES + 1) == "declare it in properties"


def test_identity_that_is_never_a_string_or_a_number_causes_a_warning() -> None:
    assert details({"x-identity": "/fleet"}) == [
        "/x-identity: 'fleet' is never a string or a number, so it identifies no update"
    ]


def test_identity_in_a_file_that_is_not_an_update_type_causes_a_warning() -> None:
    assert lint({"x-role": "definitions", "x-identity": "/moveId"}, None) == [
        ("/x-identity", "x-identity has an effect only in the schema of an update type")
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"x-identity": "/moveId"},
        {"x-identity": "/note"},
        {"x-identity": "/pilot", "required": ["pilot"]},
        {"x-identity": "/pilot", "additionalProperties": {"type": "string"}},
        {"x-identity": "/pilot", "patternProperties": {"^p": {"type": "string"}}},
    ],
    ids=repr,
)
def test_declared_identity_causes_no_warning(schema: dict[str, Any]) -> None:
    assert details(schema) == []


def test_identity_with_escapes_is_unescaped_before_it_is_compared() -> None:
    assert lint({"x-identity": "/a~1b~0"}, {"a/b~": {"string"}}) == []


@pytest.mark.parametrize(
    ("required", "declared"),
    [
        *(("sytemId", "systemId"), ("pilto", "pilot"), ("nmae", "name"), ("Pliot", "pilot"), ("hsip", "ship")),
        *(("sohlar", "solhar"), ("PILOT", "pilot"), ("tpye", "type"), ("isk_vlaue", "isk_value")),
    ],
)
def test_required_name_that_is_similar_to_a_declared_one_causes_a_warning(required: str, declared: str) -> None:
    assert details({"properties": {declared: {}, "at": {}}, "required": ["at", required]}) == [
        f"/required/1: the property {required!r} is not declared; did you mean {declared!r}?"
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"required": ["pilot"]},
        {"properties": {"attackers": {}, "ship": {}}, "required": ["attackerId", "chip"]},
        {"properties": {"pilot": {}, "pilto": {}}, "required": ["pilto"]},
        {"properties": {"systemId": {}}, "required": ["pilot", "systemId"]},
        {"properties": {"killmailId": {}}, "required": ["killmailId", "killmailIds"]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    ],
    ids=repr,
)
def test_required_name_that_is_declared_elsewhere_or_nowhere_causes_no_warning(schema: dict[str, Any]) -> None:
    assert details(schema) == []


@pytest.mark.parametrize(
    ("warning", "line"),
    [
        (SchemaWarning("a.json", "/x", "why"), "a.json: /x: why"),
        (SchemaWarning("a.json", "", "why"), "a.json: why"),
    ],
)
def test_warning_is_one_line(warning: SchemaWarning, line: str) -> None:
    assert str(warning) == line
