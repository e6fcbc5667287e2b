"""From a TCP connection to a WebSocket one, or to a page, or to a refusal: the first bytes of every client.

HTTP is parsed and the upgrade is checked by websockets; who may connect is decided by `access`. Bounded in bytes and
time, TLS included. What is left of a client after its upgrade is a `Connection`, and nothing of this.
"""

import asyncio
import re
import socket
import ssl
import struct
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Protocol, cast

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from bridge.contract.filters import BadQuery, Filters, Wish
from bridge.contract.text import printable
from bridge.fanout.access import Access
from bridge.fanout.allowance import RECEIVED
from bridge.fanout.pages import Page, Pages, sentence
from bridge.fanout.tls import Tls

MAX_REQUEST_BYTES = 16384
"""Request line and headers. A browser with a full jar of cookies for localhost sends about 8 KiB."""

MAX_LINE_BYTES, MAX_HEADERS = 8190, 128
"""websockets' own limits."""

MAX_BEHIND_BYTES = 2**18
"""Behind a request that is answered: a body that somebody sends along. It is read, so that the answer is not lost to a
reset, and thrown away; what is more than that only costs time."""

RESET = struct.pack("ii", 1, 0)
"""A socket that lingers for no time."""

TLS_HANDSHAKE = 0x16
"""The first byte of whoever speaks TLS (RFC 8446, section 5.1)."""

OTHER_METHOD = re.compile(rb"(?!GET )[A-Z]+ [!-~]+ HTTP/1\.[01]\r\n")

