"""Handles a client's first request, from the accepted socket to a connection, a page or a refusal.

The bytes and the time of a handshake are limited, including those of TLS. `http/request.py` parses the request, and
`router.py` decides the answer. If the answer is a WebSocket or an event stream, a `ClientConnection` takes over the
transport.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from bridge.contract.text import printable
from bridge.server.access.read_limiter import READ_BUFFER
from bridge.server.access.rules import Refusal, Rule
from bridge.server.http.event_stream import COMMENT, event_stream_head
from bridge.server.http.request import BadRequest, Request, RequestReader
from bridge.server.http.response import refusal_response, serialize
from bridge.server.http.response_writer import ResponseWriter
from bridge.server.router import Answer, OpenEventStream, Opening, Poll, Refused, Router
from bridge.server.transport import tcp
from bridge.server.transport.socket_transport import SocketTransport
from bridge.server.transport.tcp import PeerName
from bridge.server.websocket.upgrade import Upgrade
from bridge.server.websocket.upgrade_cache import UpgradeCache

MAX_DISCARDED_BYTES = 2**18
"""If a client sends more than this number of bytes after its request, for example a body, the client is disconnected.

Up to this number of bytes are read and discarded. If the socket were closed with unread bytes, the connection would be
reset, and the response would be lost.
"""


class MakeTransport(Protocol):
    """A function that makes the transport of an accepted socket."""

    def __call__(
        self,
        client: socket.socket,
        peername: PeerName,
        protocol: asyncio.BufferedProtocol,
        on_failed: Callable[[OSError], None],
    ) -> SocketTransport:
        """Returns a transport, which takes over the socket.

        If there is a TLS handshake and it fails, the transport calls `on_failed` instead of `connection_lost`.
        """


class HandshakeLog(Protocol):
    """The log to which a handshake reports its outcome."""

    tracing: bool
    """Whether a handshake must call the method `handshake` of this log."""

    def refused(self, rule: Rule, peer: str, detail: str) -> None:
        """Called when a client is refused."""

    def abandoned(self, peer: str) -> None:
        """Called when a client ends its connection before its request is complete."""

    def handshake(self, peer: str, request: Request | None, decision: Answer | Rule, duration_s: float) -> None:
        """Called with the decision on a handshake.

        If the decision is a `Rule`, the client is refused without a response.

        `request` is None if the request can't be parsed, or was not read. `duration_s` is the time since the socket was
        accepted.
        """


@dataclass(frozen=True, slots=True)
class HandshakeContext:
    """The collaborators that all handshakes of a server share."""

    router: Router
    upgrade_cache: UpgradeCache
    log: HandshakeLog
    make_transport: MakeTransport
    timeout_s: float
    """The maximum time from accepting the socket to the complete request.

    The timeout is also the period in which a client must read enough of its response.
    """
    on_opened: "Callable[[Handshake, asyncio.Transport, Request, Opening, bytes], None]"
    """Called when a client's request opens a connection, with the bytes that the client sent after the request."""
    on_closed: "Callable[[Handshake], None]"
    """Called when a handshake has ended without a connection, and its socket is closed."""


