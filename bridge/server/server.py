"""The WebSocket and HTTP server: accepts, limits, watches over and lets go of clients."""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import structlog

from bridge.broadcast.close_reasons import CAPACITY_REASONS, CloseReason
from bridge.broadcast.hub import Hub
from bridge.contract.filters import QueryParser, SubscribeRequest
from bridge.contract.text import printable
from bridge.metrics import Metrics, Transport
from bridge.server import memory
from bridge.server.access.address_limit import AddressLimit
from bridge.server.access.log_limiter import LogLimiter
from bridge.server.access.read_limiter import ReadLimiter, Throttleable
from bridge.server.access.refusals import Rule
from bridge.server.access.rules import Access, Refusal
from bridge.server.handshake import Handshake
from bridge.server.http.pages import Pages
from bridge.server.http.request import Request
from bridge.server.http.responses import sentence, serialized
from bridge.server.listeners.acceptor import Acceptor
from bridge.server.listeners.sockets import BACKLOG, open_listeners
from bridge.server.tls import Tls
from bridge.server.websocket.connection import Clock, Connection, ConnectionContext
from bridge.server.websocket.keepalive import Keepalive
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.server")

MANY = 250
"""The number of connections from which on memory is returned to the system when half of them are closed. With TLS, the
unread data of 250 clients takes 8 MB."""

PENDING = BACKLOG
"""Connections without a complete request, at most: as many as the kernel hands over at once. The eldest ends for a new
one: whoever means it needs some milliseconds, and so who sends nothing, or a byte a second, keeps nobody out."""

CLOCK_S = 1.0
"""How exactly it is known since when a client is connected: all that come within it share one number."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use."""

    max_connections: int
    overflow: int
    """Clients beyond that which are told so; any more are dropped without a word."""
    max_connections_per_address: int
    handshake_timeout_s: float
    idle_timeout_s: float
    ping_interval_s: float


