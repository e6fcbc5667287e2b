"""Accepts clients, as long as there are file descriptors for them.

Sockets are accepted here and not by the event loop's own server, which makes a transport of each before anybody is
asked, and runs a TLS handshake with whoever wants one. And left to itself, libuv takes a client that it has no
descriptor for and drops it without a word; where it can't do even that, it tries again and again, with all of a
processor. Here, who comes while descriptors are short waits in the kernel's queue, and what is left of them is for the
broker, which may have to be connected to anew.

This file must never know who may come in, or what is said to a client.
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
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.server")

SPARE = 16
"""Descriptors that no client gets: they are left for the broker and for files."""

AT_ONCE = 8
"""Clients that are accepted in one turn of the loop: who is connected waits no longer than for the handshakes of these
(2 ms)."""


class Entrance:
    """Listening sockets, which are accepted from or not."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        let_in: Callable[[socket.socket, str], None],
        metrics: Metrics,
        timing: Timing = DEFAULT,
    ) -> None:
        """`let_in` is called with the socket and the address of each client, and takes over the socket."""
        self._listeners = listeners
        self._let_in = let_in
        self._metrics = metrics
        self._check_s = timing.descriptor_check_s
        self._grace_s = timing.accept_grace_s
        self._short_since_s: float | None = None
        self._look: asyncio.TimerHandle | None = None
        self._held: tuple[socket.socket, str] | None = None
        """Who came when descriptors were found to be short: that shows only in what it is accepted with."""

    def open(self) -> None:
        """Accepts clients. Raises OSError."""
        for listener in self._listeners:
            listener.listen(BACKLOG)
        self._go_on()

    async def stop(self) -> None:
        """Accepts the clients that wait in the kernel's queue, and then closes the listeners.

        A listener that shares its port stays open for a moment. In this time, it still accepts clients whose TCP
        handshake has begun. The kernel drops the requests of other clients.
        """
        shared = filter(_shares_port, self._listeners)
        quiet = [drop_connection_requests(listener) for listener in shared]
        try:
            if any(quiet):
                await asyncio.sleep(self._grace_s)
        finally:
            self.close()

    def close(self) -> None:
        """Like `stop`, but without a delay. While descriptors are exhausted, clients in the queue are reset instead."""
        self._pause()
        for listener in self._listeners:
            if listener.fileno() >= 0:
                if self._look is None:
                    # At most BACKLOG, because clients may connect faster than the bridge accepts them.
                    self._accept(listener, BACKLOG)
                listener.close()
        if self._look is not None:
            self._look.cancel()
        if self._held is not None:
            self._held[0].close()

    def _go_on(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _pause(self) -> None:
        for listener in self._listeners:
            if listener.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listener)

    def _accept(self, listener: socket.socket, most: int = AT_ONCE) -> None:
        border = _border()
        for _ in range(most):
            try:
                client, name = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # nobody is there any more
            except OSError:
                self._fall_short()  # no descriptor at all, or no memory for it
                return
            # POSIX gives the lowest one that is free.
            if client.fileno() >= border:
                self._held = client, name[0]
                self._fall_short()
                return
            self._let_in(client, name[0])

    def _fall_short(self) -> None:
        self._pause()
        if self._short_since_s is None:
            self._short_since_s = time.monotonic()
            self._metrics.descriptors_exhausted.inc()
            _log.error(
                "file descriptors are short: nobody is accepted until there are more (ulimit -n, LimitNOFILE)",
                fewer_left_than=SPARE,
            )
        self._look = asyncio.get_running_loop().call_later(self._check_s, self._look_again)

    def _look_again(self) -> None:
        if not self._is_room():
            self._look = asyncio.get_running_loop().call_later(self._check_s, self._look_again)
            return
        assert self._short_since_s is not None
        short_s = round(time.monotonic() - self._short_since_s, 1)
        self._short_since_s = self._look = None
        _log.info("file descriptors are there again: clients are accepted", short_s=short_s)
        if self._held is not None:
            held, self._held = self._held, None
            self._let_in(*held)
        self._go_on()

    def _is_room(self) -> bool:
        try:
            lowest = os.dup(self._listeners[0].fileno())
        except OSError:
            return False
        os.close(lowest)
        return lowest < _border()


def _shares_port(listener: socket.socket) -> bool:
    return listener.fileno() >= 0 and listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) != 0


def _border() -> float:
    """The first descriptor that no client may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else limit - SPARE
