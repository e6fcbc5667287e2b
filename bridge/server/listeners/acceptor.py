"""Accepts clients as long as file descriptors are available.

The bridge accepts sockets itself instead of using the event loop's own server, for two reasons. The event loop's server
creates a transport, and starts a TLS handshake, before the bridge can refuse the client. If no descriptor is left, the
loop's library libuv silently drops a client. If libuv can't even drop the client, it retries at once and uses a whole
processor.

While no file descriptor is free, clients wait in the kernel's queue. The last free descriptors are reserved for the
bridge itself, which may have to reconnect to the broker.

The owner of the acceptor decides which clients may connect.
"""

import asyncio
import math
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence

import structlog

from bridge.metrics import Metrics
from bridge.server.listeners.sockets import BACKLOG, drop_connection_requests
from bridge.server.transport.tcp import PeerName
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.server")

SPARE_DESCRIPTORS = 16
"""The number of descriptors that are reserved, so that no client can use them.

The reserved descriptors are for the connection to the broker and for files.
"""

BUDGET_S = 0.001
"""The maximum time in one turn of the event loop for accepting clients, including handshakes that complete at once.

The last handshake of a turn may exceed this maximum. With a maximum number of clients instead of a time, a bridge whose
turns are long would accept too few clients.
"""


class Acceptor:
    """Accepts clients from listening sockets, and pauses while file descriptors are exhausted."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        on_accept: Callable[[socket.socket, PeerName], None],
        begin_turn: Callable[[], None],
        metrics: Metrics,
        timing: Timing = DEFAULT,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`on_accept` is called with the socket and the name of each client, and takes over the socket.

        An exception of `on_accept` is logged. `begin_turn` is called before the work of a turn. `clock` measures the
        time that a turn takes, in seconds.
        """
        self._listeners = listeners
        self._on_accept = on_accept
        self._begin_turn = begin_turn
        self._metrics = metrics
        self._clock = clock
        self._check_s = timing.descriptor_check_s
        self._grace_s = timing.accept_grace_s
        self._exhausted_since_s: float | None = None
        self._check: asyncio.TimerHandle | None = None
        """The timer of the next check for free descriptors, or None unless descriptors are exhausted."""
        self._held: tuple[socket.socket, PeerName] | None = None
        """A client whose accepted socket got a spare descriptor, because all other descriptors are in use."""

    def open(self) -> None:
        """Starts to accept clients. Raises OSError."""
        for listener in self._listeners:
            listener.listen(BACKLOG)
        self._resume()

    async def stop(self) -> None:
        """Accepts the clients that wait in the kernel's queue, and then closes the listeners.

        A listener that shares its port stays open for a moment, to accept clients that have already begun their TCP
        handshake. Until a listener that shares its port is closed, the kernel drops all new connection requests to it.
        """
        shared = filter(_shares_port, self._listeners)
        filtered = [drop_connection_requests(listener) for listener in shared]
        try:
            if any(filtered):
                await asyncio.sleep(self._grace_s)
            for listener in self._listeners:
                await self._accept_waiting(listener)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the listeners at once. The clients that wait in the kernel's queue get a reset."""
        self._pause()
        for listener in self._listeners:
            listener.close()
        if self._check is not None:
            self._check.cancel()
        if self._held is not None:
            self._held[0].close()

    def _resume(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _pause(self) -> None:
        for listener in self._listeners:
            if listener.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listener)

    async def _accept_waiting(self, listener: socket.socket) -> None:
        """Accepts the clients that wait in the kernel's queue, a few in each turn of the event loop."""
        # The number of accepted clients is limited, because clients may connect faster than the bridge can accept.
        left = BACKLOG
        while left and self._check is None and (accepted := self._accept(listener, left)):
            left -= accepted
            await asyncio.sleep(0)

    def _accept(self, listener: socket.socket, max_clients: int = BACKLOG) -> int:
        """Accepts clients within the budget of a turn. Returns their number, or 0 if no client waits."""
        self._begin_turn()
        floor = _descriptor_floor()
        ends_at = self._clock() + BUDGET_S
        for accepted in range(max_clients):
            try:
                client, name = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return accepted  # the queue is empty, or the first client in the queue has disconnected
            except OSError:
                self._on_descriptors_exhausted()  # no descriptor is left, or the kernel has no memory for the socket
                return accepted
            # According to POSIX, a new descriptor has the lowest free number.
            if client.fileno() >= floor:
                self._held = client, PeerName(*name[:2])
                self._on_descriptors_exhausted()
                return accepted
            self._hand_over(client, PeerName(*name[:2]))
            if self._clock() >= ends_at:
                return accepted + 1
        return max_clients

    def _hand_over(self, client: socket.socket, peername: PeerName) -> None:
        try:
            self._on_accept(client, peername)
        except Exception:  # a fault with one client must neither affect other clients nor end `stop`
            _log.exception("accepted client failed", peer=peername.text)

    # Waiting while no descriptor is available for clients

    def _on_descriptors_exhausted(self) -> None:
        self._pause()
        if self._exhausted_since_s is None:
            self._exhausted_since_s = time.monotonic()
            self._metrics.descriptors_exhausted.inc()
            _log.error(
                "file descriptors exhausted; accepting paused",
                spare=SPARE_DESCRIPTORS,
                hint="raise the limit of descriptors (ulimit -n, LimitNOFILE)",
            )
        self._schedule_check()

    def _schedule_check(self) -> None:
        self._check = asyncio.get_running_loop().call_later(self._check_s, self._resume_if_available)

    def _resume_if_available(self) -> None:
        if not self._descriptor_available():
            self._schedule_check()
            return
        assert self._exhausted_since_s is not None
        paused_s = round(time.monotonic() - self._exhausted_since_s, 1)
        self._exhausted_since_s = self._check = None
        _log.info("file descriptors available; accepting resumed", paused_s=paused_s)
        if self._held is not None:
            held, self._held = self._held, None
            self._hand_over(*held)
        self._resume()

    def _descriptor_available(self) -> bool:
        try:
            lowest_free = os.dup(self._listeners[0].fileno())
        except OSError:
            return False
        os.close(lowest_free)
        return lowest_free < _descriptor_floor()


def _shares_port(listener: socket.socket) -> bool:
    return listener.fileno() >= 0 and listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) != 0


def _descriptor_floor() -> float:
    """Returns the number of the lowest spare descriptor."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else limit - SPARE_DESCRIPTORS