ONLY_GET = sentence(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET is answered here.", ("Allow", "GET"))

FOR_BROWSERS = (("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "same-origin"))
"""In every answer: a browser takes it for nothing else than it is, and hands it to no page of another origin."""


TOO_LARGE = f"Of a request {MAX_REQUEST_BYTES} bytes are read, {MAX_HEADERS} headers, {MAX_LINE_BYTES} bytes a line."


class Host(Protocol):
    """What a handshake needs of the server that it belongs to."""

    access: Access
    filters: Filters
    pages: Pages
    path: str
    tls: Tls | None
    handshake_timeout_s: float
    tls_shutdown_s: float

    def upgraded(self, handshake: "Handshake", transport: asyncio.Transport, wish: Wish, rest: bytes) -> None:
        """The client of this handshake has a connection now; `rest` is what it sent after its request."""

    def refused(self, rule: str, peer: str, detail: str) -> None:
        """A client was turned away, for a log line and a metric."""

    def over(self, handshake: "Handshake") -> None:
        """The client of this handshake is gone."""


class Handshake(asyncio.BufferedProtocol):
    """Reads one request and answers it, in the time that there is for it, which begins when it is made."""

    def __init__(self, host: Host, client: socket.socket, address: str) -> None:
        """`client` is an accepted socket, whose `address` may connect."""
        self.address = address
        self._host = host
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answered = False
        self._behind_bytes = 0
        """What came behind a request that is answered."""
        loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = loop.call_later(host.handshake_timeout_s, self._too_late)
        # Makes a transport of the socket, with TLS where the bridge has a certificate.
        self._opening: asyncio.Task[tuple[asyncio.Transport, asyncio.BaseProtocol]] | None = loop.create_task(
            loop.connect_accepted_socket(
                lambda: self,
                client,
                ssl=host.tls.context if host.tls else None,
                # The timer of the handshake as a whole comes first.
                ssl_handshake_timeout=2 * host.handshake_timeout_s if host.tls else None,
                ssl_shutdown_timeout=host.tls_shutdown_s if host.tls else None,
            )
        )
        self._opening.add_done_callback(partial(self._opened, client))

    def _opened(
        self, client: socket.socket, opening: "asyncio.Task[tuple[asyncio.Transport, asyncio.BaseProtocol]]"
    ) -> None:
        # Its result refers to this, which refers to it: they would be left to the garbage collector.
        self._opening = None
        if self._transport is not None:
            return
        # No transport ever had it, or none that would say that it is gone.
        client.close()
        error = None if opening.cancelled() else opening.exception()
        if error is not None:
            # OpenSSL's own words, or none at all: what a client says in an alert is a number.
            detail = printable(str(error)) or "The client ended the connection."
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                detail = "It speaks HTTP, not TLS: use wss:// and https:// here."
            self._host.refused("tls" if self._host.tls else "lost", self.address, detail)
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if self._answered:
            # TLS was done in the turn in which it was given up.
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        if self._answered:
            self._behind_bytes += nbytes
            if self._behind_bytes > MAX_BEHIND_BYTES:
                self.abort()
            return
        scanned = max(0, len(self._received) - 3)
        self._received += RECEIVED[:nbytes]
        if self._received[0] == TLS_HANDSHAKE:
            self._refuse("malformed", HTTPStatus.BAD_REQUEST, "There is no TLS here: use ws:// and http://.")
            return
        end = self._received.find(b"\r\n\r\n", scanned)
        if end < 0 or end > MAX_REQUEST_BYTES:
            if len(self._received) > MAX_REQUEST_BYTES:
                self._refuse("size", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)
            return
        self._request(bytes(self._received[: end + 4]), bytes(self._received[end + 4 :]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._transport = None

    def eof_received(self) -> None:
        """The transport closes itself."""

    def abort(self) -> None:
        """Ends it at once: the server is stopping, or needs the place. Whatever comes by then is not looked at."""
        self._answered = True
        if self._transport is not None:
            # With a reset: the kernel would keep what the client has not read, of a connection that nobody counts. TLS
            # that is over has no socket any more.
            if (stream := self._transport.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._transport.abort()
        elif self._opening is not None:
            self._opening.cancel()

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
            lines = head.split(b"\r\n")
            if OTHER_METHOD.match(head):
                self._answer(ONLY_GET)
            elif max(map(len, lines)) > MAX_LINE_BYTES or len(lines) > MAX_HEADERS + 3:
                self._refuse("size", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)
            else:
                self._refuse("malformed", HTTPStatus.BAD_REQUEST, "This is not an HTTP request that can be read.")
            return
        request = events[0]
        assert isinstance(request, Request)
        refusal = self._host.access.refusal(list(request.headers.raw_items()), request.path)
        if refusal is not None:
            self._refuse(refusal.rule, HTTPStatus(refusal.status), refusal.sentence, refusal.detail)
            return
        path, query = _split(request.path)
        if request.method != "GET":
            self._answer(ONLY_GET)
        elif path != self._host.path:
            self._answer(self._host.pages.get(path))
        else:
            try:
                wish = self._host.filters.read(query)
            except BadQuery as error:
                # Some hints are questions, with a mark of their own.
                end = "" if str(error).endswith("?") else "."
                sentence = f"This query can't be answered: {error}{end}"
                self._refuse("query", HTTPStatus.BAD_REQUEST, sentence)
            else:
                self._upgrade(protocol, request, wish, rest)

    def _upgrade(self, protocol: ServerProtocol, request: Request, wish: Wish, rest: bytes) -> None:
        assert self._transport is not None
        response = protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._refuse_upgrade(HTTPStatus(response.status_code), protocol.handshake_exc)
            return
        self._answered = True
        self._stop_timer()
        self._transport.write(response.serialize())
        self._host.upgraded(self, self._transport, wish, rest)

    def _refuse_upgrade(self, status: HTTPStatus, error: Exception | None) -> None:
        """In words of our own: the library's quote the client, to itself and in the log."""
        if isinstance(error, InvalidHeader) and error.name == "Sec-WebSocket-Version" and error.value is not None:
            status = HTTPStatus.UPGRADE_REQUIRED
        headers: tuple[tuple[str, str], ...] = ()
        if status is HTTPStatus.UPGRADE_REQUIRED:
            text = f"{self._host.path} is a WebSocket endpoint: connect to it with a WebSocket client (version 13)."
            # RFC 9110, section 15.5.22, and RFC 6455, section 4.4.
            headers = ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")
        else:
            text = "This is no WebSocket handshake (RFC 6455, section 4.1): a header is missing, twice or malformed."
        self._refuse("upgrade", status, text, headers=headers)

    def _too_late(self) -> None:
        if self._answered:
            self.abort()
            return
        seconds = self._host.handshake_timeout_s
        if self._transport is None:
            self._host.refused("timeout", self.address, f"No complete TLS handshake within {seconds:g} seconds.")
            self.abort()
            return
        # Once more, for a client that does not end the connection either: it would keep its place for ever.
        self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late)
        self._refuse("timeout", HTTPStatus.REQUEST_TIMEOUT, f"No complete request within {seconds:g} seconds.")

    def _refuse(
        self, rule: str, status: HTTPStatus, text: str, detail: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._host.refused(rule, self.address, detail or text)
        self._answer(sentence(status, text, *headers))

    def _answer(self, page: Page) -> None:
        assert self._transport is not None
        self._answered = True
        self._received.clear()
        self._transport.write(serialized(page))
        # Only our side ends: closing the socket with bytes unread would reset it, and the answer might never be seen.
        # The timer runs on: it ends the connection of a client that does not end it.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _end(self) -> None:
        self._stop_timer()
        self._host.over(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def serialized(page: Page) -> bytes:
    """A response as bytes, after which the connection ends."""
    headers = Headers(
        [
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            *FOR_BROWSERS,
            ("Content-Security-Policy", page.policy),
            ("Connection", "close"),
            *page.headers,
        ]
    )
    return Response(page.status.value, page.status.phrase, headers, page.body).serialize()


def _split(target: str) -> tuple[str, str]:
    """Path and query of an origin-form or absolute-form request target."""
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    return path, query
