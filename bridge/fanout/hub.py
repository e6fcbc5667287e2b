"""Who is connected, and what each has had: one log, many cursors.

A connection is *live* (it has had all that was flushed, and its transport is empty) or *lagging* (its socket could not
take everything: its cursor stays where it is, and it reads on from the log whenever the transport drains). What waits
for a slow client is a position in the log, not a copy: its transport holds the rest of one frame. One that falls off
the log's tail is closed: this is the whole slow-consumer policy, and it bounds the memory of all clients together.

This file must never know what an update means, or how a frame reaches a socket.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from bridge.fanout.closing import CloseReason
from bridge.fanout.frames import text_frame
from bridge.fanout.live import Live, Place
from bridge.fanout.log import ENTRY_BYTES, Log
from bridge.fanout.writing import write_one
from bridge.metrics import Metrics

FLUSH_BYTES = 65536
"""What one write to a connection may hold. Larger writes gain nothing: a frame costs the kernel more than the call."""

CATCH_UP_BYTES = 16384
"""What a lagging connection is given in one turn of the loop."""

EVICTIONS = 64
"""Clients that are evicted in one turn of the loop: 3 ms, when thousands stopped to read at the same time."""


class Subscriber(Place, Protocol):
    """A connection, as the hub sees it."""

    cursor: int
    """The position of the next frame to send. Meaningful while the connection lags."""
    congested: bool
    """True while the transport still holds something."""

    def send(self, frames: bytes | memoryview) -> int:
        """Through the transport: bytes written; -1 where (a part of) them is enqueued; 0 where they are dropped."""

    def close(self, reason: CloseReason, **details: object) -> None:
        """Closes with a reason; `details` are numbers for the log."""


class Hub:
    """Publishes updates to all connections. Few verbs: join, leave, publish, drain."""

    def __init__(self, log: Log, metrics: Metrics, schedule: Callable[..., object], log_bytes: int) -> None:
        """`schedule` is the event loop's `call_soon`; `log_bytes` the bound that `log` was made with."""
        self._log = log
        self._metrics = metrics
        self.schedule = schedule
        """Calls back in the next turn of the loop: for connections too, which then need to know no loop."""
        # Not more than the log can hold beside what is kept: nothing may fall off its tail before it was flushed.
        self._flush_bytes = min(FLUSH_BYTES, log_bytes // 4)
        self._flush_updates = log_bytes // 2 // ENTRY_BYTES
        self._live: Live[Subscriber] = Live()
        self._lagging: set[Subscriber] = set()
        self._flushed = 0
        self._pending_bytes = 0
        self._slowest = 0
        """A lower bound of the lagging connections' cursors: they are looked through only when the tail passes it."""
        self._evicting = False
        """True while some wait for their eviction in a later turn."""
        self._draining = False
        self.on_flush: Callable[[], None] = lambda: None
        """Called after each flush: all that was published before has been handed out."""

    def __len__(self) -> int:
        return len(self._live) + len(self._lagging)

    @property
    def lagging(self) -> int:
        """How many connections are behind."""
        return len(self._lagging)

    def join(self, connection: Subscriber) -> None:
        """Adds a connection, from now on."""
        self._metrics.opened.inc()
        if connection.congested:
            self._lag(connection, self._flushed)
        else:
            self._live.add(connection)

    def leave(self, connection: Subscriber) -> None:
        """Forgets a connection that is closed or closing. What it has not had yet is dropped.

        To be called before its descriptor is closed: the next socket to be opened gets the same one.
        """
        self._live.discard(connection)
        if connection in self._lagging:
            self._lagging.remove(connection)
            self._metrics.dropped += self._flushed - connection.cursor

    def publish(self, payload: bytes) -> None:
        """Adds an update (UTF-8 JSON) to the log; it leaves with the next `flush`, together with all others by then."""
        frame = text_frame(payload)
        unflushed = self._log.head - self._flushed
        if self._pending_bytes + len(frame) > self._flush_bytes or unflushed >= self._flush_updates:
            self.flush()
        self._log.append(frame)
        self._pending_bytes += len(frame)

    def flush(self) -> None:
        """Gives every live connection all that was published since the last flush."""
        self._pending_bytes = 0
        log = self._log
        while self._flushed < log.head:
            start = self._flushed
            frames, self._flushed = log.read(start, log.head, self._flush_bytes)
            for connection, taken in self._live.write(frames):
                self._live.discard(connection)
                self._lag(connection, start)
                self._hand_over(connection, taken)
            for connection in tuple(self._live.indirect):
                self._live.discard(connection)
                self._lag(connection, start)
                self._catch_up(connection)
            updates = self._flushed - start
            self._metrics.written += len(self._live) * updates
            self._metrics.enqueued += len(self._lagging) * updates
        if log.tail > self._slowest and not self._evicting:
            self._evict_too_slow()
        self.on_flush()

    def congested(self, connection: Subscriber) -> None:
        """To be called when a connection's transport could not take everything: nothing may be written past it."""
        if connection in self._live:
            self._live.discard(connection)
            self._lag(connection, self._flushed)

    def drained(self, connection: Subscriber) -> None:
        """To be called when the transport of a congested connection is empty again."""
        self._catch_up(connection)

    def drain(self) -> None:
        """Closes every connection once it has had everything: now, or when it has caught up."""
        self.flush()
        self._draining = True
        for connection in self._live:
            connection.close(CloseReason.STOPPING)

    def _send(self, connection: Subscriber, frames: bytes | memoryview) -> None:
        try:
            connection.send(frames)
        except Exception as error:  # one connection's failure is not the others'
            with suppress(Exception):
                connection.close(CloseReason.INTERNAL, error=repr(error))
            self.leave(connection)

    def _lag(self, connection: Subscriber, position: int) -> None:
        connection.cursor = position
        if not self._lagging or position < self._slowest:
            self._slowest = position
        self._lagging.add(connection)

    def _hand_over(self, connection: Subscriber, taken: int) -> None:
        """Goes on after a socket took only so many bytes of the run at the cursor.

        The frame that it stopped in must be finished, and by the transport: it says when there is room again. The rest
        of the run stays in the log.
        """
        position, rest = self._log.split(connection.cursor, taken)
        connection.cursor = position + 1
        self._send(connection, rest)
        # Not at once: a client that reads just then could keep it going.
        self.schedule(self._catch_up, connection)

    def _catch_up(self, connection: Subscriber) -> None:
        if connection not in self._lagging or connection.congested:
            return
        if connection.cursor < self._log.tail:
            self._evict(connection)
            return
        if connection.cursor < self._flushed:
            frames, position = self._log.read(connection.cursor, self._flushed, CATCH_UP_BYTES)
            descriptor = connection.descriptor
            if descriptor is None:
                connection.cursor = position
                self._send(connection, frames)
            else:
                taken = write_one(descriptor, frames)
                if taken < len(frames):
                    self._hand_over(connection, taken)
                    return
                connection.cursor = position
        if connection not in self._lagging or connection.congested:
            return
        if connection.cursor < self._flushed:
            # One piece a turn: a client far behind must not hold up the others.
            self.schedule(self._catch_up, connection)
            return
        self._lagging.discard(connection)
        self._live.add(connection)
        if self._draining:
            connection.close(CloseReason.STOPPING)

    def _evict_too_slow(self) -> None:
        tail = self._log.tail
        behind = [connection for connection in self._lagging if connection.cursor < tail]
        for connection in behind[:EVICTIONS]:
            self._evict(connection)
        self._evicting = len(behind) > EVICTIONS
        if self._evicting:
            self.schedule(self._evict_too_slow)
        self._slowest = min((connection.cursor for connection in self._lagging), default=self._flushed)

    def _evict(self, connection: Subscriber) -> None:
        connection.close(CloseReason.TOO_SLOW, updates_behind=self._flushed - connection.cursor)
