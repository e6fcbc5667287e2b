"""Creates the AsyncAPI document.

This document tells tools which messages clients receive, and which messages fetchers can publish. The document is
written from the bridge's point of view: the bridge receives events from the broker's exchanges, and sends updates to
clients. Both events and updates are described by the schema files.
"""

from collections.abc import Iterable, Mapping

import orjson

from bridge.contract.documents import messages, query
from bridge.contract.documents.deployment import CONTRACT_VERSION, Deployment
from bridge.contract.documents.embedding import Dialect
from bridge.contract.documents.messages import AMQP_BINDING, Object, at, key
from bridge.contract.documents.query import Parameter
from bridge.contract.filters import Format

MEDIA_TYPE = "application/vnd.aai.asyncapi+json;version=3.0.0"

_WEBSOCKETS_BINDING = "0.1.0"
_HTTP_BINDING = "0.3.0"
"""The versions of AsyncAPI's bindings."""

_SSE_ONLY = frozenset({"close"})
"""The bridge's own messages that are sent only over Server-Sent Events."""


def document(documents: Mapping[str, bytes], filterable: Mapping[str, frozenset[str]], deployment: Deployment) -> bytes:
    """Returns the AsyncAPI 3.0.0 document, indented, with a newline at its end.

    `documents` maps the name of each schema file to the file's content. `filterable` maps each member that clients can
    filter by to the member's types. The document never contains the broker's address: publishers know this address, and
    other readers do not need it.
    """
    files = messages.read(documents, Dialect.DRAFT_07)
    envelope = next((file.schema for file in files if file.name == "update"), {})
    with_id = next((file.schema for file in files if file.name == "update-with-id"), {})
    types = [file for file in files if "x-role" not in file.schema]
    sources = [file for file in files if file.schema.get("x-role") == "form"]
    own = [file for file in files if file.schema.get("x-role") == "message"]

    updates = {f"update.{file.key}": messages.update(file, envelope) for file in types}
    updates_with_id = {f"update-with-id.{file.key}": messages.update_with_id(file, with_id) for file in types}
    own_messages = {f"message.{file.key}": messages.own_message(file, envelope) for file in own}
    websocket = [
        *updates,
        *updates_with_id,
        *(f"message.{file.key}" for file in own if file.name not in _SSE_ONLY),
    ]
    event_stream = [*updates_with_id, *own_messages]
    events: Object = {}
    for file in types:
        of_type = [source for source in sources if source.schema.get("x-form-of") == file.name]
        events[f"event.{file.key}"] = messages.event(file)
        events[f"wrapped.{file.key}"] = messages.wrapped(file, of_type)
        events |= {f"form.{source.key}": messages.source_event(source, file) for source in of_type}

    selection = [query.types(file.name for file in types), *query.members(filterable)]
    channels = {
        "updates": _websocket_channel(deployment.path, websocket, [*selection, *query.start(always_has_ids=False)]),
        "eventStream": _event_stream_channel(deployment.path, event_stream),
    }
    summary = "Sends each update to every client whose filter matches it."
    operations = {
        "sendUpdates": _operation("send", "updates", websocket, summary),
        "sendEventStream": {
            **_operation("send", "eventStream", event_stream, summary),
            "bindings": _http_binding([_SSE, *selection, *query.start(always_has_ids=True)]),
        },
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
                "version": CONTRACT_VERSION,
                "description": "Receives events of a killboard from RabbitMQ, and broadcasts them as updates to "
                "clients, over WebSocket and Server-Sent Events. Clients can also request updates as JSON: the OpenAPI "
                "document at /openapi.json describes all HTTP requests. The version is that of this contract. Clients "
                "ignore unknown members and messages of unknown types, because both may be added at any time.",
            },
            "defaultContentType": "application/json",
            "servers": _servers(deployment),
            "channels": channels,
            "operations": operations,
            "components": {
                "messages": {
                    **updates,
                    **updates_with_id,
                    **own_messages,
                    **events,
                    **({} if deployment.reject_exchange is None else {"rejected": messages.rejected()}),
                },
                "schemas": {file.key: file.schema for file in files},
            },
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def _servers(deployment: Deployment) -> Object:
    description = "The bridge. Only localhost and internal addresses may connect."
    return {
        "websocket": {
            "host": deployment.host,
            "protocol": "wss" if deployment.secure else "ws",
            "description": description,
        },
        "http": {
            "host": deployment.host,
            "protocol": "https" if deployment.secure else "http",
            "description": description,
        },
        "rabbitmq": {
            "host": "{broker}",
            "protocol": "amqp",
            "protocolVersion": "0-9-1",
            "description": "The broker. Fetchers publish events to it, and the bridge consumes them.",
            "variables": {"broker": {"default": "localhost:5672", "description": "The broker's host and port."}},
        },
    }


_SSE = Parameter("format", "Asks for Server-Sent Events.", {"type": "string", "const": Format.SSE.value})


def _websocket_channel(path: str, sent: Iterable[str], parameters: Iterable[Parameter]) -> Object:
    description = (
        "WebSocket: each text message is one update. Without `after` in the query, a client receives every update as "
        "{type, data, timestamp}. With `after`, updates have an id, and the client also receives the bridge's own "
        "messages, the first of which is a resume. The bridge ignores messages from clients: a client sets its filter "
        "in the query of its handshake."
    )
    binding = {"method": "GET", "query": _query(parameters), "bindingVersion": _WEBSOCKETS_BINDING}
    return {**_channel(path, "Updates", description, "websocket", sent), "bindings": {"ws": binding}}


def _event_stream_channel(path: str, sent: Iterable[str]) -> Object:
    description = (
        "Server-Sent Events: the `data` of each event is one message. Updates always have an id, which is also the id "
        "of the event. An own message with an id in its data gives this id to its event. The first message is a "
        "resume, or a close if the bridge can't serve the client now. Events have no `event` field."
    )
    return _channel(path, "Updates as Server-Sent Events", description, "http", sent)


def _channel(path: str, title: str, description: str, server: str, sent: Iterable[str]) -> Object:
    return {
        "address": path,
        "title": title,
        "description": description,
        "servers": [at("servers", server)],
        "messages": {name: at("components", "messages", name) for name in sent},
    }


def _http_binding(parameters: Iterable[Parameter]) -> Object:
    return {"http": {"method": "GET", "query": _query(parameters), "bindingVersion": _HTTP_BINDING}}


def _query(parameters: Iterable[Parameter]) -> Object:
    """Returns the schema of a request's query."""
    return {
        "type": "object",
        "description": f"Without a query, a client receives every update. {query.ABOUT}",
        "properties": {
            each.name: {"description": each.description, **each.schema}
            for each in parameters
            # A member that has the name `$ref` is omitted, because tools would treat the member as a reference and
            # resolve it.
            if each.name != "$ref"
        },
        "patternProperties": {query.OTHER_MEMBERS: {"type": "array"}},
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
