"""Pings clients that are silent, and closes clients that do not answer.

Each tick makes one pass over all connections, so no connection has its own timer. A pass over 10,000 connections takes
about two milliseconds. A ping takes as long as checking fifty connections. To stay short, a pass does not send all its
pings at once. It spreads the pings over the time until the next pass. A pass that has to close thousands of connections
takes several turns of the event loop.

While the bridge does not run, for example in a paused container or with a blocked event loop, it reads no pongs. The
first pass after a pause of the bridge is late, and a late pass does not close clients. If the clock also stops during a
pause, as on a suspended machine, this pause does not count toward any timeout.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from math import ceil, inf
from typing import Protocol

import structlog

from bridge.broadcast.close_reasons import CloseReason
from bridge.loop_turn import LoopTurn
from bridge.server.access.log_limiter import LogLimiter
from bridge.server.connection.client_connection import Clock
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.server")

MIN_TICK_S = 0.05

LATE_TICKS = 2
"""The maximum delay of a normal pass, in ticks.

A pass with a delay above this maximum counts as late, and does not close clients.
"""

MIN_READ_BYTES_PER_S = 1024
"""The minimum speed at which a client must read the data that was sent before its close frame.

If a client reads more slowly than this minimum, the bridge aborts its connection.
"""

CHECKED_CONNECTIONS = 64
"""The number of connections that a pass checks without reading the clock. Closing all these connections takes 3 ms."""

PING_PAUSE_S = 0.05
"""The time between two groups of pings. With 20,000 pings in a tick of 5 s, a group has 200 pings and takes 2 ms to
send."""


class Pingable(Protocol):
    """The methods and attributes of a connection that the keepalive uses. All times are in seconds."""

    last_received_at: float
    closed_at: float | None

    @property
    def last_active_at(self) -> float:
        """The time since which the connection counts as silent. A ping is due when it is silent for the interval."""

    @property
    def acknowledged_bytes(self) -> int | None:
        """The number of bytes that the client's kernel has acknowledged, or None if this number is unknown."""

    def ping(self) -> None:
        """Sends a ping."""

    def close(self, reason: CloseReason, **details: object) -> None:
        """Closes the connection with a close frame."""

    def abort(self) -> None:
        """Ends the connection at once, without a close frame."""


