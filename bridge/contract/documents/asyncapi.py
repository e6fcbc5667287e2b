"""Creates the AsyncAPI document.

This document tells tools which messages clients receive, and which messages fetchers can publish. The document is
written from the bridge's point of view: the bridge receives events from the broker's exchanges, and sends updates to
WebSocket clients. Both events and updates are described by the schema files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson

from bridge.contract.documents import messages
from bridge.contract.documents.messages import AMQP_BINDING, Object, at, key
from bridge.contract.filters import parameter

MEDIA_TYPE = "application/vnd.aai.asyncapi+json;version=3.0.0"

_WEBSOCKETS_BINDING = "0.1.0"
"""The version of AsyncAPI's WebSockets binding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The parts of the document that differ between bridges with the same schemas."""

    version: str
    host: str
    """The address that clients connect to, with the port: `localhost:3000`."""
    secure: bool
    """Whether clients use wss:// instead of ws://."""
    path: str
    exchanges: Mapping[str, str]
    """Maps each exchange to the default update type of its events."""
    reject_exchange: str | None


def document(documents: Mapping[str, bytes], filterable: Mapping[str, frozenset[str]], deployment: Deployment) -> bytes:
    """Returns the AsyncAPI 3.0.0 document, indented, with a newline at its end.

    `documents` maps the name of each schema file to the file's content. `filterable` maps each member that clients can
    filter by to the member's types. The document never contains the broker's address: publishers know this address, and
    other readers do not need it.
    """
    files = messages.read(documents)
    envelopes = {file.name: file.schema for file in files if file.schema.get("x-role") == "envelope"}
    envelope, with_id = (envelopes.get(name, {}) for name in ("update", "update-with-id"))
    types = [file for file in files if "x-role" not in file.schema]
    sources = [file for file in files if file.schema.get("x-role") == "form"]
    own = [file for file in files if file.schema.get("x-role") == "message"]

    sent = {file.key: f"update.{file.key}" for file in types} | {file.key: f"message.{file.key}" for file in own}
    updates = {sent[file.key]: messages.update(file, envelope, with_id) for file in types}
    updates |= {sent[file.key]: messages.own_message(file, envelope) for file in own}
    events: Object = {}
    for file in types:
        of_type = [source for source in sources if source.schema.get("x-form-of") == file.name]
        events[f"event.{file.key}"] = messages.event(file)
        events[f"wrapped.{file.key}"] = messages.wrapped(file, of_type)
        events |= {f"form.{source.key}": messages.source_event(source, file) for source in of_type}

    channels = {"updates": _updates_channel(deployment.path, sent, _query([file.name for file in types], filterable))}
    operations = {
        "sendUpdates": _operation("send", "updates", sent, "Sends each update to every client whose filter matches it.")
    }
    for exchange, default in deployment.exchanges.items():
        channel = f"exchange.{key(exchange)}"
        description = (
            f"Events. The default type is `{default}`: it applies if neither the message's `type` property nor its "
            "body names a type. The exchange may be a topic exchange: the bridge then accepts every routing key."
        )
        channels[channel] = _exchange_channel(exchange, description, events)
        summary = "Receives each event, and turns it into an update."
        operations[f"receive.{key(exchange)}"] = _operation("receive", channel, events, summary)
    rejected = {"rejected": at("components", "messages", "rejected")}
    if deployment.reject_exchange is not None:
        channels["rejected"] = _exchange_channel(
            deployment.reject_exchange, "Events that can't become an update, unchanged.", rejected
        )
        operations["sendRejected"] = _operation(
            "send", "rejected", rejected, "Publishes each rejected event, with a reason."
        )
    return orjson.dumps(
        {
            "asyncapi": "3.0.0",
            "info": {
                "title": "edk-bridge",
                "version": deployment.version,
                "description": "Receives events of a killboard from RabbitMQ, and broadcasts them as updates to "
                "WebSocket clients.",
            },
            "defaultContentType": "application/json",
            "servers": _servers(deployment),
            "channels": channels,
            "operations": operations,
            "components": {
                "messages": {
                    **updates,
                    **events,
                    **({} if deployment.reject_exchange is None else {"rejected": messages.rejected()}),
                },
                "schemas": {file.key: file.schema for file in files},
            },
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


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
            "description": "The broker. Fetchers publish events to it, and the bridge consumes them.",
            "variables": {"broker": {"default": "localhost:5672", "description": "The broker's host and port."}},
        },
    }


def _updates_channel(path: str, sent: Mapping[str, str], query: Object) -> Object:
    return {
        "address": path,
        "title": "Updates",
        "description": "Each text message is one update. Clients that asked for ids also receive the bridge's own "
        "messages. The bridge ignores messages from clients: a client sets its filter in the query of its handshake.",
        "servers": [at("servers", "websocket")],
        "messages": {name: at("components", "messages", message) for name, message in sent.items()},
        "bindings": {"ws": {"method": "GET", "query": query, "bindingVersion": _WEBSOCKETS_BINDING}},
    }


def _query(types: list[str], filterable: Mapping[str, frozenset[str]]) -> Object:
    """Returns the schema of a request's query.

    In this schema, an array stands for a parameter that can occur several times.
    """
    return {
        "type": "object",
        "description": "Without a query, a client receives every update as {type, data, timestamp}. If a parameter "
        "occurs several times, one of its values must match: ?systemId=30000142&systemId=30002187. Different "
        "parameters must all match.",
        "properties": {
            "type": {
                "description": "Only updates of these types.",
                "type": "array",
                "items": {"type": "string", "enum": types},
            },
            "after": {
                "description": "Asks for ids. If the value is empty, updates start now. If it is an id, they start "
                "after this id. The first message is then a resume, and a gap may follow.",
                "type": "string",
            },
            **{
                parameter(name): {
                    "description": f"Only updates whose data has one of these values as its {name}.",
                    "type": "array",
                    "items": {"type": min(kinds) if len(kinds) == 1 else sorted(kinds)},
                }
                for name, kinds in filterable.items()
                # A member that has the name `$ref` is omitted, because tools would treat the member as a reference and
                # resolve it.
                if name != "$ref"
            },
        },
        "additionalProperties": False,
    }


def _exchange_channel(exchange: str, description: str, names: Iterable[str]) -> Object:
    return {
        # The address of a channel is a routing key. A fanout exchange ignores the routing key.
        "address": "",
        "title": exchange,
        "description": description,
        "servers": [at("servers", "rabbitmq")],
        "messages": {name: at("components", "messages", name) for name in names},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, "type": "fanout", "durable": True, "autoDelete": False},
                "bindingVersion": AMQP_BINDING,
            }
        },
    }


def _operation(action: str, channel: str, names: Iterable[str], summary: str) -> Object:
    return {
        "action": action,
        "channel": at("channels", channel),
        "summary": summary,
        "messages": [at("channels", channel, "messages", name) for name in names],
    }
