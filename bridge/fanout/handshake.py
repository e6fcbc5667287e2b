"""From a TCP connection to a WebSocket one, or to a page, or to a refusal: the first bytes of every client.

HTTP is parsed and the upgrade is checked by websockets; who may connect is decided by `access`. Bounded in bytes and
time. What is left of a client after its upgrade is a `Connection`, and nothing of this.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Protocol, cast

from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from bridge.fanout.access import Access, Refusal
from bridge.fanout.connection import RECEIVED
from bridge.fanout.pages import Page, Pages, sentence

MAX_REQUEST_BYTES = 16384
"""Request line and headers. A browser with a full jar of cookies for localhost sends about 8 KiB."""


OTHER_METHOD = re.compile(rb"(?!GET )[A-Z]+ [!-~]+ HTTP/1\.[01]\r\n")

ONLY_GET = sentence(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET is answered here.", ("Allow", "GET"))


class Host(Protocol):
    """What a handshake needs of the server that it belongs to."""

    access: Access
    pages: Pages
    path: str
    handshake_timeout_s: float

    def began(self, handshake: "Handshake") -> bool:
        """A client has connected; False where there is no place even to refuse it."""

    def upgraded(self, transport: asyncio.Transport, rest: bytes) -> None:
        """The handshake is done; `rest` is what the client sent after it."""

    def refused(self, rule: str, peer: str, detail: str) -> None:
        """A client was turned away, for a log line and a metric."""

    def over(self, handshake: "Handshake") -> None:
        """This handshake is no longer pending."""


class Handshake(asyncio.BufferedProtocol):
    """Reads one request and answers it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if not self._host.began(self):
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._host.handshake_timeout_s, self._too_late)
        address = self._address()
        if not self._host.access.admits_peer(address):
            # At once: nothing that a stranger says is read.
            self._turn_away(self._host.access.refusal(address, (), ""))

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        if self._answered:
            return
        scanned = max(0, len(self._received) - 3)
        self._received += RECEIVED[:nbytes]
        end = self._received.find(b"\r\n\r\n", scanned)
        if end < 0 or end > MAX_REQUEST_BYTES:
            if len(self._received) > MAX_REQUEST_BYTES:
                self._refuse("size", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's headers are too large.")
            return
        self._request(bytes(self._received[: end + 4]), bytes(self._received[end + 4 :]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._transport = None

    def eof_received(self) -> None:
        """The transport closes itself."""

    def abort(self) -> None:
        """Ends it at once: the server is stopping."""
        if self._transport is not None:
            self._transport.abort()

    def _request(self, head: bytes, rest: bytes) -> None:
        assert self._transport is not None
        protocol = ServerProtocol(max_size=None)
        protocol.receive_data(head)
        events = protocol.events_received()
        # A generator of the protocol's own, which refers to it: with it, each handshake would leave 1.3 KB to the
        # garbage collector. No more bytes come here.
        del protocol.parser
        if not events:
            # Also a request with a body, which no page takes.
            if OTHER_METHOD.match(head):
                self._answer(ONLY_GET)
            else:
                self._refuse("malformed", HTTPStatus.BAD_REQUEST, "This is not an HTTP request that can be read.")
            return
        request = events[0]
        assert isinstance(request, Request)
        refusal = self._host.access.refusal(self._address(), list(request.headers.raw_items()), request.path)
        if refusal is not None:
            self._turn_away(refusal)
            return
        path, query = _split(request.path)
        if request.method != "GET":
            self._answer(ONLY_GET)
        elif path != self._host.path:
            self._answer(self._host.pages.get(path))
        elif query:
            text = f"{path} takes no query parameters, yet there is one; connect without it."
            self._refuse("query", HTTPStatus.BAD_REQUEST, text)
        else:
            self._upgrade(protocol, request, rest)

    def _upgrade(self, protocol: ServerProtocol, request: Request, rest: bytes) -> None:
        assert self._transport is not None
        response = protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._host.refused("upgrade", self._address(), str(protocol.handshake_exc))
            self._write(response)
            return
        self._answered = True
        self._end()
        self._transport.write(response.serialize())
        self._host.upgraded(self._transport, rest)

    def _too_late(self) -> None:
        if self._answered:
            self.abort()
            return
        seconds = self._host.handshake_timeout_s
        # Once more, for a client that does not end the connection either: it would keep its place for ever.
        self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late)
        self._refuse("timeout", HTTPStatus.REQUEST_TIMEOUT, f"No complete request within {seconds:g} seconds.")

    def _turn_away(self, refusal: Refusal | None) -> None:
        assert refusal is not None
        self._refuse(refusal.rule, HTTPStatus(refusal.status), refusal.sentence, refusal.detail)

    def _refuse(self, rule: str, status: HTTPStatus, text: str, detail: str = "") -> None:
        self._host.refused(rule, self._address(), detail or text)
        self._answer(sentence(status, text))

    def _answer(self, page: Page) -> None:
        headers = Headers(
            [
                ("Content-Type", page.content_type),
                ("Content-Length", str(len(page.body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("Connection", "close"),
                *page.headers,
            ]
        )
        self._write(Response(page.status.value, page.status.phrase, headers, page.body))

    def _write(self, response: Response) -> None:
        assert self._transport is not None
        self._answered = True
        self._received.clear()
        self._transport.write(response.serialize())
        # Only our side ends: closing the socket with bytes unread would reset it, and the answer might never be seen.
        # The timer runs on: it ends the connection of a client that does not end it.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._host.over(self)

    def _address(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if peer else "unknown"


def _split(target: str) -> tuple[str, str]:
    """Path and query of an origin-form or absolute-form request target."""
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    return path, query
