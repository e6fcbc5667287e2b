"""The AsyncAPI document: what a client may expect and a fetcher may publish, said for tools.

AsyncAPI speaks from the bridge's point of view: it receives events from the broker's exchanges, and sends updates to
WebSocket clients. The schemas of both are the schema files.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from bridge.contract.catalog import schema_id
from bridge.contract.draft07 import convert
from bridge.contract.forms import REDISQ
from bridge.contract.pipeline import Reason

MEDIA_TYPE = "application/vnd.aai.asyncapi+json;version=3.0.0"

_AMQP = "0.3.0"
_WEBSOCKETS = "0.1.0"
"""Versions of AsyncAPI's bindings."""

_SENT_MS = 1697962000000
"""The timestamp of examples: that of the specification's."""

_TYPE = "The message's property `type` must say so, unless that is the exchange's default."

_REJECT_HEADERS = {
    "x-reject-detail": "One sentence that says what is wrong.",
    "x-reject-pointer": "JSON Pointer to the member that is wrong; empty for the event as a whole.",
    "x-reject-schema": "The $id of the schema that the event breaks; empty where it is none.",
    "x-reject-exchange": "The exchange that the event came from.",
    "x-reject-instance": "The name of the bridge that rejected it.",
    "x-reject-time": "When that was: an RFC 3339 date-time.",
    "x-reject-user-id": "The event's user_id, where it had one: the broker takes it from nobody else.",
    "x-reject-cluster-id": "The event's cluster_id, where it had one: no library sends it.",
    "x-reject-expiration": "The event's expiration in milliseconds, where it had one: a reject does not expire.",
    "x-reject-headers": "There where the event's own properties are left out, because they can't be published again.",
}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the document says of one bridge, beside the schemas."""

    version: str
    host: str
    """Where clients connect to, with the port: `localhost:3000`."""
    secure: bool
    """Whether that is wss:// instead of ws://."""
    path: str
    exchanges: Mapping[str, str]
    """Each exchange with the update type that its events have by default."""
    reject_exchange: str | None


@dataclass(frozen=True, slots=True)
class _File:
    """A schema file."""

    name: str
    key: str
    """Its name as AsyncAPI allows it in a key."""
    schema: Object

    @property
    def reference(self) -> Object:
        return _at("components", "schemas", self.key)

    @property
    def title(self) -> str:
        title = self.schema.get("title")
        return title if isinstance(title, str) else self.name

    @property
    def examples(self) -> list[Any]:
        """As they came through the conversion; checked by nobody before."""
        examples: list[Any] = self.schema.get("examples", [])
        return examples


def document(documents: Mapping[str, bytes], deployment: Deployment) -> bytes:
    """The AsyncAPI 3.0.0 document for the schema files (name to content), indented, with a newline at its end.

    Where the broker is stays out of it: whoever publishes knows, and nobody else has to.
    """
    files = _files(documents)
    envelope = next((file for file in files if file.schema.get("x-role") == "envelope"), None)
    types = [file for file in files if "x-role" not in file.schema]
    forms = [file for file in files if file.schema.get("x-role") == "form"]

    updates = {file.key: _update(file, envelope.schema if envelope else {}) for file in types}
    events: Object = {}
    for file in types:
        own = [form for form in forms if form.schema.get("x-form-of") == file.name]
        events[f"event.{file.key}"] = _event(file)
        events[f"wrapped.{file.key}"] = _wrapped(file, own)
        events |= {f"form.{form.key}": _form(form, file) for form in own}

    channels = {"updates": _updates_channel(deployment.path, updates)}
    operations = {"sendUpdates": _operation("send", "updates", updates, "Sends each update to every client.")}
    for exchange, default in deployment.exchanges.items():
        channel = f"exchange.{_key(exchange)}"
        description = (
            f"Events. Where neither the message's property `type` nor its body names a type, it is `{default}`. "
            "An exchange of this name that is a topic exchange is used as it is, with any routing key."
        )
        channels[channel] = _exchange_channel(exchange, description, events)
        summary = "Takes each event, and makes an update of it."
        operations[f"receive.{_key(exchange)}"] = _operation("receive", channel, events, summary)
    rejected = {"rejected": _at("components", "messages", "rejected")}
    if deployment.reject_exchange is not None:
        channels["rejected"] = _exchange_channel(
            deployment.reject_exchange, "Events that can't become an update, as they came.", rejected
        )
        operations["sendRejected"] = _operation("send", "rejected", rejected, "Gives back what it can't use, with why.")
    return orjson.dumps(
        {
            "asyncapi": "3.0.0",
            "info": {
                "title": "edk-bridge",
                "version": deployment.version,
                "description": "Takes events of a killboard from RabbitMQ, and broadcasts them as updates to WebSocket "
                "clients.",
            },
            "defaultContentType": "application/json",
            "servers": _servers(deployment),
            "channels": channels,
            "operations": operations,
            "components": {
                "messages": {
                    **{f"update.{key}": message for key, message in updates.items()},
                    **events,
                    **({} if deployment.reject_exchange is None else {"rejected": _rejected()}),
                },
                "schemas": {file.key: file.schema for file in files},
            },
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def _files(documents: Mapping[str, bytes]) -> list[_File]:
    names = {_key(name): name for name in (file.removesuffix(".json") for file in documents)}
    schemas = {key: {"$id": schema_id(name), **orjson.loads(documents[f"{name}.json"])} for key, name in names.items()}
    converted = convert(schemas, "#/components/schemas")
    return [_File(name, key, converted[key]) for key, name in names.items()]


def _servers(deployment: Deployment) -> Object:
    return {
        "websocket": {
            "host": deployment.host,
            "protocol": "wss" if deployment.secure else "ws",
            "description": "The bridge. Only localhost and internal addresses may connect.",
        },
        "rabbitmq": {
            "host": "{broker}",
            "protocol": "amqp",
            "protocolVersion": "0-9-1",
            "description": "The broker that the bridge consumes from, and fetchers publish to.",
            "variables": {"broker": {"default": "localhost:5672", "description": "The broker's host and port."}},
        },
    }


def _updates_channel(path: str, updates: Iterable[str]) -> Object:
    return {
        "address": path,
        "title": "Updates",
        "description": "Each text message is one update. What a client sends is ignored.",
        "servers": [_at("servers", "websocket")],
        "messages": {key: _at("components", "messages", f"update.{key}") for key in updates},
        "bindings": {"ws": {"method": "GET", "bindingVersion": _WEBSOCKETS}},
    }


def _exchange_channel(exchange: str, description: str, messages: Iterable[str]) -> Object:
    return {
        # The routing key, which a fanout exchange does not look at.
        "address": "",
        "title": exchange,
        "description": description,
        "servers": [_at("servers", "rabbitmq")],
        "messages": {key: _at("components", "messages", key) for key in messages},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, "type": "fanout", "durable": True, "autoDelete": False},
                "bindingVersion": _AMQP,
            }
        },
    }


