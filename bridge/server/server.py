"""The server accepts clients, admits or refuses them, and keeps their connections until they close.

A client is first accepted, and then admitted or refused. An admitted client goes through its handshake. If its request
asks for updates, a connection follows, which is closed at the end.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import structlog

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.hub import Hub
from bridge.broadcast.polls import Polls
from bridge.loop_turn import LoopTurn
from bridge.metrics import Metrics
from bridge.server.access.address_limit import AddressLimit
from bridge.server.access.read_limiter import ReadLimiter
from bridge.server.access.rules import Access, Refusal, Rule
from bridge.server.client_log import ClientLog, Decision
from bridge.server.connection.client_connection import ClientConnection, Clock, ConnectionContext
from bridge.server.connection.keepalive import Keepalive
from bridge.server.handshake import Handshake, HandshakeContext
from bridge.server.http.event_stream import EventStream
from bridge.server.http.polling import PollConnection
from bridge.server.http.request import Request
from bridge.server.http.response import refusal_response, serialize
from bridge.server.listeners.acceptor import Acceptor
from bridge.server.listeners.sockets import BACKLOG, open_listeners
from bridge.server.memory import HeapTrimmer
from bridge.server.pending_handshakes import PendingHandshakes
from bridge.server.router import OpenEventStream, Opening, Poll, Refused, Router
from bridge.server.tls import Tls
from bridge.server.transport.poller import make_poller
from bridge.server.transport.socket_transport import SocketTransport
from bridge.server.transport.tcp import PeerName
from bridge.server.transport.tcp_transport import TcpTransport
from bridge.server.transport.tls_transport import TlsTransport
from bridge.server.websocket.connection import WebSocketConnection
from bridge.server.websocket.upgrade import Upgrade
from bridge.server.websocket.upgrade_cache import UpgradeCache
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.server")

MAX_HANDSHAKES = BACKLOG
"""The maximum number of clients without a complete request. The maximum equals the length of the kernel's queue of new
connections.

When this maximum is reached, a new client replaces the oldest client without a complete request. A normal client sends
its request within milliseconds, so slow or silent clients can't block normal clients."""

CLOCK_RESOLUTION_S = 1.0
"""Connections that open within the same period share one float as their opening time, which saves memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on the resources that clients can use."""

    max_connections: int
    overflow: int
    """How many connections beyond `max_connections` get an answer.

    Connections beyond `max_connections` plus this overflow are closed without an answer.
    """
    max_connections_per_address: int
    handshake_timeout_s: float
    idle_timeout_s: float
    ping_interval_s: float


