"""From a TCP connection to a WebSocket one, or to a page, or to a refusal: the first bytes of every client.

A handshake is bounded in bytes and time, TLS included. `http_request` parses the request, `access` decides whether it
is allowed, and `upgrade` applies RFC 6455. After an upgrade, a `Connection` takes over the client.
"""

import asyncio
import errno
import socket
import ssl
import struct
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Protocol

from bridge.config.paths import PROBED
from bridge.contract.filters import BadQuery, QueryParser, SubscribeRequest
from bridge.contract.text import printable
from bridge.server.access.read_limiter import READ_BUFFER
from bridge.server.access.refusals import Rule
from bridge.server.access.rules import Access
from bridge.server.http.pages import Pages
from bridge.server.http.paths import is_shared
from bridge.server.http.request import BadRequest, Request, RequestReader
from bridge.server.http.response_writer import Sending
from bridge.server.http.responses import Header, Response, sentence, serialized, unless_matched
from bridge.server.tls import Tls
from bridge.server.transport.compat import as_transport
from bridge.server.transport.tls_transport import TlsTransport
from bridge.server.websocket import upgrade

MAX_BEHIND_BYTES = 2**18
"""Behind a request that is answered: a body that somebody sends along. It is read, so that the answer is not lost to a
reset, and thrown away; what is more than that only costs time."""

PERIODS = 4
"""The number of timers that make up the timeout, one after another. The event loop reads at least once in each period,
so slow turns of the loop make the timeout longer. With a single timer, a turn of 5 s would refuse every client that
connects during this turn, before the bridge reads its request."""

RESET = struct.pack("ii", 1, 0)
"""A socket that lingers for no time."""

READ_METHODS = frozenset({"GET", "HEAD"})

PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET"),
    ("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control"),
    ("Access-Control-Max-Age", "7200"),
)
"""What a page of another origin may send to the endpoint. For two hours, the most that Chromium remembers it for."""


class Host(Protocol):
    """What a handshake needs of the server that it belongs to."""

    access: Access
    query_parser: QueryParser
    pages: Pages
    path: str
    tls: Tls | None
    handshake_timeout_s: float
    tls_shutdown_s: float

    def upgraded(
        self,
        handshake: "Handshake",
        transport: asyncio.Transport,
        request: Request,
        wanted: SubscribeRequest,
        rest: bytes,
    ) -> None:
        """The client of this handshake has a connection now; `rest` is what it sent after its request."""

    def refused(self, rule: Rule, peer: str, detail: str) -> None:
        """A client is refused, for a log line and a metric."""

    def abandoned(self, peer: str) -> None:
        """Called if a client ends its connection before its request is complete."""

    def over(self, handshake: "Handshake") -> None:
        """The client of this handshake is gone."""


