"""The sentence about a value that violates a schema is short, and begins with the problem."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from bridge.contract.violations import (
    BYTES,
    COMPARED_CHARACTERS,
    COMPARED_MEMBERS,
    PARSED_BYTES,
    SAMPLED_BYTES,
    describe,
    holds_bytes,
    holds_json,
    listed,
    shown,
)

DATE_TIMES = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})$"
DATE_TIME = "is not a valid date-time: write it as 2024-10-22T10:30:00Z"


def sentence(schema: Any, value: object) -> str:
    """Returns the sentence about a value that is a member of an object."""
    validator = jsonschema_rs.Draft202012Validator({"properties": {"m": schema}}, validate_formats=True)
    [error] = validator.iter_errors({"m": value})
    return describe(error)


def sentence_for_event(schema: Any, value: object) -> str:
    [error] = jsonschema_rs.Draft202012Validator(schema).iter_errors(value)
    return describe(error)


@pytest.mark.parametrize(
    ("schema", "value", "words"),
    [
        ({"type": "integer"}, "Jita", '"Jita" is not of type "integer"'),
        ({"type": "integer"}, None, 'null is not of type "integer"'),
        ({"type": "integer"}, [1, 2], 'an array of 2 items is not of type "integer"'),
        ({"type": "integer"}, {"a": 1}, 'an object is not of type "integer"'),
        ({"type": ["integer", "null"]}, {}, 'an empty object is not of type "null" or "integer"'),
        ({"type": ["string", "object"]}, [], 'an empty array is not of type "string" or "object"'),
        ({"enum": [1, 2, "a"]}, 3, '3 is not one of 1, 2 or "a"'),
        ({"enum": list(range(8))}, 9, "9 is not one of 0, 1, 2, 3, 4, 5, 6 or 7"),
        ({"enum": list(range(5000))}, -1, "-1 is not one of 0, 1, 2, 3, 4, 5, 6, 7 or 4992 more"),
        ({"enum": [1]}, {"a": 1}, "an object is not one of 1"),
        ({"const": {"a": 1}}, 3, 'expected {"a": 1}; got 3'),
        ({"minimum": 3}, 1, "1 is less than the minimum of 3"),
        ({"maximum": 3}, 5.5, "5.5 is greater than the maximum of 3"),
        ({"exclusiveMinimum": 3}, 3, "3 is not greater than 3"),
        ({"exclusiveMaximum": 3}, 3, "3 is not less than 3"),
        ({"multipleOf": 2}, 3, "3 is not a multiple of 2"),
        ({"minLength": 1}, "", '"" is shorter than 1 character'),
        ({"maxLength": 2}, "abc", '"abc" is longer than 2 characters'),
        ({"minItems": 2}, [0], "an array of 1 item has fewer than 2 items"),
        ({"maxItems": 1}, [0, 1], "an array of 2 items has more than 1 item"),
        ({"minProperties": 2}, {"a": 1}, "an object has fewer than 2 members"),
        ({"maxProperties": 1}, {"a": 1, "b": 2}, "an object has more than 1 member"),
        ({"uniqueItems": True}, [1, 1], "an array of 2 items has duplicates"),
        ({"pattern": "^a"}, "b", '"b" does not match "^a"'),
        ({"format": "date"}, "b", '"b" is not a valid "date"'),
        *((schema, "b", f'"b" {DATE_TIME}') for schema in ({"format": "date-time"}, {"pattern": DATE_TIMES})),
        ({"pattern": r"^\d{4}-\d\d-\d\dT.*Z$"}, "2024", f'"2024" {DATE_TIME}'),
        ({"pattern": "^[0-9TZ:-]+$"}, "b", '"b" does not match "^[0-9TZ:-]+$"'),
        ({"contains": {"const": 1}}, [2], "an array of 1 item violates 'contains' in the schema"),
        ({"anyOf": [{"type": "null"}, {"const": 1}]}, "x", "\"x\" matches none of the schemas in 'anyOf'"),
        ({"oneOf": [{"type": "null"}, {"const": 1}]}, "x", "\"x\" matches none of the schemas in 'oneOf'"),
        ({"oneOf": [{"type": "integer"}, {"const": 1}]}, 1, "1 matches more than one of the schemas in 'oneOf'"),
        ({"not": {"type": "integer"}}, 1, "1 violates 'not' in the schema"),
        (False, 1, "1 is not allowed here"),
        ({"unevaluatedItems": False}, [1], "an array of 1 item has more items than are allowed"),
        (
            {"additionalProperties": False},
            {"a": [1]},
            "no other members are allowed; got one with the value an array of 1 item",
        ),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"b": 1}, "the member 'b' is not allowed"),
        ({"unevaluatedProperties": False}, {"a": 1, "b": 2}, "the members 'a' and 'b' are not allowed"),
        (
            {"propertyNames": {"maxLength": 2}},
            {"abc": 1},
            'a member\'s name is not allowed: "abc" is longer than 2 characters',
        ),
        ({"required": ["a"]}, {}, "the member 'a' is missing"),
        ({"type": "object"}, '{"a": 1}', "JSON in a JSON string: encode it only once"),
        ({"type": "array"}, "[1]", "JSON in a JSON string: encode it only once"),
        ({"type": "object"}, "{oops}", '"{oops}" is not of type "object"'),
        ({"type": "integer"}, "[1]", '"[1]" is not of type "integer"'),
    ],
    ids=str,
)
def test_violation_names_the_actual_and_the_expected_value(schema: Any, value: object, words: str) -> None:
    assert sentence(schema, value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "expected an object; got null"),
        (True, "expected an object; got the boolean true"),
        (0, "expected an object; got the number 0"),
        (1.5, "expected an object; got the number 1.5"),
        ("", "expected an object; got an empty string"),
        ("hello", 'expected an object; got the string "hello"'),
        ([], "expected an object; got an empty array"),
        (
            [1, 2, 256],
            "an array of 3 items: publish each item as a separate event (jq -c '.[]' writes one item on each line)",
        ),
        *((list(body), BYTES) for body in (b"{}", b'{"a": 1}' * 20, b"\x1f\x8b\x08\x00", b"[\xff" * 5000)),
        ('{"a": 1}', "JSON in a JSON string: encode it only once"),
        (json.dumps('{"a": 1}'), "JSON in a JSON string: encode it only once"),
    ],
    ids=repr,
)
def test_violation_of_the_whole_event_names_its_actual_type(value: object, words: str) -> None:
    assert sentence_for_event({"type": "object"}, value) == words


def test_violation_of_the_whole_event_names_several_expected_types() -> None:
    assert sentence_for_event({"type": ["string", "null"]}, [1]) == "expected null or a string; got an array of 1 item"
    assert sentence_for_event({"type": "integer"}, {"a": 1}) == "expected an integer; got an object"


@pytest.mark.parametrize(
    ("missing", "misspelled"),
    [
        *(("systemId", name) for name in ("sytemId", "SystemID", "system_id", "system-id", "SYSTEM_ID", "sysetmId")),
        *(("systemId", name) for name in ("solarSystemId", "systemIds", "system")),
        *(("ship_type_id", name) for name in ("shipTypeId", "shipId", "ship_typeid")),
        *(("kind", "knd"), ("title", "Title"), ("victim", "victm"), ("_", "-")),
    ],
)
def test_missing_member_is_named_with_its_misspelling(missing: str, misspelled: str) -> None:
    words = sentence({"required": [missing]}, {"other": 1, misspelled: 1, "more": 2})
    assert words == f"the member '{missing}' is missing; is '{misspelled}' a misspelling of it?"


def test_name_that_differs_only_in_case_has_priority_over_a_similar_one() -> None:
    assert "is 'system_id' a" in sentence({"required": ["systemId"]}, {"systemIds": 1, "system_id": 1})


@pytest.mark.parametrize(
    "name", ["other", "regionId", "typeId", "itemId", "", "s", "x" * 101 + "systemId", "systemId" * 13]
)
def test_missing_member_without_a_similar_member_has_no_hint(name: str) -> None:
    assert sentence({"required": ["systemId"]}, {name: 1}) == "the member 'systemId' is missing"


def test_member_of_the_schema_is_not_a_misspelling() -> None:
    value = {"killmailTime": 1, "killmail_id": 1}
    [error] = jsonschema_rs.Draft202012Validator({"required": ["killmailId"]}).iter_errors(value)
    assert describe(error, frozenset({"killmail_id", "killmailTime"})) == "the member 'killmailId' is missing"
    assert "'killmailTime'" in describe(error, frozenset({"killmail_id"}))


def test_misspelling_is_searched_among_a_bounded_number_of_members() -> None:
    for others, is_found in ((COMPARED_MEMBERS - 1, True), (COMPARED_MEMBERS, False)):
        value = {**dict.fromkeys(map(str, range(others))), "sytemId": 1}
        assert ("misspelling" in sentence({"required": ["systemId"]}, value)) is is_found
    for length in (COMPARED_CHARACTERS, COMPARED_CHARACTERS + 1):
        value = {"x" * length: 1}
        assert ("misspelling" in sentence({"required": ["X" * length]}, value)) is (length == COMPARED_CHARACTERS)


@pytest.mark.parametrize(
    ("value", "is_bytes"),
    [
        *((list(b"{}"), True), ([0, 255], True), ([255] * SAMPLED_BYTES + ["x"], True)),
        *(([], False), ([1], False), ([1, 256], False), ([1, -1], False), ([1, True], False), ([1, 1.0], False)),
        *((["a", "b"], False), ([{}, {}], False), ([255] * (SAMPLED_BYTES - 1) + ["x"], False)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_array_contains_bytes_if_its_first_items_are_bytes(value: list[object], *, is_bytes: bool) -> None:
    assert holds_bytes(value) is is_bytes


LONG = "start" + "x" * 10_000 + "end"


@pytest.mark.parametrize(
    "schema",
    [
        *(
            {"type": "integer"},
            {"enum": [1]},
            {"const": 1},
            {"maxLength": 5},
            {"pattern": "^a"},
            {"format": "date-time"},
        ),
        *({"anyOf": [{"type": "null"}, {"type": "integer"}]}, {"not": {"type": "string"}}, False),
    ],
    ids=str,
)
def test_long_value_is_shortened_in_the_middle(schema: Any) -> None:
    words = sentence(schema, LONG)
    words = words.removeprefix("expected 1; got ")
    assert words.startswith('"start')
    assert " ... " in words
    assert 'end"' in words
    assert words.index('end"') < 80


def test_names_and_options_of_any_length_and_number_are_bounded() -> None:
    names = dict.fromkeys([f"{number}{LONG}" for number in range(500)])
    for schema, value in (
        ({"properties": {"a": {}}, "additionalProperties": False}, names),
        ({"enum": list(names)}, 1),
        ({"const": list(names)}, 1),
        ({"pattern": LONG}, "y"),
        ({"propertyNames": {"maxLength": 2}}, {LONG: 1}),
        ({"required": [LONG]}, {}),
    ):
        assert len(sentence(schema, value)) <= 410


def test_value_is_escaped() -> None:
    assert shown("a\x1b\r\n\u2028") == '"a\\u001b\\r\\n\\u2028"'
    assert listed(["a\n", "b"], 2) == "'a\\n' and 'b'"


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        *(("{}", True), (' [1, "a"]\n', True), (r'"{\"a\": 1}"', True), (r'"\"[]\""', True)),
        *(("", False), ("{", False), ("}{", False), ("{a}", False), ('"a"', False), ("1", False), ("null", False)),
        ("[" + "0," * PARSED_BYTES + "0]", True),
        ('"' + "x" * PARSED_BYTES + '"', False),
        ('"{' + "x" * PARSED_BYTES + '"', True),
        ("{" + "x" * PARSED_BYTES + "}", True),
        ("[" * 2000 + "]" * 2000, False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_string_contains_json_if_it_is_an_encoded_object_or_array(text: str, *, is_json: bool) -> None:
    assert holds_json(text) is is_json
