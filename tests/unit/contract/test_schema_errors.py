"""Tests of the errors that tell an author why a schema file can't be used."""

from __future__ import annotations

import jsonschema_rs
import pytest

from bridge.contract.schema_errors import FORMATS, TYPES, describe_error

IDS = {"killmail": "urn:edk-bridge:schema:killmail", "duel": "https://example.org/duel"}
KNOWN = "the types are array, boolean, integer, null, number, object, string"


def error_of(schema: dict[str, object]) -> str:
    """Compiles a schema as the bridge compiles its schema files, and returns the error."""
    schema = {"$id": "urn:own", **schema}
    with pytest.raises((ValueError, TypeError)) as raised:
        jsonschema_rs.Draft202012Validator(
            schema,
            registry=jsonschema_rs.Registry([("urn:own", schema)]),
            validate_formats=True,
            ignore_unknown_formats=False,
        )
    return describe_error(raised.value, IDS)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("int", f"'int' is not a type; did you mean integer? {KNOWN}"),
        ("Str", f"'Str' is not a type; did you mean string? {KNOWN}"),
        ("float", f"'float' is not a type; did you mean number? {KNOWN}"),
        ("interger", f"'interger' is not a type; did you mean integer? {KNOWN}"),
        ("Object", f"'Object' is not a type; did you mean object? {KNOWN}"),
        ("any", f"'any' is not a type; {KNOWN}"),
        (["string", "nul"], f"'nul' is not a type; did you mean null? {KNOWN}"),
        (["string", 5], f"type must be the name of a type or a list of names; {KNOWN}"),
        (["string", None], f"type must be the name of a type or a list of names; {KNOWN}"),
        (5, f"type must be the name of a type or a list of names; {KNOWN}"),
        ({"type": "string"}, f"type must be the name of a type or a list of names; {KNOWN}"),
        ([], "a list of types must not be empty"),
        (["string", "string"], "a list of types must name each type once"),
    ],
    ids=repr,
)
def test_error_for_an_unknown_type_names_a_similar_type(value: object, problem: str) -> None:
    assert error_of({"type": value}) == f"/type: {problem}"
    assert error_of({"properties": {"a": {"items": {"type": value}}}}) == f"/properties/a/items/type: {problem}"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("datetime", "did you mean date-time?"),
        ("date_time", "did you mean date-time?"),
        ("Date-Time", "did you mean date-time?"),
        ("ipv5", "did you mean ipv"),
        ("uid", "did you mean uuid?"),
        ("colour", "the formats are date, date-time, time, "),
    ],
)
def test_error_for_an_unknown_format_names_a_similar_format(value: str, hint: str) -> None:
    assert error_of({"format": value}).startswith(f"/format: {value!r} is not a format; {hint}")


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_known_to_the_library(name: str) -> None:
    jsonschema_rs.Draft202012Validator({"format": name}, validate_formats=True, ignore_unknown_formats=False)


@pytest.mark.parametrize("name", TYPES)
def test_each_type_is_known_to_the_library(name: str) -> None:
    jsonschema_rs.Draft202012Validator({"type": name})


@pytest.mark.parametrize(
    ("reference", "absent", "hint"),
    [
        ("urn:edk-bridge:schema:killmial", "urn:edk-bridge:schema:killmial", "did you mean urn:edk-bridge:schema:kill"),
        ("urn:edk-bridge:schema:kilmail#/$defs/x", "urn:edk-bridge:schema:kilmail", "did you mean urn:edk-bridge:sch"),
        ("killmail.json", "killmail.json", "did you mean urn:edk-bridge:schema:killmail?"),
        ("duel", "duel", "did you mean https://example.org/duel?"),
        ("https://example.org/deul", "https://example.org/deul", "did you mean https://example.org/duel?"),
        ("https://example.com/x/duel.json", "https://example.com/x/duel.json", "did you mean https://example.org/duel"),
        ("urn:x", "urn:x", "$ref takes the $id of another file, such as urn:edk-bridge:schema:killmail"),
        ("http://127.0.0.1:1/x", "http://127.0.0.1:1/x", "$ref takes the $id of another file"),
    ],
)
def test_error_for_an_unresolved_reference_names_a_similar_id(reference: str, absent: str, hint: str) -> None:
    assert error_of({"items": {"$ref": reference}}).startswith(f"no schema file has the $id {absent!r}; {hint}")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"minimum": "x"}, '/minimum: "x" is not of type'),
        ({"$ref": "#/$defs/a"}, "the schema: Pointer '/$defs/a' does not exist"),
        ({"properties": {"type": 5}}, "/properties/type: 5 is not of type"),
        ({"pattern": "("}, '/pattern: "(" is not a "regex"'),
    ],
)
def test_other_errors_are_those_of_the_library_with_their_place(schema: dict[str, object], words: str) -> None:
    assert error_of(schema).startswith(words)


def test_error_without_a_place_is_that_of_the_library() -> None:
    assert describe_error(ValueError("Recursion limit reached"), IDS) == "Recursion limit reached"
