"""Tests which requests become WebSocket connections, and how other requests are refused."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from bridge.server.access.rules import Refusal
from bridge.server.http.request import Request, parse
from bridge.server.websocket.upgrade import check, is_upgrade, switching_protocols
from tests.support.clients import request

HANDSHAKE = request(3000)
NGINX = "in nginx, proxy_http_version 1.1"
PROXY = "A proxy removed the headers Upgrade and Connection"


def changed(old: bytes, new: bytes) -> Request:
    assert old in HANDSHAKE
    return parse(HANDSHAKE.replace(old, new))


def refused(request_: Request) -> Refusal:
    found = check(request_, "/updates")
    assert isinstance(found, Refusal)
    return found


def test_answer_has_the_accept_of_the_key_but_no_extension_or_subprotocol() -> None:
    found = switching_protocols("dGhlIHNhbXBsZSBub25jZQ==", [("Vary", "Origin")])
    head, *lines = found.decode().split("\r\n")
    assert head == "HTTP/1.1 101 Switching Protocols"
    # RFC 6455, section 1.3, gives this accept value for this key.
    assert [line for line in lines if not line.startswith("Date: ")] == [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "Vary: Origin",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Upgrade: websocket", b"Upgrade: WebSocket"),
        (b"Upgrade: websocket", b"Upgrade: h2c, websocket"),
        (b"Upgrade: websocket", b"Upgrade: websocket,"),
        (b"Upgrade: websocket", b"Upgrade: h2c\r\nUpgrade: websocket"),
        (b"Connection: Upgrade", b"Connection: keep-alive, upgrade"),
        (b"Connection: Upgrade", b"Connection: keep-alive\r\nConnection: UPGRADE"),
        (b"Host", b"Sec-WebSocket-Protocol:\r\nHost"),
        (b"Host", b"Sec-WebSocket-Protocol: ,\r\nHost"),
        (b"Host", b"Sec-WebSocket-Protocol: a b, @\r\nHost"),
        (b"Host", b"Sec-WebSocket-Extensions:\r\nHost"),
        (b"Host", b"Sec-WebSocket-Extensions: permessage-deflate; =\r\nHost"),
        (b"Host", b"Sec-WebSocket-Extensions: x-webkit-deflate-frame\r\nHost"),
        (b"Host", b"Content-Length: 0\r\nHost"),
        (b"Host", b"Keep-Alive: timeout=5\r\nTE: trailers\r\nHost"),
    ],
)
def test_handshake_of_any_spelling_is_answered(old: bytes, new: bytes) -> None:
    assert check(changed(old, new), "/updates") is None


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        (b"Upgrade: websocket\r\n", b"", PROXY),
        (b"Upgrade: websocket", b"Upgrade: h2c", PROXY),
        (b"Upgrade: websocket", b"Upgrade: websockets", PROXY),
        (b"Connection: Upgrade", b"Connection: close", PROXY),
        (b"HTTP/1.1", b"HTTP/1.0", NGINX),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"", PROXY),
        (b"GET", b"HEAD", "A WebSocket handshake must use GET, not HEAD."),
    ],
)
def test_handshake_that_a_proxy_changed_is_refused_with_a_hint(old: bytes, new: bytes, hint: str) -> None:
    found = refused(changed(old, new))
    assert found.status == HTTPStatus.UPGRADE_REQUIRED
    assert hint in found.text
    assert dict(found.headers) == {
        "Upgrade": "websocket",
        "Connection": "Upgrade, close",
        "Sec-WebSocket-Version": "13",
    }


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_plain_request_is_refused_with_all_three_ways(version: bytes) -> None:
    found = refused(parse(b"GET /updates HTTP/%b\r\nHost: localhost\r\n\r\n" % version))
    assert found.status == HTTPStatus.UPGRADE_REQUIRED
    assert found.text == (
        "/updates sends updates in three ways: connect with a WebSocket client, add format=sse to the query for "
        "Server-Sent Events, or add format=json for JSON."
    )


@pytest.mark.parametrize("version", [b"12", b"8", b"0", b"13, 8", b"13\r\nSec-WebSocket-Version: 8", b""])
def test_other_version_is_refused_with_the_supported_one(version: bytes) -> None:
    found = refused(changed(b"Version: 13", b"Version: " + version))
    assert found.status == HTTPStatus.UPGRADE_REQUIRED
    assert found.text == "/updates supports only version 13 of WebSocket (RFC 6455)."
    assert ("Sec-WebSocket-Version", "13") in found.headers


KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (KEY + b"\r\n", b"", "Sec-WebSocket-Key"),
        (KEY, KEY + b"\r\n" + KEY, "Sec-WebSocket-Key"),
        (KEY, b"Sec-WebSocket-Key: secret", "Sec-WebSocket-Key"),
        (KEY, b"Sec-WebSocket-Key: c2VjcmV0", "Sec-WebSocket-Key"),
        (KEY, b"Sec-WebSocket-Key: \xe9", "Sec-WebSocket-Key"),
        (b"Sec-WebSocket-Version: 13\r\n", b"", "Sec-WebSocket-Version"),
    ],
)
def test_invalid_handshake_is_refused_with_the_wrong_header(old: bytes, new: bytes, name: str) -> None:
    found = refused(changed(old, new))
    assert found.status == HTTPStatus.BAD_REQUEST
    assert f": {name} is missing, repeated or malformed." in found.text
    assert "secret" not in found.text


def test_only_a_handshake_is_an_upgrade() -> None:
    assert is_upgrade(parse(HANDSHAKE))
    for old, new in [
        (b"GET", b"HEAD"),
        (b"GET", b"OPTIONS"),
        (b"1.1", b"1.0"),
        (b"websocket", b"h2c"),
        (b": Up", b": No"),
    ]:
        assert not is_upgrade(changed(old, new))
