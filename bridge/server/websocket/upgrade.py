"""Checks WebSocket handshakes, and makes the 101 response (RFC 6455, section 4.2).

The checks are as lenient as RFC 6455, section 4.2.1, allows: `Upgrade` and `Connection` may be lists. The bridge never
negotiates an extension or a subprotocol.

The library websockets could make the response too, but its objects take ten times as long as the rest of the handshake.
This time matters when the bridge restarts and all clients connect again.

The module does no input or output, except that it reads the time. The package `bridge.server.access` decides which
clients may connect.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from http import HTTPStatus

from bridge.contract.filters import SubscribeRequest
from bridge.server.access.rules import Refusal, Rule
from bridge.server.http.request import Request
from bridge.server.http.response import date_header

VERSION = "13"

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""A constant of RFC 6455, section 1.3."""

KEY_CHARACTERS = 24

_SWITCHING = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The request becomes a WebSocket connection."""

    response: bytes
    """The response with status 101."""
    subscribe: SubscribeRequest
    headers: tuple[tuple[str, str], ...]
    """The additional headers of the response."""


def is_upgrade(request: Request) -> bool:
    """Whether a client asks for a WebSocket connection. In HTTP/1.0, upgrades are ignored (RFC 9110, section 7.8)."""
    return (
        request.method == "GET"
        and request.version == "1.1"
        and request.has_member("upgrade", "websocket")
        and request.has_member("connection", "upgrade")
    )


def check(request: Request, path: str) -> Refusal | None:
    """Returns why a request can't be upgraded, or None for a valid handshake."""
    if not is_upgrade(request):
        return _upgrade_required(
            f"{path} sends updates in three ways: connect with a WebSocket client, add format=sse to the query for "
            f"Server-Sent Events, or add format=json for JSON.{_hint(request)}"
        )
    keys = request.headers.get("sec-websocket-key", ())
    versions = request.headers.get("sec-websocket-version", ())
    if len(keys) != 1 or not is_key(keys[0]):
        return _malformed("Sec-WebSocket-Key")
    if not versions:
        return _malformed("Sec-WebSocket-Version")
    if versions != [VERSION]:
        return _upgrade_required(f"{path} supports only version {VERSION} of WebSocket (RFC 6455).")
    return None


def switching_protocols(key: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Returns the 101 response to a valid key, with additional headers."""
    # RFC 6455, section 4.2.2, defines the value that proves to the client that the server speaks WebSocket.
    accept = b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    added = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"{_SWITCHING}{accept}\r\nDate: {date_header()}\r\n{added}\r\n".encode("ascii")


def is_key(key: str) -> bool:
    """Whether a key is the Base64 form of 16 bytes (RFC 6455, section 4.1)."""
    try:
        return len(key) == KEY_CHARACTERS and len(b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def _malformed(header: str) -> Refusal:
    text = (
        f"This is not a valid WebSocket handshake (RFC 6455, section 4.1): {header} is missing, repeated or malformed."
    )
    return Refusal(HTTPStatus.BAD_REQUEST, text, Rule.UPGRADE, text)


def _upgrade_required(text: str) -> Refusal:
    # RFC 9110, section 15.5.22, and RFC 6455, section 4.4, require these headers in a response with status 426.
    headers = ("Upgrade", "websocket"), ("Connection", "Upgrade, close"), ("Sec-WebSocket-Version", VERSION)
    return Refusal(HTTPStatus.UPGRADE_REQUIRED, text, Rule.UPGRADE, text, headers)


def _hint(request: Request) -> str:
    """Returns advice for the operator if the request seems to be a handshake that a proxy has changed."""
    if not ("sec-websocket-key" in request.headers or request.has_member("upgrade", "websocket")):
        return ""
    if request.method != "GET":
        return f" A WebSocket handshake must use GET, not {request.method}."
    if request.version == "1.0":
        return " The handshake must use HTTP/1.1, not HTTP/1.0: in nginx, proxy_http_version 1.1."
    return (
        " A proxy removed the headers Upgrade and Connection from this handshake: in nginx, set "
        'proxy_set_header Upgrade $http_upgrade and proxy_set_header Connection "upgrade".'
    )
