"""Tests of `check`, which prints each violation in an event with its line, its pointer and its reason."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import jsonschema_rs
import pytest

from bridge.cli.check import check_events
from bridge.cli.common.events import EventFile, Problem
from bridge.contract import catalog
from bridge.contract.pipeline import Pipeline
from tests.support.killmail import ESI, EXAMPLE, killmail, packaged, r2z2, redisq, wrapped

SCHEMAS = catalog.load([catalog.PACKAGED])
GOOD = json.dumps(EXAMPLE).encode()


def checked(
    text: bytes | str, update_type: str | None = None, max_message_bytes: int = 2**20
) -> tuple[int, int, list[str]]:
    """Returns the number of events, the number of invalid events, and the printed lines."""
    lines: list[str] = []
    content = text.encode() if isinstance(text, str) else text
    counts = check_events(
        EventFile("f", io.BytesIO(content), update_type, "killmail"),
        Pipeline(SCHEMAS, max_message_bytes),
        lambda problem: lines.append(problem.as_text()),
    )
    return *counts, lines


def without(*members: str) -> dict[str, Any]:
    return {name: value for name, value in EXAMPLE.items() if name not in members}


@pytest.mark.parametrize(
    "event",
    [
        EXAMPLE,
        ESI,
        redisq(ESI),
        packaged(redisq(ESI)),
        r2z2(ESI),
        wrapped(EXAMPLE),
        wrapped(ESI),
        {**wrapped(EXAMPLE), "timestamp": "whenever"},
        {**wrapped(EXAMPLE), "timestamp": 1, "id": "1234-9f86d081"},
    ],
)
def test_valid_event_has_no_problems(event: object) -> None:
    assert checked(json.dumps(event)) == (1, 0, [])
    assert checked(json.dumps(event, indent=2), "killmail") == (1, 0, [])


def test_empty_input_has_no_event() -> None:
    assert checked("\n\n") == (0, 0, [])


def test_each_violation_of_an_event_has_its_own_line() -> None:
    event = json.dumps({**without("shipTypeId"), "systemId": "Jita", "victimId": -1}, indent=2)
    events, invalid, lines = checked(f"\n{event}\n")
    assert (events, invalid) == (1, 1)
    assert sorted(lines) == [
        "f:2: /shipTypeId: the member 'shipTypeId' is missing [schema-violation]",
        "f:5: /victimId: -1 is less than the minimum of 0 [schema-violation]",
        'f:8: /systemId: "Jita" is not of type "integer" [schema-violation]',
    ]


def test_line_numbers_are_those_of_the_file() -> None:
    events = [killmail(1), without("systemId"), killmail(3), {}, killmail(5, systemId=None)]
    text = "\n\n".join(map(json.dumps, events))
    count, invalid, lines = checked(text)
    assert (count, invalid) == (5, 3)
    assert [line.split(":")[1] for line in lines] == ["3", "7", "7", "7", "7", "7", "9"]


def test_pointer_leads_into_the_envelope() -> None:
    event = json.dumps(wrapped({**EXAMPLE, "systemId": "Jita"}), indent=2)
    [line] = checked(event)[2]
    assert line == 'f:9: /data/systemId: "Jita" is not of type "integer" [schema-violation]'
    assert '"Jita"' in event.splitlines()[8]


def test_pointer_leads_into_a_source_format() -> None:
    event = json.dumps(packaged(redisq({**ESI, "solar_system_id": "Jita"})), indent=2)
    [line] = checked(event)[2]
    assert "/package/killmail/solar_system_id: " in line
    number = int(line.split(":")[1])
    assert '"Jita"' in event.splitlines()[number - 1]


@pytest.mark.parametrize(
    ("text", "update_type", "line"),
    [
        ('{"package": null}', None, "f:1: /package: an empty RedisQ package: there was no new killmail [placeholder]"),
        (
            '\n{\n "type": "nonsense",\n "data": {}\n}',
            None,
            "f:3: /type: there is no schema for the type 'nonsense'; known types: "
            f"{', '.join(sorted(SCHEMAS.types))} [unknown-type]",
        ),
        (
            '{\n "data": {},\n "type": "statistics"\n}',
            "killmail",
            "f:3: /type: the envelope's type is 'statistics', but the message's type property is 'killmail'; use the "
            "same type in both [schema-violation]",
        ),
        ("[]", None, "f:1: expected an object; got an empty array [schema-violation]"),
        (
            "[{}, 1]",
            None,
            "f:1: an array of 2 items: publish each item as a separate event (jq -c '.[]' writes one item on each "
            "line) [schema-violation]",
        ),
        (
            "[" * 300 + "]" * 300,
            None,
            "f:1: the event is nested too deeply (about 250 levels are allowed) [not-json]",
        ),
    ],
)
def test_problem_is_reported_with_its_place(text: str, update_type: str | None, line: str) -> None:
    assert checked(text, update_type) == (1, 1, [line])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'\n{\n "killmailId": x\n}\n', "f:3:16: "),
        (b'{"killmailId": NaN}\n', "f:1:16: "),
        (GOOD + b'\n{"a": "\xc3\xa4", "b": x}\n', "f:2:17: "),
        (GOOD + b'\n\n{"a": "\xc3\xa4\xff"}\n', "f:3:9: "),
        (b'\n{\n "a": "\xc3\xa4",\n "b": "\xc3\xa4\xed\xa0\x80"\n}', "f:4:9: "),
        (b'{"a": "\\ud800"}', "f:1:8: "),
        (b"\n" + b"[" * 100_000 + b"]" * 100_000, "f:2:1026: "),
    ],
    ids=["word", "NaN", "after an umlaut", "no UTF-8", "half a pair in UTF-8", "half a pair", "deep"],
)
def test_syntax_error_is_reported_with_line_and_column(text: bytes, place: str) -> None:
    events, invalid, [line] = checked(text)
    assert (events, invalid) == (1 + text.startswith(GOOD), 1)
    assert line.startswith(place)
    assert line.endswith(" [not-json]")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (gzip.compress(GOOD, mtime=0)[:9], "f:1:1: looks like gzip: publish plain JSON in UTF-8 [not-json]"),
        (b"\n\xef\xbb\xbf" + GOOD, "f:2:1: begins with a UTF-8 byte order mark: remove it [not-json]"),
        (
            b"\n" + repr(EXAMPLE).encode(),
            "f:2:2: looks like Python's repr(): publish what json.dumps() writes [not-json]",
        ),
        (b'\n{"a": "\xe9"}', "f:2:8: looks like JSON in Latin-1 or Windows-1252: publish it in UTF-8 [not-json]"),
        (b'{"a": "\xff"}', "f:1:8: not UTF-8 [not-json]"),
        (b'\n{"a": 1', "f:2:8: unexpected end of data [not-json]"),
        (
            b'\n{"jsonrpc": "2.0",\n "params": {"systemId": 1}\n}',
            "f:2: the event has the member 'jsonrpc' of JSON-RPC: publish the value of /params [schema-violation]",
        ),
        (
            b'{\n "kill":\n' + GOOD + b"\n}",
            "f:3: /kill: contains a valid event: publish only that event [schema-violation]",
        ),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_other_format_is_named_with_its_place(text: bytes, line: str) -> None:
    assert checked(text) == (1, 1, [line])


def test_too_large_event_is_reported() -> None:
    big = json.dumps(killmail(1, note="x" * 5000))
    events, invalid, [line] = checked(f"{json.dumps(EXAMPLE)}\n{big}\n", max_message_bytes=4096)
    assert (events, invalid) == (2, 1)
    assert line.startswith("f:2: the body has ")
    assert line.endswith("[too-large]")


def test_members_with_odd_names_are_found() -> None:
    data = [{"a/b": {"~": 1}}, {"a/b": {"~": "x"}}]
    schema = {"items": {"properties": {"a/b": {"properties": {"~": {"type": "integer"}}}}}}
    own = catalog.Schema("odd", "urn:odd", jsonschema_rs.Draft202012Validator(schema), None)
    pipeline = Pipeline(catalog.Catalog({"odd": own}, {}, {}), 2**20)
    found: list[Problem] = []
    text = json.dumps(data, indent=1).encode()
    assert check_events(EventFile("f", io.BytesIO(text), "odd", "killmail"), pipeline, found.append) == (1, 1)
    assert [problem.as_text() for problem in found] == [
        'f:9: /1/a~1b/~0: "x" is not of type "integer" [schema-violation]'
    ]


def test_each_of_a_thousand_violations_has_its_line() -> None:
    event = json.dumps({**ESI, "attackers": [{"character_id": "x"}] * 1000}, indent=1)
    events, invalid, lines = checked(event)
    assert (events, invalid, len(lines)) == (1, 1, 1000)
    assert len({line.split(":")[1] for line in lines}) == 1000


def in_json(text: bytes, name: str = "f") -> list[dict[str, Any]]:
    lines: list[str] = []
    pipeline = Pipeline(SCHEMAS, 2**20)
    file = EventFile(name, io.BytesIO(text), None, "killmail")
    check_events(file, pipeline, lambda problem: lines.append(problem.as_json()))
    assert not any("\n" in line for line in lines)
    return [json.loads(line) for line in lines]


def test_violation_as_json_has_its_place_and_its_schema() -> None:
    text = json.dumps(wrapped({**without("shipTypeId"), "systemId": "Jita"}), indent=1).encode()
    found = sorted(in_json(b"\n" + text), key=lambda problem: str(problem["pointer"]))
    assert found == [
        {
            "file": "f",
            "line": 4,
            "column": None,
            "pointer": "/data/shipTypeId",
            "reason": "schema-violation",
            "detail": "the member 'shipTypeId' is missing",
            "schema": "urn:edk-bridge:schema:killmail",
        },
        {
            "file": "f",
            "line": 10,
            "column": None,
            "pointer": "/data/systemId",
            "reason": "schema-violation",
            "detail": '"Jita" is not of type "integer"',
            "schema": "urn:edk-bridge:schema:killmail",
        },
    ]


def test_syntax_error_as_json_has_a_column_and_no_schema() -> None:
    [problem] = in_json(b'\n{"a": "\xc3\xa4", x}')
    assert {name: problem[name] for name in ("line", "column", "pointer", "reason", "schema")} == {
        "line": 2,
        "column": 12,
        "pointer": "",
        "reason": "not-json",
        "schema": None,
    }


@pytest.mark.parametrize(
    ("name", "shown"),
    [("events\n\x1b.json", "events\n\x1b.json"), ("\udcff.json", "\\xff.json"), ("x" * 900, "x" * 900)],
)
def test_file_in_json_is_the_name_as_it_was_given(name: str, shown: str) -> None:
    [problem] = in_json(b"[]", name)
    assert problem["file"] == shown
    assert problem["detail"].startswith("expected an object; got an empty array")
