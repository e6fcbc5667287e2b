"""The largest requests that the bridge reads, for each part of a request that takes time to process."""

from collections.abc import Mapping

from bridge.contract.filters import MAX_ESCAPES, MAX_FIELDS, MAX_VALUES
from bridge.server.access.rules import MAX_FORWARDED, MAX_FORWARDED_PAIRS
from bridge.server.http.request import MAX_HEAD_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, MAX_REQUEST_LINE_BYTES

_UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
_TARGET = MAX_REQUEST_LINE_BYTES - len("GET  HTTP/1.1")


def _handshake(*headers: str, target: str = "/updates", host: str = "localhost") -> bytes:
    lines = (f"GET {target} HTTP/1.1", f"Host: {host}", *_UPGRADE, *headers, "", "")
    return "\r\n".join(lines).encode("latin-1")


def _get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _header(name: str, member: str, limit: int = MAX_HEADER_BYTES) -> str:
    """Returns an HTTP header with as many list members as the limit allows."""
    return f"{name}: {','.join([member] * ((limit + 1) // (len(member) + 1)))}"


def _query(*fields: str) -> str:
    """Returns a request target that contains as many of the given query fields as fit."""
    target = "/updates?"
    for field in fields:
        if len(target) + len(field) + 1 > _TARGET:
            break
        target += f"{field}&"
    return target.removesuffix("&")


def _filled() -> bytes:
    """Returns a handshake with the maximum number of headers and the maximum size."""
    names = [f"X-{number}: " for number in range(MAX_HEADERS - 1 - len(_UPGRADE))]
    room = MAX_HEAD_BYTES - len(_handshake(*names))
    return _handshake(*(name + "v" * (room // len(names)) for name in names))


_NODE = "[fd00:1111:2222:3333:4444:5555:6666:7777]:65535"
_EMOJI = "%F0%9F%9A%80"

REQUESTS: Mapping[str, bytes] = {
    "a usual handshake": _handshake(),
    "headers: the maximum number and size": _filled(),
    "cookies": _handshake(_header("Cookie", "c=1")),
    "forwarded: the maximum number of addresses": _handshake(_header("X-Forwarded-For", _NODE, 48 * MAX_FORWARDED - 1)),
    "forwarded: pairs": _handshake("Forwarded: for=10.0.0.1" + ";a=bbbbbbbbbbbb" * MAX_FORWARDED_PAIRS),
    "forwarded: thousands of addresses (refused)": _handshake(_header("X-Forwarded-For", "10.0.0.1")),
    "host: a long name (refused)": _handshake(host="a." * (MAX_HEADER_BYTES // 2)),
    "origin: a long one (refused)": _handshake(f"Origin: http://{'a.' * (MAX_HEADER_BYTES // 2 - 8)}"),
    "lists: Upgrade and Connection": _handshake(_header("Upgrade", "a", 8000), _header("Connection", "a", 8000)),
    "lists: Sec-WebSocket-Protocol": _handshake(_header("Sec-WebSocket-Protocol", "a")),
    "lists: Sec-WebSocket-Extensions": _handshake(_header("Sec-WebSocket-Extensions", "permessage-deflate;a=b")),
    "key: a long one (refused)": _handshake("Sec-WebSocket-Key: " + "A" * MAX_HEADER_BYTES),
    "path (404)": _get("/" + "a" * (_TARGET - 1)),
    "query: integers": _handshake(target=_query(*(f"systemId={number}" for number in range(MAX_VALUES)))),
    "query: long integers": _handshake(
        target=_query(*(f"victimId={9007199254740991 - number}" for number in range(MAX_VALUES)))
    ),
    "query: integers in another notation": _handshake(
        target=_query(*(f"systemId={number}.0e0" for number in range(MAX_VALUES)))
    ),
    "query: numbers": _handshake(target=_query(*(f"price={number}.5e1" for number in range(MAX_VALUES)))),
    "everything: addresses, headers and a query": _handshake(
        f"X-Forwarded-For: {','.join([_NODE] * MAX_FORWARDED)}",
        *[f"X-{number}: y" for number in range(100)],
        target=_query(*(f"systemId={number}.0e0" for number in range(MAX_VALUES))),
    ),
    "query: strings, percent-encoded": _handshake(
        target=_query(*(f"title={number}%C3%A9" for number in range(MAX_VALUES)))
    ),
    "query: one string, percent-encoded": _handshake(target=f"/updates?title={_EMOJI * (MAX_ESCAPES // 4)}"),
    "query: empty fields": _handshake(target="/updates?" + "&" * MAX_FIELDS),
    "query: thousands of fields (refused)": _handshake(target="/updates?" + "&" * (_TARGET - 9)),
    "query: thousands of ids (refused)": _handshake(target=_query(*["after=1"] * 1500)),
    "query: an unknown name (refused)": _handshake(target="/updates?sistemld=1"),
    "query: an unknown name, long (refused)": _handshake(target=f"/updates?{'sistem' * 1300}=1"),
    "query: an unknown type (refused)": _handshake(target="/updates?type=" + "kilmial" * 10),
    "query: a list as a value (refused)": _handshake(target=f"/updates?systemId={'1,' * ((_TARGET - 18) // 2)}1"),
    "document in the client's cache": _get("/asyncapi.json").replace(
        b"\r\n\r\n", f"\r\n{_header('If-None-Match', 'a')}\r\n\r\n".encode()
    ),
    "page: /": _get("/"),
    "page: /asyncapi.json": _get("/asyncapi.json"),
    "page: /schemas/": _get("/schemas/"),
    "page: /readyz": _get("/readyz"),
}
"""The largest requests, by their descriptions.

The bridge answers each request with an upgrade or a page, unless the request's description names another answer.
"""

PLAIN_REQUESTS: Mapping[str, bytes] = {
    "query: all parameters (JSON)": _get(
        _query(
            "after=1-00000000",
            "last=1000",
            "limit=1000",
            "wait=30",
            "format=json",
            *(f"data.systemId={number}" for number in range(MAX_VALUES)),
        )
    ),
    "accept: thousands of media types (JSON)": _get("/updates?format=json").replace(
        b"\r\n\r\n", f"\r\n{_header('Accept', 'a/b;q=0.5;c')}\r\n\r\n".encode()
    ),
    "accept: thousands of parameters (426)": _get("/updates").replace(
        b"\r\n\r\n", f"\r\nAccept: application/json{';a=b' * 4000};q=0\r\n\r\n".encode()
    ),
    "last event id (SSE)": _get("/updates?format=sse").replace(
        b"\r\n\r\n", f"\r\nLast-Event-ID: {'1' * MAX_HEADER_BYTES}\r\n\r\n".encode()
    ),
}
"""The largest requests for updates without a WebSocket, like `REQUESTS`."""

METRICS = _get("/metrics")
