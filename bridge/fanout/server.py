"""The WebSocket and HTTP server: accepts, limits, watches over and lets go of clients."""

import asyncio
import socket
from dataclasses import dataclass

import structlog

from bridge import memory
from bridge.fanout.access import Access
from bridge.fanout.closing import CloseReason
from bridge.fanout.connection import Clock, Connection
from bridge.fanout.entrance import Entrance
from bridge.fanout.handshake import Handshake
from bridge.fanout.hub import Hub
from bridge.fanout.keepalive import Keepalive
from bridge.fanout.listeners import BACKLOG, open_listeners
from bridge.fanout.pages import Pages
from bridge.fanout.tls import Tls
from bridge.metrics import Metrics

_log = structlog.get_logger("bridge.fanout")


MANY = 1000
"""Connections of which, when half have gone, the memory is given back."""

EBB_S = 1.0
"""How long that waits: who goes does not go alone."""

CLOCK_S = 1.0
"""How exactly it is known since when a client is connected: all that come within it share one number."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use."""

    max_connections: int
    reserve: int
    """Clients beyond that which are told so; any more are dropped without a word."""
    handshake_timeout_s: float
    idle_timeout_s: float
    ping_interval_s: float


class Server:
    """Everything that has a socket to a client."""

    def __init__(
        self,
        hub: Hub,
        access: Access,
        pages: Pages,
        path: str,
        limits: Limits,
        metrics: Metrics,
        tls: Tls | None = None,
    ) -> None:
        self.access = access
        self.pages = pages
        self.path = path
        self.handshake_timeout_s = limits.handshake_timeout_s
        self._hub = hub
        self._limits = limits
        self._metrics = metrics
        self._tls = tls
        self._clock = Clock(asyncio.get_running_loop().time())
        self._handshakes: set[Handshake] = set()
        # A dict takes a third of a set's memory at 5000.
        self._connections: dict[Connection, None] = {}
        # Made once: a bound method has 64 bytes, and would have them for each connection.
        self._callbacks = (self._closed, self._lost)
        self._most = 0
        """The most connections since memory was released."""
        self._keepalive = Keepalive(self._connections, self._clock, limits.idle_timeout_s, limits.ping_interval_s)
        self._stopping = False
        self._keeping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._entrance: Entrance | None = None
        self._dropped = 0
        """Clients for whom there was no place even to refuse them, since there last was one."""
        self._empty = asyncio.Event()
        self._empty.set()
        metrics.watch("bridge_connections", "WebSocket connections that are open.", lambda: len(hub))
        metrics.watch("bridge_connections_lagging", "Of these, connections that are behind.", lambda: hub.lagging)
        metrics.watch(
            "bridge_handshakes_pending", "Connections without a complete request.", lambda: len(self._handshakes)
        )

    async def listen(self, hosts: tuple[str, ...], port: int, reuse_port: bool) -> list[tuple[str, int]]:
        """Starts to accept clients; returns the addresses and ports. Raises OSError that names the address."""
        loop = asyncio.get_running_loop()
        listeners = open_listeners(hosts, port, reuse_port)
        names: list[tuple[str, int]] = [listener.getsockname()[:2] for listener in listeners]
        self._entrance = Entrance(listeners, self._accept, self._metrics)
        await self._entrance.open()
        self._watching = loop.create_task(self._entrance.watch(), name="entrance")
        self._keeping = loop.create_task(self._keepalive.run(), name="keepalive")
        return names

    async def _accept(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: Handshake(self),
            sock=listener,
            backlog=BACKLOG,
            ssl=self._tls.context if self._tls else None,
            ssl_handshake_timeout=self._limits.handshake_timeout_s if self._tls else None,
        )

    def stop_listening(self) -> None:
        """Accepts no one any more; who is connected stays."""
        self._stopping = True
        if self._watching is not None:
            self._watching.cancel()
        if self._entrance is not None:
            self._entrance.close()
        for handshake in tuple(self._handshakes):
            handshake.abort()

    async def drain(self, timeout_s: float) -> None:
        """Closes every client with 1001 once it has had everything, and aborts those that are not gone in time."""
        self._hub.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            _log.warning("clients did not close in time", clients=len(self._connections), timeout_s=timeout_s)
            for connection in tuple(self._connections):
                connection.abort()
            # An abort takes one turn of the loop; nothing can hold it up.
            await self._empty.wait()
        if self._keeping is not None:
            self._keeping.cancel()

    def began(self, handshake: Handshake) -> bool:
        # Also one whose TLS handshake began before the bridge was asked to stop.
        if self._stopping:
            return False
        clients = len(self._connections) + len(self._handshakes)
        if clients >= self._limits.max_connections + self._limits.reserve:
            self._metrics.refused.labels("full").inc()
            if not self._dropped:
                _log.warning("more clients than can be told that the bridge is full: they are dropped", clients=clients)
            self._dropped += 1
            return False
        if self._dropped and clients <= self._limits.max_connections:
            _log.info("there is room for clients again", dropped=self._dropped)
            self._dropped = 0
        self._handshakes.add(handshake)
        return True

    def upgraded(self, transport: asyncio.Transport, rest: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._clock.now_s > CLOCK_S:
            self._clock.now_s = now_s
        connection = Connection(transport, self._hub, self._clock, *self._callbacks)
        self._connections[connection] = None
        self._most = max(self._most, len(self._connections))
        self._empty.clear()
        self._hub.join(connection)
        # All that take a descriptor count, those that are being closed too.
        if len(self._connections) > self._limits.max_connections:
            connection.close(CloseReason.FULL, max_connections=self._limits.max_connections)
        if rest:
            connection.received(rest)

    def refused(self, rule: str, peer: str, detail: str) -> None:
        self._metrics.refused.labels(rule).inc()
        _log.info("client refused", rule=rule, peer=peer, detail=detail)

    def over(self, handshake: Handshake) -> None:
        self._handshakes.discard(handshake)

    def _closed(self, connection: Connection, reason: CloseReason, details: dict[str, object]) -> None:
        if reason is CloseReason.STOPPING:
            return
        self._metrics.evictions.labels(reason.slug).inc()
        connected_s = round(asyncio.get_running_loop().time() - connection.opened_at)
        _log.info(
            "client evicted",
            reason=reason.slug,
            code=reason.code,
            peer=connection.peer,
            connected_s=connected_s,
            **details,
        )

    def _lost(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections:
            # Empty it is, but as large as it ever was.
            self._connections.clear()
            self._empty.set()
        if self._most >= MANY and len(self._connections) <= self._most // 2:
            self._most = len(self._connections)
            asyncio.get_running_loop().call_later(EBB_S, memory.release)
