"""Pings to clients that are silent, and an end for those that stay silent.

One pass over all connections at each tick, instead of timers for each: at 10,000 connections a pass takes about two
milliseconds, and an idle connection owns no timer. A ping costs as much as the look at fifty connections: the pings
that a pass asks for are spread over the time until the next pass.

A bridge that does not run (SIGSTOP, a paused container or virtual machine, a blocked event loop) reads no pong. It
knows that by a pass that comes late, and then judges no client. Where the clock stands still as well, as in a suspended
machine, that time does not count at all.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from math import ceil, inf
from typing import Protocol

import structlog

from bridge.fanout.closing import CloseReason
from bridge.fanout.connection import Clock
from bridge.lines import Lines
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.fanout")

LEAST_TICK_S = 0.05

LATE_TICKS = 2
"""A pass that comes later than this judges no client."""

LEAST_READ_BYTES_PER_S = 1024
"""Of what was sent before a close frame. A client that reads less is not waited for."""

PING_PAUSE_S = 0.05
"""Between two groups of pings: 20,000 in a tick of 5 s are 200 at once, which take 2 ms."""


class Living(Protocol):
    """A connection, as seen by who watches over it."""

    heard_at: float
    pinged_at: float
    closed_at: float | None

    @property
    def acknowledged_bytes(self) -> int | None: ...
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
        on_tick: Callable[[bool], None] = lambda late: None,
        timing: Timing = DEFAULT,
    ) -> None:
        """`on_tick` is called after each pass: with True if the pass came late, so that no client may be judged."""
        self._connections = connections
        self._clock = clock
        self._ping_interval_s = ping_interval_s
        self._on_tick = on_tick
        self._close_timeout_s = timing.close_timeout_s
        self._lines = Lines(lambda: clock.now_s)
        # Between the ping and the end there must be a pass or two, or who would have answered is never asked.
        room_s = max(LEAST_TICK_S, (idle_timeout_s - ping_interval_s) / 2)
        self.tick_s = min(timing.keepalive_tick_s, idle_timeout_s / 4, ping_interval_s / 4, room_s)
        """Seconds between two passes: how exact all times here are."""
        # A tick more: what a client sends is put down with the time of the pass before it.
        self._evict_after_s = idle_timeout_s + self.tick_s
        self._passed_at = clock.now_s
        """When the last pass was."""
        self._awake_since_s = -inf
        """When the last late pass was: what a client did not do before then may be the bridge's own fault."""
        self._closing: dict[Living, tuple[float, int | None]] = {}
        """Connections that are closing: since when each is waited for, and how many bytes its client had read then."""
        self._due: deque[Living] = deque()
        """Those that the last pass found silent, and that are not pinged yet."""

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        loop = asyncio.get_running_loop()
        self._passed_at = loop.time()
        while True:
            next_s = self._passed_at + self.tick_s
            while self._due and (left_s := next_s - loop.time()) > 0:
                self.ping_due(left_s)
                await asyncio.sleep(min(PING_PAUSE_S, left_s))
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            self.tick(loop.time())

    def tick(self, now_s: float) -> None:
        """One pass. Only what a client sends counts as a sign of life, never what it is sent."""
        late_s = now_s - self._passed_at - self.tick_s
        late = late_s > LATE_TICKS * self.tick_s
        self._passed_at = now_s
        if late:
            self._awake_since_s = now_s
            # This pass finds them again: pings to all of them at once would make it later still.
            self._due.clear()
        else:
            self.ping_due()
        self._clock.now_s = now_s
        if late and (unsaid := self._lines.due("late")) is not None:
            _log.warning("event loop stalled: idle timeouts start again", late_s=round(late_s, 1), **unsaid)
        closing, self._closing = self._closing, {}
        for connection in tuple(self._connections):
            try:
                if connection.closed_at is not None:
                    before = closing.get(connection) or (connection.closed_at, connection.acknowledged_bytes)
                    self._await_close(connection, now_s, *before)
                    continue
                self._look_after(connection, now_s)
            except Exception:  # one connection's failure must not end the watch over all others
                self._abort(connection)
        self._on_tick(late)

    def ping_due(self, left_s: float = 0.0) -> None:
        """Pings those that are silent: as many as must be pinged now if all are to be within `left_s`, evenly."""
        share = 1.0 if left_s <= PING_PAUSE_S else PING_PAUSE_S / left_s
        for _ in range(ceil(len(self._due) * share)):
            connection = self._due.popleft()
            if self._clock.now_s - connection.heard_at < self._ping_interval_s:
                continue  # it has sent something since
            try:
                connection.ping()
            except Exception:  # as above
                self._abort(connection)

    def _look_after(self, connection: Living, now_s: float) -> None:
        silent_s = now_s - connection.heard_at
        if silent_s >= self._evict_after_s and now_s - self._awake_since_s >= self._evict_after_s:
            connection.close(CloseReason.IDLE, silent_s=round(silent_s, 1))
        elif min(silent_s, now_s - connection.pinged_at) >= self._ping_interval_s:
            self._due.append(connection)

    def _await_close(self, connection: Living, now_s: float, since_s: float, had_bytes: int | None) -> None:
        """A client that reads on may still come to the close frame, behind all that it was sent before."""
        since_s = max(since_s, self._awake_since_s)
        if now_s - since_s >= self._close_timeout_s:
            read_bytes = connection.acknowledged_bytes
            least_bytes = LEAST_READ_BYTES_PER_S * self._close_timeout_s
            if read_bytes is None or had_bytes is None or read_bytes - had_bytes < least_bytes:
                connection.abort()
                return
            since_s, had_bytes = now_s, read_bytes
        self._closing[connection] = since_s, had_bytes

    def _abort(self, connection: Living) -> None:
        """To be called while an exception is handled."""
        if (unsaid := self._lines.due("failed")) is not None:
            _log.exception("a connection could not be pinged or closed", **unsaid)
        connection.abort()