class Handshake(asyncio.BufferedProtocol):
    """Reads one request and answers it, in the time that there is for it, which begins when it is made."""

    def __init__(self, host: Host, client: socket.socket, address: str) -> None:
        """`client` is an accepted socket, whose `address` may connect."""
        self.address = address
        self._host = host
        self._reader: RequestReader | None = RequestReader()
        self._transport: asyncio.Transport | None = None
        self._answered = False
        self._behind_bytes = 0
        """What came behind a request that is answered."""
        self._trusts_host = False
        """Whether Host has passed its rule."""
        self._sending: Sending | None = None
        loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._periods = PERIODS
        self._begin_period()
        self._shaking_hands: TlsTransport | None = None
        """The transport during its TLS handshake."""
        self._opening: asyncio.Task[tuple[asyncio.Transport, asyncio.BaseProtocol]] | None = None
        if host.tls is None:
            self._opening = loop.create_task(loop.connect_accepted_socket(lambda: self, client))
            self._opening.add_done_callback(partial(self._opened, client))
            return
        try:
            self._shaking_hands = TlsTransport(
                loop, client, host.tls.context, self, self._on_tls_failed, host.tls_shutdown_s
            )
        except OSError as error:
            client.close()
            loop.call_soon(self._on_tls_failed, error)
        else:
            self._shaking_hands.begin()

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
        if isinstance(error, ConnectionError):
            self._host.abandoned(self.address)
        elif error is not None:
            self._host.refused(Rule.LOST, self.address, printable(str(error)) or type(error).__name__)
        self._end()

    def _on_tls_failed(self, error: OSError) -> None:
        """Called if the TLS handshake fails, if the client is gone, or after `abort`."""
        self._shaking_hands = None
        left = isinstance(error, (ConnectionError, ssl.SSLEOFError)) or error.errno == errno.ENOTCONN
        if left and not self._answered:
            self._host.abandoned(self.address)
        elif not self._answered:
            # The text is OpenSSL's own: an alert of a client has only a number.
            detail = printable(str(error)) or type(error).__name__
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                detail = "It speaks HTTP, not TLS: use wss:// and https:// here."
            self._host.refused(Rule.TLS, self.address, detail)
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = as_transport(transport)
        self._shaking_hands = None
        if self._answered:
            # `abort` or the timeout came in the same turn of the loop in which the transport was created.
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self._answered:
            self._behind_bytes += nbytes
            if self._behind_bytes > MAX_BEHIND_BYTES:
                self.abort()
            return
        assert self._reader is not None
        try:
            read = self._reader.feed(READ_BUFFER[:nbytes])
        except BadRequest as error:
            self._refuse(error.rule, error.status, str(error), request=error.request)
        else:
            if read is not None:
                self._answer_request(*read)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answered:
            self._host.abandoned(self.address)
        self._end()
        # They refer to each other: without this, they wait for the garbage collector.
        self._transport = self._sending = None

    def eof_received(self) -> None:
        """The transport closes itself."""

    def abort(self) -> None:
        """Ends it at once: the server is stopping, or needs the place. Whatever comes by then is not looked at."""
        self._answered = True
        self._stop_timer()
        if self._transport is not None:
            # With a reset: the kernel would keep what the client has not read, of a connection that nobody counts. TLS
            # that is over has no socket any more.
            if (stream := self._transport.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._transport.abort()
        elif self._shaking_hands is not None:
            self._shaking_hands.abort()
        elif self._opening is not None:
            self._opening.cancel()

    def _answer_request(self, request: Request, rest: bytes) -> None:
        """`rest` is what came behind the head."""
        host, path, access = self._host, request.path, self._host.access
        requires_host = not (request.version == "1.0" and path in PROBED)
        refusal = access.check_request(request.headers, request.target, requires_host=requires_host)
        self._trusts_host = refusal is None
        if refusal is None and path == host.path:
            refusal = access.check_origin(request.headers)
        if refusal is not None:
            self._refuse(refusal.rule, HTTPStatus(refusal.status), refusal.sentence, refusal.detail, request)
        elif path == host.path:
            self._answer_endpoint(request, rest)
        elif request.method in READ_METHODS:
            response = host.pages.get(path)
            self._answer(unless_matched(response, request.headers.get("if-none-match", ())), request)
        elif request.method == "OPTIONS" and path in PROBED:
            # HAProxy's check, unless it is told another method. The status says what a GET's says.
            response = host.pages.get(path)
            self._answer(Response(response.status, b"", headers=(("Allow", "GET, HEAD, OPTIONS"),)), request)
        elif path == "*":
            # About the server as a whole: the check that HAProxy's manual shows.
            self._answer(Response(HTTPStatus.NO_CONTENT, b"", headers=(("Allow", "GET, HEAD, OPTIONS"),)), request)
        else:
            self._answer_other_method(request, "GET, HEAD, OPTIONS" if path in PROBED else "GET, HEAD")

    def _answer_endpoint(self, request: Request, rest: bytes) -> None:
        """A request to the path of updates, from where it may be sent."""
        if request.method == "OPTIONS":
            allow = ("Allow", "GET, HEAD, OPTIONS")
            self._answer(Response(HTTPStatus.NO_CONTENT, b"", headers=(allow, *PREFLIGHT)), request)
            return
        if request.method not in READ_METHODS:
            self._answer_other_method(request, "GET, HEAD, OPTIONS")
            return
        try:
            wanted = self._host.query_parser.parse(request.query)
        except BadQuery as error:
            # Some hints are questions, with a mark of their own.
            end = "" if str(error).endswith("?") else "."
            text = f"This query can't be answered: {error}{end}"
            self._refuse(Rule.QUERY, HTTPStatus.BAD_REQUEST, text, request=request)
            return
        answer = upgrade.answer(request, self._host.path, self._cors(request))
        if isinstance(answer, upgrade.NoUpgrade):
            self._refuse(Rule.UPGRADE, answer.status, answer.sentence, request=request, headers=answer.headers)
            return
        assert self._transport is not None
        self._answered = True
        self._reader = None
        self._stop_timer()
        self._transport.write(answer)
        self._host.upgraded(self, self._transport, request, wanted, rest)

    def _answer_other_method(self, request: Request, allowed: str) -> None:
        text = f"Only {allowed} are allowed for this path."
        self._answer(sentence(HTTPStatus.METHOD_NOT_ALLOWED, text, ("Allow", allowed)), request)

    def _cors(self, request: Request) -> tuple[Header, ...]:
        """What lets a page of another origin read the answer, if it may connect. Never with credentials."""
        is_endpoint = request.path == self._host.path
        if not (is_endpoint or is_shared(request.path)):
            return ()
        vary: Header = ("Vary", "Accept, Origin" if is_endpoint else "Origin")
        origin = self._host.access.allowed_origin(request.headers, trusts_host=self._trusts_host)
        if origin is None:
            return (vary,)
        return vary, ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", "ETag")

    def _begin_period(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._host.handshake_timeout_s / PERIODS, self._end_period)

    def _end_period(self) -> None:
        self._periods -= 1
        if self._periods:
            self._begin_period()
        else:
            self._too_late()

    def _too_late(self) -> None:
        seconds = self._host.handshake_timeout_s
        if self._transport is None:
            missing = "TLS handshake" if self._host.tls else "request"
            self._host.refused(Rule.TIMEOUT, self.address, f"No complete {missing} within {seconds:g} seconds.")
            self.abort()
            return
        self._refuse(Rule.TIMEOUT, HTTPStatus.REQUEST_TIMEOUT, f"No complete request within {seconds:g} seconds.")

    def _refuse(
        self,
        rule: Rule,
        status: HTTPStatus,
        text: str,
        detail: str = "",
        request: Request | None = None,
        headers: tuple[Header, ...] = (),
    ) -> None:
        self._host.refused(rule, self.address, detail or text)
        self._answer(sentence(status, text, *headers), request)

    def _answer(self, response: Response, request: Request | None = None) -> None:
        assert self._transport is not None
        self._answered = True
        self._reader = None
        self._stop_timer()
        has_body = True
        if request is not None:
            response = response.with_headers(*self._cors(request))
            has_body = request.method != "HEAD"
        data = serialized(response, has_body=has_body)
        self._sending = Sending(self._transport, data, self._host.handshake_timeout_s, self.abort)

    def _end(self) -> None:
        self._stop_timer()
        self._host.over(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sending is not None:
            self._sending.stop()
