"""Signs of life: pings to clients that are silent, an end for those that stay so.

One pass over all connections at each tick, instead of timers for each: at 10,000 connections a pass takes about a
millisecond, and an idle connection owns no timer.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from bridge.fanout.closing import CloseReason
from bridge.fanout.connection import Clock
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.fanout")

LEAST_TICK_S = 0.05


class Living(Protocol):
    """A connection, as seen by who watches over it."""

    heard_at: float
    pinged_at: float
    closed_at: float | None

    def ping(self) -> None: ...
    def close(self, reason: CloseReason, **details: object) -> None: ...
    def abort(self) -> None: ...


class Keepalive:
    """Pings, evicts the idle, and aborts closes that are not answered."""

    def __init__(
        self,
        connections: Collection[Living],
        clock: Clock,
        idle_timeout_s: float,
        ping_interval_s: float,
        on_tick: Callable[[], None] = lambda: None,
        timing: Timing = DEFAULT,
    ) -> None:
        """`on_tick` is called after each pass."""
        self._connections = connections
        self._clock = clock
        self._idle_timeout_s = idle_timeout_s
        self._ping_interval_s = ping_interval_s
        self._on_tick = on_tick
        self._close_timeout_s = timing.close_timeout_s
        # Between the ping and the end there must be a pass or two, or who would have answered is never asked.
        room_s = max(LEAST_TICK_S, (idle_timeout_s - ping_interval_s) / 2)
        self.tick_s = min(timing.keepalive_tick_s, idle_timeout_s / 4, ping_interval_s / 4, room_s)
        """Seconds between two passes: how exact all times here are."""

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.tick_s)
            self.tick(loop.time())

    def tick(self, now_s: float) -> None:
        """One pass. Only what a client sends counts as a sign of life, never what it is sent."""
        self._clock.now_s = now_s
        for connection in tuple(self._connections):
            try:
                self._look_after(connection, now_s)
            except Exception:  # one connection's failure must not end the watch over all others
                _log.exception("a connection could not be pinged or closed")
                connection.abort()
        self._on_tick()

    def _look_after(self, connection: Living, now_s: float) -> None:
        if connection.closed_at is not None:
            if now_s - connection.closed_at >= self._close_timeout_s:
                connection.abort()
            return
        # Up to a tick more than it is: what a client sends is put down with the time of the pass before it.
        silent_s = now_s - connection.heard_at
        if silent_s >= self._idle_timeout_s + self.tick_s:
            connection.close(CloseReason.IDLE, silent_s=round(silent_s, 1))
        elif min(silent_s, now_s - connection.pinged_at) >= self._ping_interval_s:
            connection.ping()
