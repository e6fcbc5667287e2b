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

from bridge.fanout.listeners import BACKLOG
from bridge.metrics import Metrics
from bridge.timing import DEFAULT

_log = structlog.get_logger("bridge.fanout")

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
        check_s: float = DEFAULT.descriptor_check_s,
    ) -> None:
        """`let_in` gets each client's socket, its own from then on, and the client's address.

        `check_s` is the time between two checks whether descriptors are available again.
        """
        self._listeners = listeners
        self._let_in = let_in
        self._metrics = metrics
        self._check_s = check_s
        self._short_since_s: float | None = None
        self._look: asyncio.TimerHandle | None = None
        self._held: tuple[socket.socket, str] | None = None
        """Who came when descriptors were found to be short: that shows only in what it is accepted with."""

    def open(self) -> None:
        """Accepts clients. Raises OSError."""
        for listener in self._listeners:
            listener.listen(BACKLOG)
        self._go_on()

    def close(self) -> None:
        """Accepts no one any more, and turns away who waits."""
        if self._look is not None:
            self._look.cancel()
        self._pause()
        if self._held is not None:
            self._held[0].close()
        for listener in self._listeners:
            listener.close()

    def _go_on(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _pause(self) -> None:
        for listener in self._listeners:
            if listener.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        border = _border()
        for _ in range(AT_ONCE):
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
            self._metrics.descriptor_shortages.inc()
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


def _border() -> float:
    """The first descriptor that no client may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else limit - SPARE
