"""Checks WebSocket handshakes, and makes the 101 response (RFC 6455, section 4.2).

The library websockets checks the key and the version, and computes the accept value. This module checks the other
headers as leniently as RFC 6455, section 4.2.1, allows: `Upgrade` and `Connection` may be lists. The bridge never
negotiates an extension or a subprotocol.

The module does no input or output. The package `bridge.server.access` decides which clients may connect.
"""

from collections.abc import Sequence
from http import HTTPStatus

from websockets.datastructures import Headers

from bridge.server.access.rules import Refusal, Rule
from bridge.server.http.request import Request
from bridge.server.transport.compat import accept_handshake

VERSION = "13"

_MAX_CHARACTERS = 64
"""The bridge passes at most this many characters of a header's value to the library.

A valid key has 24 characters. A key that is cut still has more than that, so it stays invalid.
"""


def is_upgrade(request: Request) -> bool:
    """Whether a client asks for a WebSocket connection. In HTTP/1.0, upgrades are ignored (RFC 9110, section 7.8)."""
    return (
        request.method == "GET"
        and request.version == "1.1"
        and "websocket" in request.lists("upgrade")
        and "upgrade" in request.lists("connection")
    )


def accept(request: Request, path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes | Refusal:
    """Returns the 101 response with the additional `headers`, or a `Refusal` that says why the request is refused."""
    if not is_upgrade(request):
        return _upgrade_required(
            f"{path} is a WebSocket endpoint: connect to it with a WebSocket client.{_hint(request)}"
        )
    response, fault = accept_handshake(request.target, _library_headers(request))
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        for header, value in headers:
            response.headers[header] = value
        return response.serialize()
    # The library's error texts quote what the client sent, so the bridge writes its own texts.
    if fault == "Sec-WebSocket-Version" and "sec-websocket-version" in request.headers:
        return _upgrade_required(f"{path} supports only version {VERSION} of WebSocket (RFC 6455).")
    text = (
        "This is not a valid WebSocket handshake (RFC 6455, section 4.1): "
        f"{fault or 'a header'} is missing, repeated or malformed."
    )
    return Refusal(HTTPStatus.BAD_REQUEST, text, Rule.UPGRADE, text)


def _library_headers(request: Request) -> Headers:
    """Returns only the headers that the library must check, so that the library does not parse other headers."""
    headers = Headers([("Upgrade", "websocket"), ("Connection", "Upgrade")])
    for name in ("Sec-WebSocket-Key", "Sec-WebSocket-Version"):
        for value in request.headers.get(name.lower(), ()):
            headers[name] = value[:_MAX_CHARACTERS]
    return headers


def _upgrade_required(text: str) -> Refusal:
    # RFC 9110, section 15.5.22, and RFC 6455, section 4.4, require these headers in a response with status 426.
    headers = ("Upgrade", "websocket"), ("Connection", "Upgrade, close"), ("Sec-WebSocket-Version", VERSION)
    return Refusal(HTTPStatus.UPGRADE_REQUIRED, text, Rule.UPGRADE, text, headers)


def _hint(request: Request) -> str:
    """Returns advice for the operator if the request seems to be a handshake that a proxy has changed."""
    if not ("sec-websocket-key" in request.headers or "websocket" in request.lists("upgrade")):
        return ""
    if request.method != "GET":
        return f" A WebSocket handshake must use GET, not {request.method}."
    if request.version == "1.0":
        return " The handshake must use HTTP/1.1, not HTTP/1.0: in nginx, proxy_http_version 1.1."
    return (
        " A proxy removed the headers Upgrade and Connection from this handshake: in nginx, set "
        'proxy_set_header Upgrade $http_upgrade and proxy_set_header Connection "upgrade".'
    )