def _operation(action: str, channel: str, messages: Iterable[str], summary: str) -> Object:
    return {
        "action": action,
        "channel": _at("channels", channel),
        "summary": summary,
        "messages": [_at("channels", channel, "messages", key) for key in messages],
    }


def _update(file: _File, envelope: Mapping[str, Any]) -> Object:
    """What a client gets."""
    members = envelope.get("properties", {})
    payload = {
        "type": "object",
        "required": ["type", "data", "timestamp"],
        "properties": {
            "type": {**members.get("type", {}), "const": file.name},
            "data": file.reference,
            "timestamp": members.get("timestamp", {"type": "integer"}),
        },
        "additionalProperties": False,
    }
    examples = [{"type": file.name, "data": example, "timestamp": _SENT_MS} for example in file.examples]
    return _message(f"update.{file.name}", file.title, f"An update of the type {file.name}.", payload, examples)


def _event(file: _File) -> Object:
    """An event whose body is the update's data."""
    title, summary = f"{file.title} (event)", f"The data of an update of the type {file.name}. {_TYPE}"
    return _message(f"event.{file.name}", title, summary, file.reference, file.examples) | _typed(file)


def _wrapped(file: _File, forms: list[_File]) -> Object:
    """An event whose body names its type itself."""
    payload = {
        "type": "object",
        "required": ["type", "data"],
        "properties": {
            "type": {"type": "string", "const": file.name},
            "data": {"anyOf": [file.reference, *map(_form_schema, forms)]} if forms else file.reference,
            "timestamp": {"description": "Replaced by the bridge's own."},
        },
        "additionalProperties": False,
    }
    title = f"{file.title} (wrapped event)"
    summary = f"The data of an update of the type {file.name}, and the type: the property `type` may be left out."
    examples = [{"type": file.name, "data": example} for example in file.examples]
    return _message(f"wrapped.{file.name}", title, summary, payload, examples) | _typed(file)


def _form(form: _File, file: _File) -> Object:
    """An event that the bridge converts."""
    title, summary = f"{form.title} (event)", f"Becomes an update of the type {file.name}. {_TYPE}"
    return _message(f"form.{form.name}", title, summary, _form_schema(form), form.examples) | _typed(file)


def _form_schema(form: _File) -> Object:
    if form.name != REDISQ:
        return form.reference
    package = {"type": "object", "required": ["package"], "properties": {"package": form.reference}}
    return {"anyOf": [form.reference, package]}


def _rejected() -> Object:
    return {
        "name": "rejected",
        "title": "Rejected event",
        "summary": "The event's own body, properties and headers, and why it can't become an update.",
        "headers": {
            "type": "object",
            "properties": {
                "x-reject-reason": {"type": "string", "enum": [reason.value for reason in Reason]},
                **{name: {"type": "string", "description": text} for name, text in _REJECT_HEADERS.items()},
            },
        },
        "payload": {"description": "Whatever was published."},
        "bindings": {"amqp": {"bindingVersion": _AMQP}},
    }


def _message(name: str, title: str, summary: str, payload: Object, examples: list[Any]) -> Object:
    message = {"name": name, "title": title, "summary": summary, "payload": payload}
    return {**message, "examples": [{"payload": example} for example in examples]} if examples else message


def _typed(file: _File) -> Object:
    """The message's property `type`."""
    return {"bindings": {"amqp": {"messageType": file.name, "bindingVersion": _AMQP}}}


def _at(*steps: str) -> Object:
    return {"$ref": "/".join(("#", *steps))}


def _key(name: str) -> str:
    """The name as AsyncAPI allows it in a key: other characters than these by their numbers, no two names alike."""
    return re.sub(r"[^A-Za-z0-9._-]|_(?=[0-9a-f]+_)", lambda found: f"_{ord(found[0]):x}_", name)
