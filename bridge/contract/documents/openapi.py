"""Creates the OpenAPI document, which describes every HTTP request that the bridge answers.

The AsyncAPI document describes the messages over WebSocket and Server-Sent Events.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from bridge.contract.documents import asyncapi, messages, query
from bridge.contract.documents.deployment import CONTRACT_VERSION, Deployment
from bridge.contract.documents.embedding import Dialect
from bridge.contract.documents.messages import File, Object, at
from bridge.contract.documents.query import Parameter

MEDIA_TYPE = "application/vnd.oai.openapi+json;version=3.1"

_TEXT = "text/plain"

_RETRY_AFTER: Object = {
    "Retry-After": {
        "description": "When to try again, in seconds.",
        "schema": {"type": "integer", "minimum": 0},
    }
}

_LAST_EVENT_ID: Object = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "Server-Sent Events and JSON only: the id after which updates start. Unless it is empty, it "
    "replaces after and last, because EventSource reconnects with its original URL.",
    "schema": {"type": "string"},
}

_IF_NONE_MATCH: Object = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The ETag of an earlier response.",
    "schema": {"type": "string"},
}

_NULLABLE_OBJECT: Object = {"type": ["object", "null"]}

READINESS: Object = {
    "type": "object",
    "required": [
        *("ready", "missing", "warnings", "broker", "last_gap", "history", "rejects"),
        *("connections", "instance", "version"),
    ],
    "properties": {
        "ready": {"description": "Whether the bridge consumes, and the broker answered recently.", "type": "boolean"},
        "missing": {
            "description": "What the bridge lacks to be ready.",
            "type": "array",
            "items": {"type": "string"},
        },
        "warnings": {
            "description": "What an operator should correct.",
            "type": "array",
            "items": {"type": "string"},
        },
        "broker": {
            "description": "The connection that consumes events, with its state and its last error.",
            "type": "object",
        },
        "last_gap": {"description": "The last gap, if there was one.", **_NULLABLE_OBJECT},
        "history": {"description": "The stream that keeps the history, if there is one.", **_NULLABLE_OBJECT},
        "rejects": {
            "description": "The connection that publishes rejected events, if there is one.",
            **_NULLABLE_OBJECT,
        },
        "connections": {"description": "The number of connected clients.", "type": "integer", "minimum": 0},
        "instance": {"description": "The name of this bridge (BRIDGE_INSTANCE).", "type": "string"},
        "version": {"description": "The version of the bridge, not of the contract.", "type": "string"},
    },
}
"""The schema of the body of `/readyz`."""


def document(documents: Mapping[str, bytes], filterable: Mapping[str, frozenset[str]], deployment: Deployment) -> bytes:
    """Returns the OpenAPI 3.1 document, indented, with a newline at its end.

    `documents` maps the name of each schema file to the file's content. `filterable` maps each member that clients can
    filter by to the member's types.
    """
    files = messages.read(documents, Dialect.DRAFT_2020_12)
    types = [file for file in files if "x-role" not in file.schema]
    parameters = [
        query.types(file.name for file in types),
        *query.start(always_has_ids=False),
        query.FORMAT,
        *query.POLL,
        *query.members(filterable),
    ]
    return orjson.dumps(
        {
            "openapi": "3.1.1",
            "info": {
                "title": "edk-bridge",
                "version": CONTRACT_VERSION,
                "description": "Broadcasts updates of a killboard to clients, over WebSocket, Server-Sent Events and "
                "plain HTTP. The AsyncAPI document at /asyncapi.json describes the messages over WebSocket and "
                "Server-Sent Events. The version is that of this contract. Clients ignore unknown members and updates "
                "of unknown types, because both may be added at any time. HEAD is allowed for every path.",
            },
            "servers": [{"url": f"http{'s' if deployment.secure else ''}://{deployment.host}"}],
            "tags": [
                {"name": "updates", "description": "Updates, in three ways over one log."},
                {"name": "contract", "description": "Documents for programs and their authors."},
                {"name": "operation", "description": "For operators and monitoring programs."},
            ],
            "paths": {
                deployment.path: _endpoint(files, parameters, deployment.path),
                **_contract_paths(sorted(documents)),
                **_operation_paths(),
            },
            "components": {
                "schemas": {file.key: file.schema for file in files},
                "responses": {
                    "Forbidden": _text_response(
                        "The access rules refuse the request: its address, its Host or its Origin is not allowed. The "
                        "body is one sentence."
                    ),
                    "NotModified": {"description": "The client has the document already."},
                    "MethodNotAllowed": _text_response("The method is not allowed for this path."),
                },
            },
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


# The endpoint


def _endpoint(files: Sequence[File], parameters: Iterable[Parameter], path: str) -> Object:
    described = [
        *(
            {
                "name": each.name,
                "in": "query",
                "description": each.description,
                "schema": each.schema,
                # For an array, a parameter occurs once for each value: ?type=killmail&type=event.
                **({"style": "form", "explode": True} if each.repeats else {}),
            }
            for each in parameters
        ),
        _LAST_EVENT_ID,
    ]
    refused: dict[str, Object] = {
        "400": _text_response("The request or its query is malformed. The body is one sentence that says why."),
        "403": at("components", "responses", "Forbidden"),
        "405": at("components", "responses", "MethodNotAllowed"),
        "426": {
            "description": "The request asks for none of the three ways. The body is a sentence that names them.",
            "headers": {
                "Upgrade": {"description": "The protocol of an upgrade.", "schema": {"const": "websocket"}},
            },
            "content": {_TEXT: {"schema": {"type": "string"}}},
        },
        "429": _text_response("JSON only: too many connections from the client's address.", _RETRY_AFTER),
        "503": _text_response(
            "JSON only: the bridge is full, reads back its history, or does not consume although the id is ahead of "
            "what it has.",
            _RETRY_AFTER,
        ),
    }
    return {
        "parameters": described,
        "get": {
            "tags": ["updates"],
            "operationId": "getUpdates",
            "summary": "Receive updates",
            "description": "An upgrade to WebSocket takes precedence, then format=sse or format=json, then an Accept "
            "header with text/event-stream or application/json. Without after and last, JSON has the newest updates. "
            f"{query.ABOUT}",
            "responses": {
                "101": {"description": "WebSocket: each text message is one update. See /asyncapi.json."},
                "200": _updates(files, path),
                **refused,
            },
        },
        "head": {
            "tags": ["updates"],
            "operationId": "headUpdates",
            "summary": "Get the status and the headers that GET would have",
            "description": "The response has no body, and keeps nothing open.",
            "responses": {"200": {"description": "GET would send updates."}, **_without_body(refused)},
        },
        "options": {
            "tags": ["updates"],
            "operationId": "optionsUpdates",
            "summary": "Ask which requests a page of another origin may send",
            "responses": {
                "204": {
                    "description": "The origin is allowed.",
                    "headers": {
                        name: {"schema": {"type": "string"}}
                        for name in (
                            "Access-Control-Allow-Origin",
                            "Access-Control-Allow-Methods",
                            "Access-Control-Allow-Headers",
                        )
                    },
                },
                "403": at("components", "responses", "Forbidden"),
            },
        },
    }


def _updates(files: Sequence[File], path: str) -> Object:
    response = next((file for file in files if file.schema.get("x-role") == "response"), None)
    as_json: Object = {"schema": {}} if response is None else {"schema": response.reference}
    if response is not None:
        as_json["examples"] = {"updates": {"summary": f"{path}?format=json", "value": response.examples[0]}}
    return {
        "description": "Updates, as Server-Sent Events or as JSON. A bridge that is full or stopping sends an event "
        "stream with a single close message.",
        "content": {
            "text/event-stream": {
                "schema": {
                    "description": "The data of each event is one message of the channel eventStream in the AsyncAPI "
                    "document.",
                    "type": "string",
                },
                "example": _event_stream(files),
            },
            "application/json": as_json,
        },
    }


def _event_stream(files: Sequence[File]) -> str:
    """Returns the start of an event stream, with examples of the schema files."""
    by_name = {file.name: file for file in files if file.examples}
    events = ""
    for name in ("resume", "killmail"):
        if (file := by_name.get(name)) is not None:
            message: Any = messages.example(file, file.examples[0], has_id=name != "resume")
            message_id = message["data"]["id"] if name == "resume" else message["id"]
            events += f"id: {message_id}\ndata: {orjson.dumps(message).decode()}\n\n"
    return f":\nretry: 2500\n{events}"


def _without_body(responses: Mapping[str, Object]) -> Object:
    return {
        status: {name: value for name, value in response.items() if name != "content"}
        for status, response in responses.items()
    }


# The other paths


def _contract_paths(names: Sequence[str]) -> Object:
    strings: Object = {"type": "array", "items": {"type": "string"}}
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "The name of the file.",
        "schema": {"type": "string", "enum": list(names)},
    }
    return {
        "/schemas/": {
            "get": _document("listSchemas", "List the schema files", "Their names.", "application/json", strings)
        },
        "/schemas/{name}": {
            "parameters": [name],
            "get": _document(
                "getSchema",
                "Get a schema file",
                "A JSON Schema, draft 2020-12.",
                "application/schema+json",
                {"type": ["object", "boolean"]},
                {"404": _text_response("There is no such file.")},
            ),
        },
        "/asyncapi.json": {
            "get": _document(
                "getAsyncapi",
                "Get the AsyncAPI document",
                "An AsyncAPI document, version 3.0.0.",
                asyncapi.MEDIA_TYPE,
                {"type": "object"},
            )
        },
        "/openapi.json": {
            "get": _document(
                "getOpenapi",
                "Get this document",
                "An OpenAPI document, version 3.1.",
                MEDIA_TYPE,
                {"type": "object"},
            )
        },
    }


def _document(
    operation: str,
    summary: str,
    description: str,
    media_type: str,
    schema: Object,
    responses: Object | None = None,
) -> Object:
    return {
        "tags": ["contract"],
        "operationId": operation,
        "summary": summary,
        "parameters": [_IF_NONE_MATCH],
        "responses": {
            "200": {
                "description": description,
                "headers": {"ETag": {"description": "The version of the document.", "schema": {"type": "string"}}},
                "content": {media_type: {"schema": schema}},
            },
            "304": at("components", "responses", "NotModified"),
            "403": at("components", "responses", "Forbidden"),
            **(responses or {}),
        },
    }


def _operation_paths() -> Object:
    readiness: Object = {"application/json": {"schema": READINESS}}
    return {
        "/healthz": _monitored(
            "getHealth", "Ask whether the bridge runs", {"200": _text_response("The event loop runs.")}
        ),
        "/readyz": _monitored(
            "getReadiness",
            "Ask whether the bridge is ready",
            {
                "200": {"description": "The bridge is ready.", "content": readiness},
                "503": {"description": "The bridge is not ready: the body says what is missing.", "content": readiness},
            },
        ),
        "/metrics": _monitored(
            "getMetrics", "Get the metrics", {"200": _text_response("The text format of Prometheus.")}
        ),
        "/": _monitored(
            "getPage",
            "Get the live page",
            {"200": {"description": "The live page.", "content": {"text/html": {"schema": {"type": "string"}}}}},
        ),
    }


def _monitored(operation: str, summary: str, responses: Object) -> Object:
    return {
        "get": {
            "tags": ["operation"],
            "operationId": operation,
            "summary": summary,
            "responses": {**responses, "403": at("components", "responses", "Forbidden")},
        }
    }


def _text_response(description: str, headers: Object | None = None) -> Object:
    response: Object = {"description": description}
    if headers is not None:
        response["headers"] = headers
    return {**response, "content": {_TEXT: {"schema": {"type": "string"}}}}
