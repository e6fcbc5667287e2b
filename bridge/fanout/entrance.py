"""Lets clients in, as long as there are file descriptors for them.

Left to itself, libuv takes a client that it has no descriptor for and drops it without a word; where it can't do even
that, it tries again and again, with all of a processor. uvloop says nothing of either. So there is a look now and then
at what is left: with too few descriptors nobody is accepted, and who comes waits in the kernel's queue. What is left
then is for the broker, which may have to be connected to anew.

This file must never know what is said to a client.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from bridge.metrics import Metrics

_log = structlog.get_logger("bridge.fanout")

SPARE = 16
"""Descriptors that are left for the broker and for files: with fewer, nobody is accepted."""

LOOK_S = 1.0
"""Between two looks. One takes 10 microseconds."""


class Entrance:
    """Listening sockets, which are accepted from or not."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        accept: Callable[[socket.socket], Awaitable[asyncio.Server]],
        metrics: Metrics,
    ) -> None:
        """`accept` makes a server of a bound socket, which is that server's own from then on."""
        self._listeners = listeners
        self._accept = accept
        self._metrics = metrics
        self._servers: list[asyncio.Server] = []
        self._short_since_s: float | None = None

    async def open(self) -> None:
        """Accepts clients. Raises OSError."""
        for listener in self._listeners:
            # A server closes its socket when it ends. This one stays, and collects who comes meanwhile.
            self._servers.append(await self._accept(listener.dup()))

    async def watch(self) -> None:
        """Looks after it until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Stops to accept where descriptors are short, and begins again where they no longer are."""
        # The servers' own descriptors are free while nobody is accepted: without them it would go back and forth.
        enough = _can_open(SPARE + (len(self._listeners) if self._short_since_s is not None else 0))
        if enough and self._short_since_s is not None:
            with suppress(OSError):  # gone again between the look and now
                await self.open()
                short_s = round(time.monotonic() - self._short_since_s, 1)
                self._short_since_s = None
                _log.info("file descriptors are there again: clients are accepted", short_s=short_s)
                return
            self._stop()
        elif not enough and self._short_since_s is None:
            self._short_since_s = time.monotonic()
            self._stop()
            self._metrics.descriptor_shortages.inc()
            _log.error(
                "file descriptors are short: nobody is accepted until there are more (ulimit -n, LimitNOFILE)",
                fewer_left_than=SPARE,
            )

    def close(self) -> None:
        """Accepts no one any more, and turns away who waits."""
        self._stop()
        for listener in self._listeners:
            listener.close()

    def _stop(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()


def _can_open(count: int) -> bool:
    """Whether so many descriptors can be had, which shows only when they are taken."""
    taken: list[int] = []
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        while len(taken) < count:
            taken.append(os.dup(taken[0]))
    except OSError:
        return False
    finally:
        for descriptor in taken:
            os.close(descriptor)
    return True