class Handshake(asyncio.BufferedProtocol):
    """Reads one request within the timeout, and writes the response to the client."""

    __slots__ = (
        "_answered",
        "_began_at",
        "_connected",
        "_context",
        "_discarded_bytes",
        "_peer",
        "_reader",
        "_transport",
        "_writer",
        "address",
    )

    def __init__(self, context: HandshakeContext, client: socket.socket, peername: PeerName) -> None:
        """Takes over an accepted socket. Call `begin` to read the request.

        The address in `peername` has passed the check of addresses.
        """
        self.address = peername.address
        self._context = context
        self._reader: RequestReader | None = None
        """The reader of a request of which the first part has arrived, or None."""
        self._answered = False
        self._discarded_bytes = 0
        self._writer: ResponseWriter | None = None
        self._began_at = 0.0
        self._peer = self.address
        """The client's name in debug lines."""
        if context.log.tracing:
            self._began_at = asyncio.get_running_loop().time()
            self._peer = peername.text
        self._connected = False
        """Whether the TLS handshake is complete, or there is none."""
        self._transport: SocketTransport | None = context.make_transport(client, peername, self, self._on_tls_failed)

    def begin(self) -> None:
        """Starts reading. A request that has already arrived is answered at once."""
        assert self._transport is not None
        try:
            self._transport.begin()
        except OSError as error:
            self._refuse_unread(Rule.LOST, printable(str(error)) or type(error).__name__)
            self.abort()

    def _on_tls_failed(self, error: OSError) -> None:
        """Called if the TLS handshake fails, if the client has disconnected, or after `abort`."""
        left = isinstance(error, (ConnectionError, ssl.SSLEOFError)) or error.errno == errno.ENOTCONN
        if left and not self._answered:
            self._context.log.abandoned(self._peer)
        elif not self._answered:
            # The error text comes from OpenSSL. If the client sent a TLS alert, OpenSSL's error text contains only the
            # alert's number.
            detail = printable(str(error)) or type(error).__name__
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                detail = "The client sent HTTP instead of TLS: use wss:// and https:// here."
            self._refuse_unread(Rule.TLS, detail)
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connected = True

    # Reading the request and answering it

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self._answered:
            self._discarded_bytes += nbytes
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.abort()
            return
        data = bytes(READ_BUFFER[:nbytes])
        is_first = self._reader is None
        if self._reader is None:
            if (known := self._context.upgrade_cache.get(data)) is not None:
                self._answer(*known)
                return
            self._reader = RequestReader()
        try:
            read = self._reader.feed(data)
        except BadRequest as error:
            self._answer(error.request, self._context.router.refuse(error))
            return
        if read is not None:
            request, rest = read
            answer = self._context.router.route(request)
            if isinstance(answer, Upgrade) and is_first and not rest:
                self._context.upgrade_cache.add(data, request, answer)
            self._answer(request, answer, rest)

    def _answer(self, request: Request | None, answer: Answer, rest: bytes = b"") -> None:
        """Carries out the router's decision. `rest` holds the bytes after the head of the request."""
        self._trace(request, answer)
        if isinstance(answer, Upgrade):
            assert request is not None
            self._open(request, answer, answer.response, rest)
            return
        if isinstance(answer, OpenEventStream):
            assert request is not None
            head = event_stream_head(answer.headers)
            if request.method == "HEAD":
                self._write(head)
            else:
                self._open(request, answer, head + COMMENT, rest)
            return
        if isinstance(answer, Poll):
            assert request is not None
            self._open(request, answer, b"", rest)
            return
        if isinstance(answer, Refused):
            self._context.log.refused(answer.refusal.rule, self.address, answer.refusal.detail)
            answer = answer.response
        self._write(serialize(answer, has_body=request is None or request.method != "HEAD"))

    def _refuse_unread(self, rule: Rule, detail: str) -> None:
        """Reports that the client is refused before its request is read. The client gets no response."""
        self._trace(None, rule)
        self._context.log.refused(rule, self.address, detail)

    def _trace(self, request: Request | None, decision: Answer | Rule) -> None:
        log = self._context.log
        if log.tracing:
            log.handshake(self._peer, request, decision, asyncio.get_running_loop().time() - self._began_at)

    def _open(self, request: Request, answer: Opening, begin: bytes, rest: bytes) -> None:
        """Writes the begin of the response. A connection then takes over the transport."""
        assert self._transport is not None
        self._end_reading()
        if begin:
            self._transport.write(begin)
        self._context.on_opened(self, self._transport, request, answer, rest)

    def _write(self, data: bytes) -> None:
        """Writes a whole response."""
        assert self._transport is not None
        self._end_reading()
        self._writer = ResponseWriter(self._transport, data, self._context.timeout_s, self.abort)

    def _end_reading(self) -> None:
        self._answered = True
        self._reader = None

    # The timeout

    def on_timeout(self) -> None:
        """Refuses the client if its request is not complete."""
        if self._answered:
            return
        seconds = self._context.timeout_s
        missing = "request" if self._connected else "TLS handshake"
        text = f"No complete {missing} within {seconds:g} seconds."
        if self._connected:
            refusal = Refusal(HTTPStatus.REQUEST_TIMEOUT, text, Rule.TIMEOUT, text)
            self._answer(None, Refused(refusal_response(refusal), refusal))
        else:
            self._refuse_unread(Rule.TIMEOUT, text)
            self.abort()

    # The end

    def eof_received(self) -> None:
        """Returns None, so that the transport closes itself."""

    def abort(self) -> None:
        """Ends the handshake with a reset. Data that arrives from the client after `abort` is ignored."""
        self._answered = True
        if self._transport is not None:
            self._reset_on_close(self._transport)
            self._transport.abort()

    def _reset_on_close(self, transport: SocketTransport) -> None:
        # Without a reset, the kernel would keep the unread part of the response in memory, for a connection that no
        # limit counts.
        if self._connected:
            tcp.reset_on_close(transport.get_extra_info("socket"))

    def evict(self, rule: Rule) -> None:
        """Ends the handshake with a reset, and frees its descriptor at once, because a new client already has one."""
        if not self._answered:
            self._trace(None, rule)
        self._answered = True
        if self._transport is not None:
            self._reset_on_close(self._transport)
            self._transport.close_at_once()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answered:
            self._context.log.abandoned(self._peer)
        self._end()

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.stop()
        self._context.on_closed(self)
        # Transport and handshake refer to each other. With references in both directions, only the garbage collector
        # could free transport and handshake.
        self._transport = self._writer = None
