"""Creates the descriptions of messages in the AsyncAPI document: messages that clients receive or fetchers can publish.

The module creates the messages only from the schema files. The module does not know the channels on which messages are
sent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bridge.contract.catalog import schema_id
from bridge.contract.documents.embedding import Dialect, embed
from bridge.contract.killmail_formats import SourceFormat
from bridge.contract.pipeline import Reason

AMQP_BINDING = "0.3.0"
"""The version of AsyncAPI's AMQP binding."""

_SENT_MS = 1729593000123
"""The timestamp of example messages, which is 123 ms after the `timestamp` in the data of the examples."""

ID = "1235-9f86d081"
"""The id of example messages."""

_TYPE = "The message's `type` property must name this type, unless it is the exchange's default."

_REJECT_HEADERS = {
    "x-reject-detail": "One sentence that describes the problem.",
    "x-reject-pointer": "JSON Pointer to the wrong member; empty for the event as a whole.",
    "x-reject-schema": "The $id of the violated schema; empty if the reason is another one.",
    "x-reject-exchange": "The exchange that the event came from.",
    "x-reject-instance": "The name of the bridge that rejected the event.",
    "x-reject-time": "The time of the rejection: an RFC 3339 date-time.",
    "x-reject-user-id": "The event's user_id, if it had one. The broker accepts this property only from that user.",
    "x-reject-cluster-id": "The event's cluster_id, if it had one. AMQP libraries can't send this property.",
    "x-reject-expiration": "The event's expiration in milliseconds, if it had one. A rejected event does not expire.",
    "x-reject-headers": "Names the headers that can't be published again. Absent if there are none.",
}

Object = dict[str, object]


@dataclass(frozen=True, slots=True)
class File:
    """A schema file."""

    name: str
    key: str
    """The file's name, with only characters that AsyncAPI and OpenAPI allow in a key."""
    schema: Mapping[str, Any]

    @property
    def reference(self) -> Object:
        """A reference to the file's schema in the document."""
        return at("components", "schemas", self.key)

    @property
    def title(self) -> str:
        """The schema's title, or the file's name."""
        title = self.schema.get("title")
        return title if isinstance(title, str) else self.name

    @property
    def examples(self) -> Sequence[object]:
        """The schema's examples, which are not validated here."""
        examples: Sequence[object] = self.schema.get("examples", [])
        return examples


def read(documents: Mapping[str, bytes], dialect: Dialect) -> list[File]:
    """Returns the schema files for a document. `documents` maps the name of each file to its content."""
    names = {key(name): name for name in (file.removesuffix(".json") for file in documents)}
    schemas = {
        each: {"$id": schema_id(name), **orjson.loads(documents[f"{name}.json"])} for each, name in names.items()
    }
    embedded = embed(schemas, "#/components/schemas", dialect)
    return [File(name, each, embedded[each]) for each, name in names.items()]


def update(file: File, envelope: Mapping[str, Any]) -> Object:
    """Describes an update for clients without ids. `envelope` is the envelope's schema."""
    summary = f"An update of the type {file.name}, for clients without ids."
    return _enveloped(f"update.{file.name}", file.title, summary, file, envelope)


def update_with_id(file: File, envelope: Mapping[str, Any]) -> Object:
    """Describes an update for clients with ids. `envelope` is the schema of the envelope with an id."""
    title, summary = f"{file.title} (with an id)", f"An update of the type {file.name}, for clients with ids."
    return _enveloped(f"update-with-id.{file.name}", title, summary, file, envelope, has_id=True)


def own_message(file: File, envelope: Mapping[str, Any]) -> Object:
    """Describes one of the bridge's own messages, which clients with ids receive."""
    has_id = "id" in file.schema.get("properties", {})
    note = "Its data has the id to resume after." if has_id else "It has no id: the client keeps the id that it has."
    summary = f"A message of the type {file.name}, for clients with ids. The message itself has no id. {note}"
    return _enveloped(f"message.{file.name}", file.title, summary, file, envelope)


