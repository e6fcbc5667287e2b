"""Finds events that are wrapped in something other than the bridge's envelope, and names the wrapper.

The bridge calls this module only for events that no schema accepts. The caller decides whether a part of a document is
an event. This module does not depend on the update types.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import orjson

from bridge.contract.body_format import of_base64
from bridge.contract.text import json_pointer
from bridge.contract.violations import BYTES, NAMES, SAMPLED_BYTES, holds_bytes, holds_json, listed, shown

ENVELOPE_MEMBERS = frozenset({"type", "data", "timestamp", "id"})
"""The members of an envelope. `type` and `data` are required."""

SEARCHED_MEMBERS = 64
"""The maximum number of members of an object, or items of an array, that are searched for an event."""
SEARCHED_LEVELS = 4
SEARCHED_VALUES = 1000
"""The maximum number of members and items that are searched in total, so that the search of a large rejected event
takes a bounded time."""
SEARCHED_OBJECTS = 64
"""The maximum number of objects in a rejected event that are validated as events."""
SEARCHED_CHARACTERS = 1024
"""The maximum number of characters of a base64 string that are examined."""
PARSED_STRINGS = 16
"""The maximum number of strings that are parsed as JSON."""
SEARCHED_SPACE = 64
"""The maximum length of white space before the JSON in a string, in characters."""
PARSED_CHARACTERS = 256 * 1024
"""The maximum total length of the strings that are parsed as JSON, in characters."""

_KNOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("CloudEvents", ("specversion",)),
    ("MassTransit", ("message", "messageType")),
    ("JSON-RPC", ("jsonrpc",)),
    ("Amazon SNS", ("TopicArn", "Message")),
    ("Amazon EventBridge", ("detail-type", "detail")),
    ("Google Pub/Sub", ("message", "subscription")),
    ("RabbitMQ's HTTP API", ("payload", "payload_encoding")),
    ("Celery", ("task", "args")),
    ("Celery", ("task", "kwargs")),
    ("Laravel", ("job", "data")),
    ("Sidekiq", ("class", "args")),
    ("Active Job", ("job_class", "arguments")),
    ("NestJS", ("pattern", "data")),
    ("Kafka Connect", ("schema", "payload")),
)
"""The members that identify the envelopes of other software.

If several entries match an event, the first matching entry is used.
"""

_CONTENTS = (
    *("data", "payload", "body", "message", "Message", "content", "detail", "params", "kwargs", "arguments", "args"),
    *("value", "result", "record", "records", "Records", "item", "items", "msg", "event", "job", "task", "data_base64"),
)
"""Common names of the member that holds an envelope's content, with the most likely name first."""

_LABELS = frozenset(
    {
        *("event", "channel", "topic", "type", "kind", "name", "action", "subject", "command", "cmd", "op", "method"),
        *("queue", "job", "task", "exchange", "routing_key", "routingKey", "eventType", "event_type", "eventName"),
        *("event_name", "messageType", "message_type", "messageId", "message_id", "headers", "properties", "meta"),
        *("metadata", "source", "version", "id", "uuid", "key", "pattern", "timestamp", "time", "ts", "status"),
    }
)
"""Common names of the members of an envelope that do not hold its content."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A wrapper around an event. The publisher must remove the wrapper."""

    pointer: str
    """The JSON Pointer to the problem, or to the event in the wrapper."""
    text: str
    """A printable text that describes the problem and its solution. In a message, the text follows the pointer."""


def wrapped(
    document: object,
    pointer: str,
    declared: frozenset[str],
    is_event: Callable[[object], bool],
    members: frozenset[str] = frozenset(),
) -> Wrapped | None:
    """Returns the wrapper around the event in a document, or None if the document has no known wrapper.

    The document itself is not an event. `pointer` is the JSON Pointer to the document. `declared` are the members that
    the document's schema names. A declared member is never a part of a wrapper. `members` are the names of undeclared
    members that an event may have.
    """
    if isinstance(document, list):
        inner = _find(document, frozenset(), is_event)
        # If the first item is an event, the document is an array of events, which the schema's violation already
        # reports.
        return _contained(inner, pointer) if inner is not None and inner.path != (0,) else None
    if not isinstance(document, dict):
        return None
    if is_node_bytes(document):
        return Wrapped(pointer, BYTES)
    # An envelope of other software may happen to have a member with the same name as a declared member.
    is_foreign = sum(name in document for name in declared - ENVELOPE_MEMBERS) <= 1
    known = _known(document, declared) if is_foreign else None
    if known is None and is_foreign and not declared >= {"type", "data"}:
        broken = broken_envelope(document, pointer)
        if broken is not None:
            return broken
    inner = _find(document, declared, is_event)
    if known is not None:
        name, markers = known
        place = json_pointer(list(inner.path)) if inner is not None else _first_content(document, declared | members)
        advice = f"publish the value of {pointer}{place}" if place else "publish the event as plain JSON"
        if inner is None and place == "/data_base64":
            advice += ", decoded from base64"
        return Wrapped(pointer, f"has the {_members(markers, len(markers))} of {name}: {advice}")
    if inner is not None:
        return _contained(inner, pointer)
    content = _content(document, declared) if is_foreign else None
    if content is not None:
        names = _members(document, len(document))
        return Wrapped(pointer, f"has the {names} of an envelope: publish the value of {pointer}/{content}")
    return None


