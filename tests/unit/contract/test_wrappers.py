"""Tests that envelopes of other software are detected, and that the event in an envelope is found."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from bridge.contract.violations import BYTES
from bridge.contract.wrappers import (
    PARSED_CHARACTERS,
    PARSED_STRINGS,
    SEARCHED_LEVELS,
    SEARCHED_MEMBERS,
    SEARCHED_OBJECTS,
    SEARCHED_VALUES,
    Wrapped,
    broken_envelope,
    is_node_bytes,
    wrapped,
)

EVENT = {"pilot": "Chribba"}
TEXT = json.dumps(EVENT)
DECLARED = frozenset({"pilot", "ship", "timestamp"})


def found(document: object, pointer: str = "", declared: frozenset[str] = DECLARED) -> Wrapped | None:
    return wrapped(document, pointer, declared, lambda value: value == EVENT)


def place(document: object) -> str | None:
    """Returns the JSON Pointer to the event in a document."""
    what = found(document)
    return None if what is None else what.pointer


# Envelopes of other software


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            {"specversion": "1.0", "id": "1", "source": "/x", "type": "kill", "data": EVENT},
            "has the member 'specversion' of CloudEvents: publish the value of /data",
        ),
        (
            {"pattern": "kill", "data": EVENT},
            "has the members 'pattern' and 'data' of NestJS: publish the value of /data",
        ),
        (
            {"messageType": ["urn:x"], "message": EVENT},
            "has the members 'message' and 'messageType' of MassTransit: publish the value of /message",
        ),
        (
            {"jsonrpc": "2.0", "method": "kill", "params": {"kill": EVENT}},
            "has the member 'jsonrpc' of JSON-RPC: publish the value of /params/kill",
        ),
        (
            {"TopicArn": "arn", "Message": TEXT, "Timestamp": "now"},
            "has the members 'TopicArn' and 'Message' of Amazon SNS: publish the value of /Message",
        ),
        (
            {"task": "kill", "args": [EVENT], "kwargs": {}},
            "has the members 'task' and 'args' of Celery: publish the value of /args/0",
        ),
        (
            {"specversion": "1.0", "type": "kill", "data_base64": base64.b64encode(TEXT.encode()).decode()},
            "has the member 'specversion' of CloudEvents: publish the value of /data_base64, decoded from base64",
        ),
        (
            {"job": "kill", "data": {"ship": 1}},
            "has the members 'job' and 'data' of Laravel: publish the value of /data",
        ),
        (
            {"job": "kill", "data": json.dumps({"ship": 1})},
            "has the members 'job' and 'data' of Laravel: publish the value of /data",
        ),
        (
            {"class": "kill", "args": [{"ship": 1}]},
            "has the members 'class' and 'args' of Sidekiq: publish the value of /args",
        ),
        (
            {"task": "kill", "kwargs": {}, "args": [1, {"ship": 1}]},
            "has the members 'task' and 'args' of Celery: publish the value of /args",
        ),
    ],
    ids=str,
)
def test_envelope_of_another_library_is_named_with_its_members(document: object, text: str) -> None:
    assert found(document) == Wrapped("", text)


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ({"specversion": "1.0"}, "CloudEvents"),
        ({"specversion": "1.0", "data": None}, "CloudEvents"),
        ({"specversion": "1.0", "data": "<kill/>"}, "CloudEvents"),
        ({"specversion": "1.0", "data_base64": "AAECAwQFBgc="}, "CloudEvents"),
        ({"specversion": "1.0", "data_base64": 1}, "CloudEvents"),
        ({"job": "kill", "data": {"commandName": "Kill", "command": 'O:4:"Kill":0:{}'}}, "Laravel"),
        ({"job": "kill", "data": 'O:4:"Kill":0:{}'}, "Laravel"),
        ({"job": "kill", "data": {}}, "Laravel"),
        ({"class": "Kill", "args": [123, "abc"]}, "Sidekiq"),
        ({"class": "Kill", "args": []}, "Sidekiq"),
        ({"task": "kill", "args": [], "kwargs": {"id": 5}}, "Celery"),
        ({"payload": "H4sIAAAA", "payload_encoding": "base64"}, "RabbitMQ's HTTP API"),
        ({"TopicArn": "arn", "Message": "hello"}, "Amazon SNS"),
    ],
    ids=str,
)
def test_envelope_without_an_event_asks_for_the_event_as_plain_json(document: object, name: str) -> None:
    what = found(document)
    assert what is not None
    assert what.text.endswith(f" of {name}: publish the event as plain JSON")


@pytest.mark.parametrize(
    ("document", "members", "at"),
    [
        ({"channel": "kills", "data": {"a": 1}}, "members 'channel' and 'data'", "/data"),
        ({"topic": "kills", "payload": json.dumps({"a": 1})}, "members 'topic' and 'payload'", "/payload"),
        ({"job": "kill", "body": [1]}, "members 'job' and 'body'", "/body"),
        ({"payload": {"a": 1}}, "member 'payload'", "/payload"),
        ({"event": "kill", "value": {"a": 1}, "ship": 1}, "members 'event', 'value' and 'ship'", "/value"),
    ],
    ids=str,
)
def test_unknown_envelope_is_detected_by_its_members(document: object, members: str, at: str) -> None:
    assert found(document) == Wrapped("", f"has the {members} of an envelope: publish the value of {at}")
    inside = found(document, "/data")
    assert inside == Wrapped("/data", f"has the {members} of an envelope: publish the value of /data{at}")


@pytest.mark.parametrize(
    "document",
    [
        *({}, [], None, 1, "x", TEXT, {"ship": 1}, {"pilto": 1}, {"pilto": 1, "data": {"a": 1}}),
        *(
            {"channel": "kills", "data": 1},
            {"event": "kill"},
            {"message": "hello"},
            {"payload": {}},
            {"payload": "{}x"},
        ),
        {"pilot": 1, "ship": 2, "pattern": "x", "data": {"a": 1}},
        {"pilot": 1, "ship": 2, "channel": "x", "payload": {"a": 1}},
        {"pilot": 1, "ship": 2, "type": "kill", "data": {"a": 1}},
    ],
    ids=str,
)
def test_incomplete_document_is_not_an_envelope(document: object) -> None:
    assert found(document) is None


@pytest.mark.parametrize(
    "document",
    [{"job": "x", "data": {"a": 1}}, {"channel": "x", "payload": {"a": 1}}, {"type": "x", "data": {"a": 1}, "by": 1}],
    ids=str,
)
def test_declared_members_are_not_an_envelope(document: dict[str, Any]) -> None:
    assert found(document) is not None
    assert found(document, declared=frozenset(document)) is None


@pytest.mark.parametrize(
    "document",
    [
        {"type": "Buffer", "data": list(TEXT.encode())},
        {"type": "Buffer", "data": [31, 139]},
        {str(at): byte for at, byte in enumerate(TEXT.encode())},
        dict(zip(map(str, range(5000)), [65] * 5000, strict=True)),
    ],
    ids=lambda document: str(document)[:40],
)
def test_buffer_of_node_is_named(document: object) -> None:
    assert found(document, "/data") == Wrapped("/data", BYTES)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "Buffer", "data": [1, 256]},
        {"type": "Buffer", "data": "x"},
        {"type": "Buffer"},
        {"type": "buffer", "data": [1, 2]},
        {"type": "Buffer", "data": [1, 2], "more": 1},
        {"0": 1},
        {"0": 1, "2": 1},
        {"1": 1, "2": 1},
        {"0": 1, "1": "x"},
    ],
    ids=str,
)
def test_object_that_only_resembles_a_buffer_is_not_one(document: dict[str, Any]) -> None:
    assert not is_node_bytes(document)


# Documents with the bridge's own envelope


@pytest.mark.parametrize(
    ("document", "pointer", "text"),
    [
        ({"type": "kill", "data": EVENT, "by": 1}, "/by", "remove the member 'by'"),
        ({"by": 1, "type": "kill", "id": 1, "data": 1, "a/b": 1}, "/by", "remove the members 'by' and 'a/b'"),
        ({"type": "kill", "data": 1, "a/b": 1}, "/a~1b", "remove the member 'a/b'"),
        ({"type": 1, "data": EVENT}, "/type", "the type of an envelope must be a string; got 1"),
        ({"type": None, "data": EVENT, "timestamp": 1}, "/type", "the type of an envelope must be a string; got null"),
        (
            {"type": "kill", "data": 1, **dict.fromkeys(map(str, range(5000)))},
            "/0",
            "remove the members '0', '1', '2', '3', '4', '5', '6', '7' and 4992 more",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_problem_of_a_broken_envelope_is_named(document: dict[str, Any], pointer: str, text: str) -> None:
    for what, prefix in (
        (broken_envelope(document, "/x"), "/x"),
        (found(document), ""),
        (found(document, "/data"), "/data"),
    ):
        assert what is not None
        assert what.pointer == prefix + pointer
        assert what.text.startswith(text)


@pytest.mark.parametrize("document", [{"type": "kill"}, {"data": 1}, {"type": "kill", "data": 1, "id": 1}], ids=str)
def test_envelope_and_half_of_one_are_not_broken(document: dict[str, Any]) -> None:
    assert broken_envelope(document, "") is None


# Finding the event in a document


@pytest.mark.parametrize(
    ("document", "pointer", "text"),
    [
        ({"a": EVENT}, "/a", "contains a valid event: publish only that event"),
        ({"a": TEXT}, "/a", "contains a valid event as a JSON string: publish only that event"),
        (
            {"a": json.dumps({"b": {"c": EVENT}})},
            "/a",
            "contains a valid event as a JSON string: publish only that event",
        ),
        ({"a": 1, "b/c": {"d": EVENT}}, "/b~1c/d", "contains a valid event: publish only that event"),
        ({"a": [EVENT, EVENT]}, "/a/0", "contains a valid event: publish each item of the array as a separate event"),
        ({"pilot": 1, "ship": 2, "b": EVENT}, "/b", "contains a valid event: publish only that event"),
        (["kill", EVENT], "/1", "contains a valid event: publish only that event"),
        ([[EVENT], {}, {}], "/0/0", "contains a valid event: publish each item of the array as a separate event"),
        (
            {"data": {"type": "x", "data": 1}, "b": {"a": {"a": EVENT}}},
            "/b/a/a",
            "contains a valid event: publish only that event",
        ),
    ],
    ids=str,
)
def test_pointer_leads_to_the_event_in_the_document(document: object, pointer: str, text: str) -> None:
    assert found(document) == Wrapped(pointer, text)


def test_array_of_events_is_not_a_wrapper() -> None:
    assert found([EVENT, EVENT]) is None


def test_declared_member_is_not_searched() -> None:
    assert place({"ship": EVENT}) is None
    assert place({"x": {"ship": EVENT}}) == "/x/ship"


def nested(levels: int) -> Any:
    return EVENT if not levels else {"x": nested(levels - 1)}


def test_search_ends_at_its_bounds() -> None:
    """An event at a bound of the search is found, and an event beyond this bound is not found."""
    assert place(nested(SEARCHED_LEVELS)) == "/x" * SEARCHED_LEVELS
    assert place(nested(SEARCHED_LEVELS + 1)) is None

    def members(number: int) -> dict[str, object]:
        return {**dict.fromkeys(map(str, range(number - 1)), 0), "last": EVENT}

    assert place(members(SEARCHED_MEMBERS)) == "/last"
    assert place(members(SEARCHED_MEMBERS + 1)) is None

    def objects(number: int) -> dict[str, object]:
        return {"a": [{"b": 1}] * (number // 2 - 1), "b": [{"b": 1}] * (number - number // 2), "last": {"c": EVENT}}

    assert place(objects(SEARCHED_OBJECTS - 1)) == "/last/c"
    assert place(objects(SEARCHED_OBJECTS + 2)) is None

    def texts(number: int) -> dict[str, object]:
        return {"a": "{" + " " * (number - 2) + "}", "b": TEXT}

    assert place(texts(PARSED_CHARACTERS - len(TEXT))) == "/b"
    assert place(texts(PARSED_CHARACTERS - len(TEXT) + 1)) is None


def test_search_visits_a_bounded_number_of_values() -> None:
    def values(number: int) -> dict[str, object]:
        # The search visits the event last, after "a" and "z", the 20 arrays, "y", and the 960 items of the arrays.
        others = dict.fromkeys(map(str, range(number - 984)), 0)
        return {**others, "a": [[0] * 48] * 20, "z": {"y": {"x": EVENT}}}

    assert place(values(SEARCHED_VALUES - 1)) == "/z/y/x"
    assert place(values(SEARCHED_VALUES)) is None


def test_search_parses_a_bounded_number_of_strings() -> None:
    def strings(number: int) -> dict[str, object]:
        return {**dict.fromkeys(map(str, range(number - 1)), "{"), "last": TEXT}

    assert place(strings(PARSED_STRINGS - 1)) == "/last"
    assert place(strings(PARSED_STRINGS)) is None


def test_text_that_only_looks_like_json_contains_no_event() -> None:
    assert place({"a": "{" + TEXT}) is None
    assert place({"a": f" {TEXT} "}) == "/a"
    assert place({"a": json.dumps(TEXT)}) is None