class Keepalive:
    """Pings silent clients, evicts idle clients, and aborts connections with an unanswered close frame."""

    def __init__(
        self,
        connections: Collection[Pingable],
        clock: Clock,
        idle_timeout_s: float,
        ping_interval_s: float,
        on_tick: Callable[[bool], None],
        turn: LoopTurn,
        timing: Timing = DEFAULT,
    ) -> None:
        """`on_tick` is called after each pass, with True if the pass was late.

        After a late pass, `on_tick` must not close clients.
        """
        self._connections = connections
        self._clock = clock
        self._ping_interval_s = ping_interval_s
        self._on_tick = on_tick
        self._turn = turn
        self._passing = False
        """Whether a pass is not complete."""
        self._close_timeout_s = timing.close_timeout_s
        self._log_limiter = LogLimiter(lambda: clock.now_s)
        # The time between two passes must be short enough that a pass can ping a client before another pass evicts it.
        spare_s = max(MIN_TICK_S, (idle_timeout_s - ping_interval_s) / 2)
        self.tick_s = min(timing.keepalive_tick_s, idle_timeout_s / 4, ping_interval_s / 4, spare_s)
        """The time between two passes, in seconds.

        All times in this class are only as precise as this time between two passes.
        """
        # The idle timeout is extended by one tick, because `last_received_at` may be one tick too early: it is the time
        # of the last pass before the client's data arrived.
        self._evict_after_s = idle_timeout_s + self.tick_s
        self._passed_at = clock.now_s
        """The time of the last pass."""
        self._awake_since_s = -inf
        """The time of the last late pass.

        All timeouts start again at a late pass, because the bridge read nothing from clients in the time before this
        pass.
        """
        self._closing: dict[Pingable, tuple[float, int | None]] = {}
        """Closing connections.

        Maps each closing connection to the start time of its current close timeout, and to the number of bytes that its
        client had acknowledged at that time.
        """
        self._pings_due: deque[Pingable] = deque()
        """Connections that were silent at the last pass, and have not been pinged yet."""

    async def run(self) -> None:
        """Makes a pass over all connections at each tick, until its task is cancelled."""
        loop = asyncio.get_running_loop()
        self._passed_at = loop.time()
        while True:
            next_s = self._passed_at + self.tick_s
            while self._pings_due and (left_s := next_s - loop.time()) > 0:
                self.send_pings(left_s)
                await asyncio.sleep(min(PING_PAUSE_S, left_s))
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            self.tick(loop.time())

    def tick(self, now_s: float) -> None:
        """Makes one pass over all connections, in several turns if there are many connections to ping or close.

        Data from a client shows that the client is alive, but data sent to the client does not. Makes no pass if the
        previous pass is not complete.
        """
        late_s = now_s - self._passed_at - self.tick_s
        late = late_s > LATE_TICKS * self.tick_s
        self._passed_at = now_s
        if late:
            self._awake_since_s = now_s
            # The due pings are dropped, because a late pass finds the silent connections again. Pinging all silent
            # connections at once would block the event loop again.
            self._pings_due.clear()
        else:
            self.send_pings()
        self._clock.now_s = now_s
        if late and (suppressed := self._log_limiter.allow("late")) is not None:
            _log.warning("event loop stalled: idle timeouts start again", late_s=round(late_s, 1), **suppressed)
        if not self._passing:
            self._turn.spread(self._pass(now_s, late))

    def _pass(self, now_s: float, late: bool) -> Iterator[None]:
        self._passing = True
        try:
            yield from self._check_all(now_s)
        finally:
            self._passing = False
        self._on_tick(late)

    def _check_all(self, now_s: float) -> Iterator[None]:
        closing, self._closing = self._closing, {}
        connections = tuple(self._connections)
        for start in range(0, len(connections), CHECKED_CONNECTIONS):
            if start:
                yield
            for connection in connections[start : start + CHECKED_CONNECTIONS]:
                try:
                    if connection.closed_at is not None:
                        before = closing.get(connection) or (connection.closed_at, connection.acknowledged_bytes)
                        self._await_close(connection, now_s, *before)
                        continue
                    self._check_idle(connection, now_s)
                except Exception:  # a failure of one connection must not stop the checks of the other connections
                    self._abort(connection)

    def send_pings(self, left_s: float = 0.0) -> None:
        """Pings a group of silent connections.

        The group is just large enough that all due pings are spread evenly over the next `left_s` seconds.
        """
        share = 1.0 if left_s <= PING_PAUSE_S else PING_PAUSE_S / left_s
        self._turn.spread(self._ping_steps(ceil(len(self._pings_due) * share)))

    def _ping_steps(self, count: int) -> Iterator[None]:
        for sent in range(count):
            if sent:
                yield
            if not self._pings_due:
                return  # a late pass has dropped them
            connection = self._pings_due.popleft()
            if self._clock.now_s - connection.last_active_at < self._ping_interval_s:
                continue  # the connection is not silent any more
            try:
                connection.ping()
            except Exception:  # a failure of one connection must not stop the pings of the other connections
                self._abort(connection)

    def _check_idle(self, connection: Pingable, now_s: float) -> None:
        silent_s = now_s - connection.last_received_at
        if silent_s >= self._evict_after_s and now_s - self._awake_since_s >= self._evict_after_s:
            connection.close(CloseReason.IDLE, silent_s=round(silent_s, 1))
        elif now_s - connection.last_active_at >= self._ping_interval_s:
            self._pings_due.append(connection)

    def _await_close(self, connection: Pingable, now_s: float, since_s: float, had_bytes: int | None) -> None:
        """Aborts a closing connection after the close timeout, unless its client is still reading earlier data."""
        since_s = max(since_s, self._awake_since_s)
        if now_s - since_s >= self._close_timeout_s:
            read_bytes = connection.acknowledged_bytes
            least_bytes = MIN_READ_BYTES_PER_S * self._close_timeout_s
            if read_bytes is None or had_bytes is None or read_bytes - had_bytes < least_bytes:
                connection.abort()
                return
            since_s, had_bytes = now_s, read_bytes
        self._closing[connection] = since_s, had_bytes

    def _abort(self, connection: Pingable) -> None:
        """Logs the current exception, and aborts the connection."""
        if (suppressed := self._log_limiter.allow("failed")) is not None:
            _log.exception("ping or close of a connection failed", **suppressed)
        connection.abort()