def _enveloped(
    name: str, title: str, summary: str, file: File, envelope: Mapping[str, Any], *, has_id: bool = False
) -> Object:
    members = envelope.get("properties", {})
    payload: Object = {
        "type": "object",
        "required": ["type", "data", "timestamp", *(["id"] if has_id else [])],
        "properties": {
            "type": {**members.get("type", {}), "const": file.name},
            "data": file.reference,
            "timestamp": members.get("timestamp", {"type": "integer"}),
            **({"id": members.get("id", {"type": "string"})} if has_id else {}),
        },
        "additionalProperties": False,
    }
    examples = [example(file, data, has_id=has_id) for data in file.examples]
    return _message(name, title, summary, payload, examples)


def example(file: File, data: object, *, has_id: bool) -> Object:
    """Returns an example of a message to clients."""
    return {"type": file.name, "data": data, "timestamp": _SENT_MS, **({"id": ID} if has_id else {})}


def event(file: File) -> Object:
    """Describes an event whose body is the data of an update."""
    title, summary = f"{file.title} (event)", f"The data of an update of the type {file.name}. {_TYPE}"
    return _message(f"event.{file.name}", title, summary, file.reference, file.examples) | _typed(file)


def wrapped(file: File, sources: Sequence[File]) -> Object:
    """Describes an event in an envelope, which names the update type."""
    payload = {
        "type": "object",
        "required": ["type", "data"],
        "properties": {
            "type": {"type": "string", "const": file.name},
            "data": {"anyOf": [file.reference, *map(_source_schema, sources)]} if sources else file.reference,
            "timestamp": {"description": "The bridge replaces this timestamp."},
        },
        "additionalProperties": False,
    }
    title = f"{file.title} (wrapped event)"
    summary = f"The data of an update of the type {file.name}, with its type: the `type` property is not necessary."
    examples = [{"type": file.name, "data": example} for example in file.examples]
    return _message(f"wrapped.{file.name}", title, summary, payload, examples) | _typed(file)


def source_event(source: File, file: File) -> Object:
    """Describes an event in a source format, which the bridge converts to an update."""
    title, summary = f"{source.title} (event)", f"Becomes an update of the type {file.name}. {_TYPE}"
    return _message(f"form.{source.name}", title, summary, _source_schema(source), source.examples) | _typed(file)


def _source_schema(source: File) -> Object:
    if source.name != SourceFormat.REDISQ:
        return source.reference
    package = {"type": "object", "required": ["package"], "properties": {"package": source.reference}}
    return {"anyOf": [source.reference, package]}


def rejected() -> Object:
    """Describes a rejected event."""
    return {
        "name": "rejected",
        "title": "Rejected event",
        "summary": "The event's body, properties and headers, and the reason why it can't become an update.",
        "headers": {
            "type": "object",
            "properties": {
                "x-reject-reason": {"type": "string", "enum": [reason.value for reason in Reason]},
                **{name: {"type": "string", "description": text} for name, text in _REJECT_HEADERS.items()},
            },
        },
        "payload": {"description": "The published body."},
        "bindings": {"amqp": {"bindingVersion": AMQP_BINDING}},
    }


def _message(name: str, title: str, summary: str, payload: Object, examples: Sequence[object]) -> Object:
    message: Object = {"name": name, "title": title, "summary": summary, "payload": payload}
    return {**message, "examples": [{"payload": example} for example in examples]} if examples else message


def _typed(file: File) -> Object:
    """Returns the AMQP binding with the message's `type` property."""
    return {"bindings": {"amqp": {"messageType": file.name, "bindingVersion": AMQP_BINDING}}}


def at(*steps: str) -> Object:
    """Returns a reference to another part of the document."""
    return {"$ref": "/".join(("#", *steps))}


def key(name: str) -> str:
    """Replaces each character that AsyncAPI and OpenAPI do not allow in a key with the code point of the character.

    Different names always have different results.
    """
    return re.sub(r"[^A-Za-z0-9._-]|_(?=[0-9a-f]+_)", lambda found: f"_{ord(found[0]):x}_", name)