def broken_envelope(document: Mapping[str, object], pointer: str) -> Wrapped | None:
    """Returns why an object with `type` and `data` is not an envelope.

    Returns None if the object is an envelope, or if `type` or `data` is missing.
    """
    if "type" not in document or "data" not in document:
        return None
    if extra := list(islice((name for name in document if name not in ENVELOPE_MEMBERS), NAMES + 1)):
        count = len(document) - sum(name in document for name in ENVELOPE_MEMBERS)
        return Wrapped(
            pointer + json_pointer([extra[0]]),
            f"remove the {_members(extra, count)}: an envelope has only 'type', 'data', 'timestamp' and 'id'",
        )
    if isinstance(document["type"], str):
        return None
    return Wrapped(f"{pointer}/type", f"the type of an envelope must be a string; got {shown(document['type'])}")


def is_node_bytes(document: Mapping[str, object]) -> bool:
    """Whether an object is the JSON.stringify() output for a Buffer or a Uint8Array."""
    if document.get("type") == "Buffer" and isinstance(data := document.get("data"), list):
        return len(document) == 2 and holds_bytes(data)
    first = dict(islice(document.items(), SAMPLED_BYTES))
    if str(len(document) - 1) not in document:
        return False
    return list(first) == list(map(str, range(len(first)))) and holds_bytes(list(first.values()))


@dataclass(frozen=True, slots=True)
class _Inner:
    """An event within a document."""

    path: tuple[str | int, ...]
    """The path to the event, or to the string that holds the event."""
    in_string: bool


def _find(
    document: dict[str, object] | list[object], declared: frozenset[str], is_event: Callable[[object], bool]
) -> _Inner | None:
    """Returns the first event in a document, in a breadth-first search."""
    queue = deque([(_Inner((), in_string=False), document, SEARCHED_LEVELS)])
    values, objects, strings, characters = SEARCHED_VALUES, SEARCHED_OBJECTS, PARSED_STRINGS, PARSED_CHARACTERS
    while queue:
        outer, value, levels = queue.popleft()
        for step, inner in _steps(value):
            values -= 1
            if not values:
                return None
            if not outer.path and step in declared:
                continue
            in_string = isinstance(inner, str)
            if isinstance(inner, str) and inner[:SEARCHED_SPACE].lstrip()[:1] == "{" and len(inner) <= characters:
                strings -= 1
                if not strings:
                    return None
                characters -= len(inner)
                inner = _parsed(inner)  # noqa: PLW2901 - replaces the string by its content
            if not isinstance(inner, (dict, list)) or not inner:
                continue
            found = outer if outer.in_string else _Inner((*outer.path, step), in_string)
            if isinstance(inner, dict):
                if is_event(inner):
                    return found
                objects -= 1
                if not objects:
                    return None
            if levels > 1:
                queue.append((found, inner, levels - 1))
    return None


def _steps(value: dict[str, object] | list[object]) -> Iterator[tuple[str | int, object]]:
    """Yields the first members of an object with their names, or the first items of an array with their indexes."""
    return islice(value.items() if isinstance(value, dict) else enumerate(value), SEARCHED_MEMBERS)


def _parsed(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _known(document: Mapping[str, object], declared: frozenset[str]) -> tuple[str, tuple[str, ...]] | None:
    for name, markers in _KNOWN:
        if document.keys() >= set(markers) and declared.isdisjoint(markers):
            return name, markers
    return None


def _first_content(document: Mapping[str, object], members: frozenset[str]) -> str:
    """Returns a JSON Pointer to the part of an envelope that may be an event, or "" if there is no such part."""
    return next(
        (f"/{name}" for name in _CONTENTS if name in document and _is_content(name, document[name], members)), ""
    )


def _is_content(name: str, value: object, members: frozenset[str]) -> bool:
    if isinstance(value, str):
        return of_base64(value[:SEARCHED_CHARACTERS]) == "JSON" if name == "data_base64" else holds_json(value)
    values = value[:SEARCHED_MEMBERS] if isinstance(value, list) else [value]
    return any(isinstance(each, dict) and not members.isdisjoint(each) for each in values)


def _content(document: Mapping[str, object], declared: frozenset[str]) -> str | None:
    """Returns the member that may contain an event, if the document has typical members of an envelope."""
    for name in _CONTENTS:
        if name in document and name not in declared and _may_hold_event(document[name]):
            others = (_LABELS | set(_CONTENTS)) - declared - {name}
            return name if len(document) == 1 or not others.isdisjoint(document) else None
    return None


def _may_hold_event(value: object) -> bool:
    return holds_json(value) if isinstance(value, str) else isinstance(value, (dict, list)) and bool(value)


def _contained(inner: _Inner, pointer: str) -> Wrapped:
    content = "a valid event as a JSON string" if inner.in_string else "a valid event"
    advice = "publish each item of the array as a separate event" if inner.path[-1] == 0 else "publish only that event"
    return Wrapped(pointer + json_pointer(list(inner.path)), f"contains {content}: {advice}")


def _members(names: Iterable[str], count: int) -> str:
    """Returns a phrase with the number of members, which is `count`, and the first few of their names."""
    return f"{'member' if count == 1 else 'members'} {listed(names, count)}"