class Server:
    """Owns the listeners, all handshakes and all connections, with their sockets."""

    def __init__(
        self,
        hub: Hub,
        polls: Polls,
        access: Access,
        router: Router,
        limits: Limits,
        metrics: Metrics,
        turn: LoopTurn,
        now_ms: Callable[[], int],
        tls: Tls | None = None,
        timing: Timing = DEFAULT,
    ) -> None:
        """`now_ms` returns the time in Unix milliseconds."""
        self._hub = hub
        self._polls = polls
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._turn = turn
        self._tls = tls
        self._timing = timing
        loop = asyncio.get_running_loop()
        self._clock = Clock(loop.time())
        self._client_log = ClientLog(metrics, loop.time)
        self._read_limiter = ReadLimiter(loop.time, loop.call_at, self._client_log.throttled)
        self._address_limit = AddressLimit(limits.max_connections_per_address)
        self._heap_trimmer = HeapTrimmer(loop.call_later, timing.trim_delay_s)
        self._poller = make_poller(loop, turn.begin)
        self._handshakes: PendingHandshakes[Handshake] = PendingHandshakes(loop.call_later, limits.handshake_timeout_s)
        self._handshake_context = HandshakeContext(
            router,
            UpgradeCache(),
            self._client_log,
            self._make_transport,
            limits.handshake_timeout_s,
            self._on_opened,
            self._on_handshake_closed,
        )
        # The connections are in a dict, because a dict with 5000 entries takes a third of the memory of a set.
        self._connections: dict[ClientConnection, None] = {}
        self._connection_context = ConnectionContext(
            hub,
            self._clock,
            self._read_limiter,
            now_ms,
            limits.idle_timeout_s,
            self._client_log.evicted,
            self._on_connection_lost,
        )
        self._keepalive = Keepalive(
            self._connections, self._clock, limits.idle_timeout_s, limits.ping_interval_s, self._on_tick, turn, timing
        )
        self._keepalive_task: asyncio.Task[None] | None = None
        self._acceptor: Acceptor | None = None
        self._stopping_accept: asyncio.Task[None] | None = None
        self._draining = False
        self._aborting = False
        self._no_clients = asyncio.Event()
        self._no_clients.set()
        metrics.gauge(
            "bridge_handshakes_pending", "Connections without a complete request.", lambda: len(self._handshakes)
        )

    def listen(self, hosts: tuple[str, ...], port: int, reuse_port: bool) -> list[tuple[str, int]]:
        """Starts to accept clients.

        Returns the addresses and ports of the listeners. Raises OSError, with the address in its text.
        """
        listeners = open_listeners(hosts, port, reuse_port)
        names: list[tuple[str, int]] = [listener.getsockname()[:2] for listener in listeners]
        self._acceptor = Acceptor(listeners, self.on_accept, self._turn.begin, self._metrics, self._timing)
        self._acceptor.open()
        self._keepalive_task = asyncio.get_running_loop().create_task(self._keepalive.run(), name="keepalive")
        return names

    # Accepted clients, which are then admitted or refused

    def on_accept(self, client: socket.socket, peername: PeerName) -> None:
        """Takes over an accepted socket, and starts its handshake or refuses the client."""
        address = peername.address
        if (refusal := self._access.check_peer(address)) is not None:
            self._refuse(client, peername, refusal)
        elif (shared_address := self._address_limit.acquire(address)) is None:
            self._trace_refusal(peername, Rule.ADDRESS_LIMIT)
            self._client_log.refused(Rule.ADDRESS_LIMIT, address, "This address has too many connections.")
            client.close()
        elif not self._admit():
            self._address_limit.release(address)
            self._trace_refusal(peername, Rule.FULL)
            client.close()
        else:
            try:
                handshake = Handshake(self._handshake_context, client, PeerName(shared_address, peername.port))
            except Exception:
                self._address_limit.release(address)
                client.close()
                raise
            self._no_clients.clear()
            self._handshakes.add(handshake)
            handshake.begin()
            self._handshakes.start_timer()

    def _make_transport(
        self,
        client: socket.socket,
        peername: PeerName,
        protocol: asyncio.BufferedProtocol,
        on_failed: Callable[[OSError], None],
    ) -> SocketTransport:
        if self._tls is None:
            return TcpTransport(self._poller, client, peername, protocol)
        return TlsTransport(
            self._poller, client, peername, protocol, self._tls.context, on_failed, self._timing.tls_shutdown_s
        )

    def _refuse(self, client: socket.socket, peername: PeerName, refusal: Refusal) -> None:
        """Refuses a client with an external address at once.

        The bridge reads nothing from a refused external client, and no limit counts this client.
        """
        response = None if self._tls is not None else refusal_response(refusal)
        self._trace_refusal(peername, refusal.rule if response is None else Refused(response, refusal))
        self._client_log.refused(refusal.rule, peername.address, refusal.detail)
        with client, suppress(OSError):  # the client has already disconnected
            if response is not None:
                client.send(serialize(response), socket.MSG_DONTWAIT)

    def _trace_refusal(self, peername: PeerName, decision: Decision) -> None:
        if self._client_log.tracing:
            self._client_log.handshake(peername.text, None, decision, 0.0)

    def _admit(self) -> bool:
        """Returns whether the server has capacity for another client.

        Evicts the oldest handshake if the new client needs the handshake's place.
        """
        clients = len(self._connections) + len(self._handshakes)
        if clients >= self._limits.max_connections + self._limits.overflow:
            self._client_log.dropped(clients)
            return self._evict_oldest_handshake(Rule.FULL)
        if clients <= self._limits.max_connections:
            self._client_log.has_capacity()
        if len(self._handshakes) >= MAX_HANDSHAKES:
            self._evict_oldest_handshake(Rule.PENDING)
        return True

    def _evict_oldest_handshake(self, rule: Rule) -> bool:
        oldest = self._handshakes.oldest
        if oldest is None:
            return False
        if rule is Rule.PENDING:
            self._client_log.refused(rule, oldest.address, "Too many clients had not sent a complete request.")
        # The evicted handshake no longer counts toward the limits.
        self._on_handshake_closed(oldest)
        oldest.evict(rule)
        return True

    # The end of a handshake, with a connection or without one

    def _on_handshake_closed(self, handshake: Handshake) -> None:
        # An evicted handshake is removed from the dict before its socket closes.
        if handshake in self._handshakes:
            self._handshakes.remove(handshake)
            self._on_left(handshake.address)

    def _on_opened(
        self,
        handshake: Handshake,
        transport: asyncio.Transport,
        request: Request,
        answer: Opening,
        rest: bytes,
    ) -> None:
        self._handshakes.remove(handshake)
        address = handshake.address
        self._client_log.advise(request, answer.subscribe, address)
        now_s = asyncio.get_running_loop().time()
        if now_s - self._clock.now_s > CLOCK_RESOLUTION_S:
            self._clock.now_s = now_s
        connection = self._make_connection(transport, address, request, answer)
        self._connections[connection] = None
        self._heap_trimmer.grown_to(len(self._connections))
        self._client_log.opened(connection)
        limits = self._limits
        if self._aborting:
            connection.abort()
        elif self._draining:
            connection.close(CloseReason.STOPPING)
        # Closing connections count toward the limit too, because each of them still has a descriptor.
        elif len(self._connections) > limits.max_connections:
            connection.close(CloseReason.FULL, max_connections=limits.max_connections)
        elif self._address_limit.over_limit(address):
            connection.close(CloseReason.ADDRESS_LIMIT, max_connections_per_address=limits.max_connections_per_address)
        else:
            connection.join(answer.subscribe)
        if rest:
            connection.received(rest)

    def _make_connection(
        self, transport: asyncio.Transport, address: str, request: Request, answer: Opening
    ) -> ClientConnection:
        context = self._connection_context
        match answer:
            case Upgrade():
                return WebSocketConnection(transport, address, context)
            case OpenEventStream():
                return EventStream(transport, address, context)
            case Poll():
                return PollConnection(
                    transport,
                    address,
                    context,
                    self._polls,
                    limit=answer.limit,
                    wait_s=answer.wait_s,
                    headers=answer.headers,
                    is_head=request.method == "HEAD",
                )

    # Clients with a connection, until it is lost

    def _on_tick(self, late: bool) -> None:
        # While the bridge was paused, it received no updates. After a late pass, the update that a pending client waits
        # for may still arrive.
        if not late:
            self._hub.tick()
            self._polls.tick()
        # A throttled connection is not notified of EOF, so its socket is polled.
        for client in self._read_limiter:
            client.close_if_eof()

    def _on_connection_lost(self, connection: ClientConnection) -> None:
        self._turn.begin()
        self._connections.pop(connection, None)
        if not self._connections:
            # A dict whose items were all removed keeps the memory of its largest size until `clear()` is called.
            self._connections.clear()
        self._on_left(connection.address)
        self._heap_trimmer.shrunk_to(len(self._connections))
        self._client_log.closed(connection)

    def _on_left(self, address: str) -> None:
        self._address_limit.release(address)
        if not self._connections and not self._handshakes:
            self._no_clients.set()

    # Stopping

    def stop_listening(self) -> None:
        """Accepts the clients that are already in the kernel's queue, and then stops accepting clients.

        Clients that have not sent a complete request get `request_grace_s` seconds to complete it.
        """
        loop = asyncio.get_running_loop()
        if self._acceptor is not None:
            self._stopping_accept = loop.create_task(self._stop_accepting(self._acceptor), name="stop accepting")
        loop.call_later(self._timing.request_grace_s, self._abort_handshakes)

    async def _stop_accepting(self, acceptor: Acceptor) -> None:
        try:
            await acceptor.stop()
        except Exception:  # `drain` must close the clients even if a listener fails
            _log.exception("accepting failed; closing the listeners")
            acceptor.close()

    async def drain(self, timeout_s: float) -> None:
        """Closes each client with code 1001 after the client has received all updates.

        Aborts the clients that remain after `timeout_s`.
        """
        stopped = asyncio.Event()

        def on_stopped() -> None:
            # At this time, the polls get all updates.
            self._polls.stop()
            stopped.set()

        self._hub.drain(on_stopped)
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                if self._stopping_accept is not None:
                    await self._stopping_accept
                await self._no_clients.wait()
        except TimeoutError:
            # Without this wait, clients could be aborted before the hub has closed them with code 1001.
            await stopped.wait()
            if self._acceptor is not None:
                self._acceptor.close()
            clients: list[Handshake | ClientConnection] = [*self._connections, *self._handshakes]
            if clients:
                _log.warning("clients did not close in time", clients=len(clients), timeout_s=round(timeout_s, 1))
            self._aborting = True
            self._turn.spread(self._abort_steps(clients))
            # The aborts take a few turns of the event loop. No client can delay them.
            await self._no_clients.wait()
        if self._keepalive_task is not None:
            self._keepalive_task.cancel()
        self._poller.close()

    def _abort_handshakes(self) -> None:
        self._turn.spread(self._abort_steps(tuple(self._handshakes)))

    def _abort_steps(self, clients: Iterable[Handshake | ClientConnection]) -> Iterator[None]:
        for client in clients:
            # A client that ended its handshake during an earlier step is now a connection.
            if client in self._handshakes or client in self._connections:
                client.abort()
                yield
