"""Handles a client's first request, from the accepted socket to a connection, a page or a refusal.

The bytes and the time of a handshake are limited, including those of TLS. `http/request.py` parses the request, and
`router.py` decides the answer. After an upgrade, a `Connection` takes over the transport.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Protocol

from bridge.contract.filters import SubscribeRequest
from bridge.contract.text import printable
from bridge.server.access.read_limiter import READ_BUFFER
from bridge.server.access.rules import Refusal, Rule
from bridge.server.http.request import BadRequest, Request, RequestReader
from bridge.server.http.response import Response, refusal_response, serialize
from bridge.server.http.response_writer import ResponseWriter
from bridge.server.router import Answer, Refused, Router, Upgrade
from bridge.server.tls import Tls
from bridge.server.transport import tcp
from bridge.server.transport.compat import as_transport
from bridge.server.transport.tls_transport import TlsTransport

MAX_DISCARDED_BYTES = 2**18
"""If a client sends more than this number of bytes after its request, for example a body, the client is disconnected.

Up to this number of bytes are read and discarded. If the socket were closed with unread bytes, the connection would be
reset, and the response would be lost.
"""

PERIODS = 4
"""The number of consecutive timers that make up the timeout of a handshake.

The event loop reads from clients at least once while each timer runs, so slow turns of the loop make the timeout
longer. With a single timer, a turn of 5 s would make the bridge refuse all clients that connected during this turn,
before it has read their requests.
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
    log: HandshakeLog
    tls: Tls | None
    """The server's TLS configuration, or None for a server without TLS."""
    timeout_s: float
    """The maximum time from accepting the socket to the complete request.

    The timeout is also the period in which a client must read enough of its response.
    """
    tls_shutdown_s: float
    on_upgraded: "Callable[[Handshake, asyncio.Transport, Request, SubscribeRequest, bytes], None]"
    """Called when a client's request is upgraded to a connection, with the bytes that the client sent after the
    request."""
    on_closed: "Callable[[Handshake], None]"
    """Called when a handshake has ended without an upgrade, and its socket is closed."""