class Server:
    """Everything that has a socket to a client."""

    def __init__(
        self,
        hub: Hub,
        access: Access,
        query_parser: QueryParser,
        pages: Pages,
        path: str,
        limits: Limits,
        metrics: Metrics,
        tls: Tls | None = None,
        timing: Timing = DEFAULT,
    ) -> None:
        self.access = access
        self.query_parser = query_parser
        self.pages = pages
        self.path = path
        self.tls = tls
        self.handshake_timeout_s = limits.handshake_timeout_s
        self.tls_shutdown_s = timing.tls_shutdown_s
        self._timing = timing
        self._hub = hub
        self._limits = limits
        self._metrics = metrics
        loop = asyncio.get_running_loop()
        self._clock = Clock(loop.time())
        self._read_limiter = ReadLimiter(loop.time, loop.call_at, self._waits)
        self._log_limiter = LogLimiter(loop.time)
        self._advised_subprotocol = False
        self._address_limit = AddressLimit(limits.max_connections_per_address)
        self._handshakes: OrderedDict[Handshake, None] = OrderedDict()
        """The eldest first. An ordinary dict looks for its first entry among all that were there before it."""
        # A dict takes a third of a set's memory at 5000.
        self._connections: dict[Connection, None] = {}
        self._connection_context = ConnectionContext(hub, self._clock, self._read_limiter, self._closed, self._lost)
        self._most = 0
        """The most connections since memory was released."""
        self._keepalive = Keepalive(
            self._connections, self._clock, limits.idle_timeout_s, limits.ping_interval_s, self._tick, timing
        )
        self._keeping: asyncio.Task[None] | None = None
        self._acceptor: Acceptor | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._draining = False
        self._dropped = 0
        """Clients for whom there was no place even to refuse them, since there last was one."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._opened = metrics.opened.labels(Transport.WEBSOCKET)
        metrics.gauge(
            "bridge_connections", "Open connections of clients.", lambda: len(hub), transport=Transport.WEBSOCKET
        )
        metrics.gauge(
            "bridge_connections_lagging",
            "Connections that have not received all updates yet, because they are lagging or catching up.",
            lambda: hub.lagging,
            transport=Transport.WEBSOCKET,
        )
        metrics.gauge(
            "bridge_resumes_pending",
            "Connections whose resume waits until the bridge has the update that the client received last.",
            lambda: hub.pending,
        )
        metrics.gauge(
            "bridge_subscriptions",
            "Different subscriptions in use, apart from the default one: all updates, without ids.",
            lambda: hub.subscriptions,
        )
        metrics.gauge(
            "bridge_handshakes_pending", "Connections without a complete request.", lambda: len(self._handshakes)
        )
        metrics.counter(
            "bridge_sent_bytes",
            "Bytes of updates and own messages written to client sockets or enqueued for them, before TLS.",
            lambda: hub.sent_bytes,
            transport=Transport.WEBSOCKET,
        )

    def listen(self, hosts: tuple[str, ...], port: int, reuse_port: bool) -> list[tuple[str, int]]:
        """Starts to accept clients; returns the addresses and ports. Raises OSError that names the address."""
        listeners = open_listeners(hosts, port, reuse_port)
        names: list[tuple[str, int]] = [listener.getsockname()[:2] for listener in listeners]
        self._acceptor = Acceptor(listeners, self.on_accept, self._metrics, self._timing)
        self._acceptor.open()
        self._keeping = asyncio.get_running_loop().create_task(self._keepalive.run(), name="keepalive")
        return names

    def stop_listening(self) -> None:
        """Accepts the clients that already wait, and no further ones.

        Clients without a complete request have `request_grace_s` to send it.
        """
        if self._acceptor is not None:
            self._stopping = asyncio.get_running_loop().create_task(self._acceptor.stop(), name="stop accepting")
        asyncio.get_running_loop().call_later(self._timing.request_grace_s, self._abort, self._handshakes)

    async def drain(self, timeout_s: float) -> None:
        """Closes every client with 1001 once it has had everything, and aborts those that are not gone in time."""
        self._hub.drain()
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                if self._stopping is not None:
                    await self._stopping
                await self._empty.wait()
        except TimeoutError:
            if self._acceptor is not None:
                self._acceptor.close()
            clients: list[Handshake | Connection] = [*self._connections, *self._handshakes]
            if clients:
                _log.warning("clients did not close in time", clients=len(clients), timeout_s=round(timeout_s, 1))
            self._abort(clients)
            # An abort takes one turn of the loop; nothing can hold it up.
            await self._empty.wait()
        if self._keeping is not None:
            self._keeping.cancel()

    def _abort(self, clients: Iterable[Handshake | Connection]) -> None:
        for client in tuple(clients):
            client.abort()

    def on_accept(self, client: socket.socket, address: str) -> None:
        """Takes an accepted socket, and gives its client a place; or closes it, where there is none for it."""
        if (stranger := self.access.check_peer(address)) is not None:
            self._turn_away(client, address, stranger)
        elif (shared := self._address_limit.acquire(address)) is None:
            self.refused(Rule.ADDRESS_LIMIT, address, "There are too many connections from this address.")
            client.close()
        elif not self._has_place():
            self._address_limit.release(address)
            client.close()
        else:
            self._empty.clear()
            self._handshakes[Handshake(self, client, shared)] = None

    def _turn_away(self, client: socket.socket, address: str, refusal: Refusal) -> None:
        """At once: nothing that a stranger says is read, and it takes no place."""
        self.refused(refusal.rule, address, refusal.detail)
        with client, suppress(OSError):  # gone already
            if self.tls is None:
                answer = serialized(sentence(HTTPStatus(refusal.status), refusal.sentence))
                client.send(answer, socket.MSG_DONTWAIT)

    def _has_place(self) -> bool:
        """Whether there is a place for another client: that of the eldest that has made no request yet, if need be."""
        clients = len(self._connections) + len(self._handshakes)
        if clients >= self._limits.max_connections + self._limits.overflow:
            self._metrics.refused.labels(Rule.FULL).inc()
            if not self._dropped and (suppressed := self._log_limiter.allow("dropped")) is not None:
                _log.warning(
                    "more clients than can be told that the bridge is full: they are dropped",
                    clients=clients,
                    **suppressed,
                )
            self._dropped += 1
            return self._cut_eldest()
        if self._dropped and clients <= self._limits.max_connections:
            if (suppressed := self._log_limiter.allow("room")) is not None:
                _log.info("there is room for clients again", dropped=self._dropped, **suppressed)
            self._dropped = 0
        if len(self._handshakes) >= PENDING:
            self.refused(Rule.PENDING, next(iter(self._handshakes)).address, "Too many had made no request yet.")
            self._cut_eldest()
        return True

    def _cut_eldest(self) -> bool:
        if not self._handshakes:
            return False
        eldest = next(iter(self._handshakes))
        # Its place is free from now on: its socket is closed in this turn of the loop or the next.
        self.over(eldest)
        eldest.abort()
        return True

    def upgraded(
        self,
        handshake: Handshake,
        transport: asyncio.Transport,
        request: Request,
        wanted: SubscribeRequest,
        rest: bytes,
    ) -> None:
        del self._handshakes[handshake]
        self._advise(request, wanted, handshake.address)
        now_s = asyncio.get_running_loop().time()
        if now_s - self._clock.now_s > CLOCK_S:
            self._clock.now_s = now_s
        connection = Connection(transport, handshake.address, self._connection_context)
        self._connections[connection] = None
        self._most = max(self._most, len(self._connections))
        self._opened.inc()
        self._hub.join(connection, wanted.filter, wanted.after)
        if self._draining:
            connection.close(CloseReason.STOPPING)
        # All that take a descriptor count, those that are being closed too.
        elif len(self._connections) > self._limits.max_connections:
            connection.close(CloseReason.FULL, max_connections=self._limits.max_connections)
        elif self._address_limit.over_limit(handshake.address):
            connection.close(
                CloseReason.ADDRESS_LIMIT, max_connections_per_address=self._limits.max_connections_per_address
            )
        if rest:
            connection.received(rest)

    def _advise(self, request: Request, wanted: SubscribeRequest, peer: str) -> None:
        """Logs mistakes in a handshake that the bridge accepts, each with a hint."""
        if not self._advised_subprotocol and (subprotocols := request.lists("sec-websocket-protocol")):
            self._advised_subprotocol = True
            _log.warning(
                "client asked for a subprotocol; the bridge has none. Some libraries then close the connection "
                "(ws, Node, Bun, websocket-client); connect without a subprotocol",
                peer=peer,
                subprotocols=printable(", ".join(subprotocols), 100),
            )
        after = wanted.after
        if after is not None and after.is_malformed and (suppressed := self._log_limiter.allow("after")) is not None:
            _log.warning(
                "client sent a value as after that is not an id, and gets a full replay; a client without an id leaves "
                "after empty",
                peer=peer,
                after=printable(after.text.strip(), 40),
                **suppressed,
            )

    def refused(self, rule: Rule, peer: str, detail: str) -> None:
        self._metrics.refused.labels(rule).inc()
        if (suppressed := self._log_limiter.allow(rule)) is not None:
            _log.info("client refused", rule=rule.value, peer=peer, detail=detail, **suppressed)

    def abandoned(self, peer: str) -> None:
        self._metrics.abandoned.inc()
        # Only at debug, because port scanners and TCP health checks do this all the time.
        _log.debug("client ended the connection before its request was complete", peer=peer)

    def _tick(self, late: bool) -> None:
        # While the bridge did not run, it received no updates: the update that a client waits for may still arrive.
        if not late:
            self._hub.tick()
        # Of whom nothing is read it does not show that they are gone, and there may be thousands.
        for speaker in self._read_limiter:
            speaker.close_if_eof()

    def _waits(self, speaker: Throttleable) -> None:
        self._metrics.throttles.inc()
        if (suppressed := self._log_limiter.allow("flood")) is not None:
            _log.info("client throttled", peer=speaker.peer, **suppressed)

    def over(self, handshake: Handshake) -> None:
        # Once: who has lost its place to another is told so, and goes later.
        if handshake in self._handshakes:
            del self._handshakes[handshake]
            self._left(handshake.address)

    def _left(self, address: str) -> None:
        self._address_limit.release(address)
        if not self._connections and not self._handshakes:
            self._empty.set()

    def _closed(self, connection: Connection, reason: CloseReason, details: dict[str, object]) -> None:
        if reason is CloseReason.STOPPING:
            return
        self._metrics.evictions.labels(reason.slug).inc()
        if (suppressed := self._log_limiter.allow(reason.slug)) is None:
            return
        connected_s = round(asyncio.get_running_loop().time() - connection.opened_at)
        _log.info(
            "client turned away" if reason in CAPACITY_REASONS else "client evicted",
            reason=reason.slug,
            code=reason.code,
            peer=connection.peer,
            connected_s=connected_s,
            **details,
            **suppressed,
        )

    def _lost(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections:
            # Empty it is, but as large as it ever was.
            self._connections.clear()
        self._left(connection.address)
        if self._most >= MANY and len(self._connections) <= self._most // 2:
            self._most = len(self._connections)
            asyncio.get_running_loop().call_later(self._timing.trim_delay_s, memory.malloc_trim)