class Handshake(asyncio.BufferedProtocol):
    """Reads one request within the timeout, and writes the response to the client."""

    def __init__(self, context: HandshakeContext, client: socket.socket, address: str) -> None:
        """Takes over an accepted socket.

        `address` is the client's IP address, which has passed the check of addresses.
        """
        self.address = address
        self._context = context
        self._reader: RequestReader | None = RequestReader()
        self._transport: asyncio.Transport | None = None
        self._answered = False
        self._discarded_bytes = 0
        self._writer: ResponseWriter | None = None
        loop = asyncio.get_running_loop()
        self._began_at = 0.0
        self._peer = address
        """The client's name in debug lines."""
        if context.log.tracing:
            self._began_at = loop.time()
            self._peer = tcp.socket_peer_name(client) or address
        self._timer: asyncio.TimerHandle | None = None
        self._periods = PERIODS
        self._begin_period()
        self._tls_transport: TlsTransport | None = None
        """The transport, if its TLS handshake is not complete."""
        self._connecting: asyncio.Task[tuple[asyncio.Transport, asyncio.BaseProtocol]] | None = None
        """The task that creates the transport, if there is no TLS."""
        if context.tls is None:
            self._connecting = loop.create_task(loop.connect_accepted_socket(lambda: self, client))
            self._connecting.add_done_callback(partial(self._on_connected, client))
            return
        try:
            self._tls_transport = TlsTransport(
                loop, client, context.tls.context, self, self._on_tls_failed, context.tls_shutdown_s
            )
        except OSError as error:
            client.close()
            loop.call_soon(self._on_tls_failed, error)
        else:
            self._tls_transport.begin()

    # The creation of a transport for the socket

    def _on_connected(
        self, client: socket.socket, connecting: "asyncio.Task[tuple[asyncio.Transport, asyncio.BaseProtocol]]"
    ) -> None:
        # The result of the task refers to this handshake. If the handshake kept its reference to the task, only the
        # garbage collector could free the handshake and the task.
        self._connecting = None
        if self._transport is not None:
            return
        # No transport owns the socket, so no `connection_lost` follows.
        client.close()
        error = None if connecting.cancelled() else connecting.exception()
        if isinstance(error, ConnectionError):
            self._context.log.abandoned(self._peer)
        elif error is not None:
            self._refuse_unread(Rule.LOST, printable(str(error)) or type(error).__name__)
        self._end()

    def _on_tls_failed(self, error: OSError) -> None:
        """Called if the TLS handshake fails, if the client has disconnected, or after `abort`."""
        self._tls_transport = None
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
        self._transport = as_transport(transport)
        self._tls_transport = None
        if self._answered:
            # The handshake has ended, by `abort` or the timeout, in the same turn of the loop that created the
            # transport.
            self._transport.abort()

    # Reading the request and answering it

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self._answered:
            self._discarded_bytes += nbytes
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.abort()
            return
        assert self._reader is not None
        try:
            read = self._reader.feed(READ_BUFFER[:nbytes])
        except BadRequest as error:
            self._answer(error.request, self._context.router.refuse(error))
        else:
            if read is not None:
                request, rest = read
                self._answer(request, self._context.router.route(request), rest)

    def _answer(self, request: Request | None, answer: Answer, rest: bytes = b"") -> None:
        """Carries out the router's decision. `rest` holds the bytes after the head of the request."""
        self._trace(request, answer)
        if isinstance(answer, Upgrade):
            assert request is not None
            self._upgrade(request, answer, rest)
            return
        if isinstance(answer, Refused):
            self._context.log.refused(answer.refusal.rule, self.address, answer.refusal.detail)
            answer = answer.response
        self._respond(answer, has_body=request is None or request.method != "HEAD")

    def _refuse_unread(self, rule: Rule, detail: str) -> None:
        """Reports that the client is refused before its request is read. The client gets no response."""
        self._trace(None, rule)
        self._context.log.refused(rule, self.address, detail)

    def _trace(self, request: Request | None, decision: Answer | Rule) -> None:
        log = self._context.log
        if log.tracing:
            log.handshake(self._peer, request, decision, asyncio.get_running_loop().time() - self._began_at)

    def _upgrade(self, request: Request, upgrade: Upgrade, rest: bytes) -> None:
        assert self._transport is not None
        self._end_reading()
        self._transport.write(upgrade.response)
        self._context.on_upgraded(self, self._transport, request, upgrade.subscribe, rest)

    def _respond(self, response: Response, *, has_body: bool = True) -> None:
        assert self._transport is not None
        self._end_reading()
        data = serialize(response, has_body=has_body)
        self._writer = ResponseWriter(self._transport, data, self._context.timeout_s, self.abort)

    def _end_reading(self) -> None:
        self._answered = True
        self._reader = None
        self._stop_timers()

    # The timeout

    def _begin_period(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._context.timeout_s / PERIODS, self._end_period)

    def _end_period(self) -> None:
        self._periods -= 1
        if self._periods:
            self._begin_period()
        else:
            self._on_timeout()

    def _on_timeout(self) -> None:
        seconds = self._context.timeout_s
        missing = "TLS handshake" if self._transport is None and self._context.tls else "request"
        text = f"No complete {missing} within {seconds:g} seconds."
        if self._transport is None:
            self._refuse_unread(Rule.TIMEOUT, text)
            self.abort()
            return
        refusal = Refusal(HTTPStatus.REQUEST_TIMEOUT, text, Rule.TIMEOUT, text)
        self._answer(None, Refused(refusal_response(refusal), refusal))

    # The end

    def eof_received(self) -> None:
        """Returns None, so that the transport closes itself."""

    def abort(self) -> None:
        """Ends the handshake at once with a reset. Data that arrives from the client after `abort` is ignored."""
        self._answered = True
        self._stop_timers()
        if self._transport is not None:
            # Without a reset, the kernel would keep the unread part of the response in memory, for a connection that no
            # limit counts.
            tcp.reset_on_close(self._transport.get_extra_info("socket"))
            self._transport.abort()
        elif self._tls_transport is not None:
            self._tls_transport.abort()
        elif self._connecting is not None:
            self._connecting.cancel()

    def evict(self, rule: Rule) -> None:
        """Ends the handshake at once, to make room for a new client."""
        if not self._answered:
            self._trace(None, rule)
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answered:
            self._context.log.abandoned(self._peer)
        self._end()
        # Transport and handshake refer to each other. With references in both directions, only the garbage collector
        # could free transport and handshake.
        self._transport = self._writer = None

    def _end(self) -> None:
        self._stop_timers()
        self._context.on_closed(self)

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer is not None:
            self._writer.stop()
