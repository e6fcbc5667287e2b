"""The connections that are behind: slow ones, and those that come back.

Each is a position in the log, its cursor, and is given piece after piece from there, so much of all together in a turn
of the loop that those who are live notice nothing. One that falls off the log's tail is closed: this is the whole
slow-consumer policy, and it bounds the memory of all clients together.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from bridge.fanout.closing import CloseReason
from bridge.fanout.history import History
from bridge.fanout.live import Place
from bridge.fanout.resuming import Resuming
from bridge.fanout.view import View
from bridge.fanout.writing import write_one

CATCH_UP_BYTES = 16384
"""What one is given at a time."""

PIECES = 32
"""Given in one turn of the loop, to all together: 2 to 3 ms, and with filters that have not been asked yet, 15."""

EVICTIONS = 64
"""Clients that are evicted in one turn of the loop: 3 ms, when thousands stopped to read at the same time."""


class Subscriber(Place, Protocol):
    """A connection, as the hub sees it."""

    cursor: int
    """The position of the next frame to send. Meaningful while the connection lags."""
    congested: bool
    """True while the transport still holds something."""
    view: "View[Subscriber] | None"
    """The hub's: what it sees of the log, from joining to leaving."""

    def send(self, frames: bytes | memoryview) -> int:
        """Through the transport: bytes written; -1 where (a part of) them is enqueued; 0 where they are dropped."""

    def close(self, reason: CloseReason, **details: object) -> None:
        """Closes with a reason; `details` are numbers for the log."""


class Lagging:
    """A set of connections, each on its way to the head of the log."""

    def __init__(
        self,
        history: History,
        resuming: Resuming,
        schedule: Callable[..., object],
        arrived: Callable[[Subscriber], None],
        leave: Callable[[Subscriber], None],
    ) -> None:
        """`arrived` is told of a connection that has had everything, `leave` of one that failed."""
        self._log = history.log
        self._resuming = resuming
        self._schedule = schedule
        self._arrived = arrived
        self._leave = leave
        self._connections: set[Subscriber] = set()
        self._due: deque[Subscriber] = deque()
        """Those that can be given something; some may have left."""
        self._turning = False
        self.flushed = 0
        """The position up to which the live connections have had everything."""
        self._slowest = 0
        """A lower bound of the cursors: they are looked through only when the tail passes it."""
        self._evicting = False
        """True while some wait for their eviction in a later turn."""

    def __len__(self) -> int:
        return len(self._connections)

    def __contains__(self, connection: Subscriber) -> bool:
        return connection in self._connections

    def add(self, connection: Subscriber, position: int) -> None:
        """Adds one whose next frame is at a position."""
        connection.cursor = position
        if not self._connections or position < self._slowest:
            self._slowest = position
        self._connections.add(connection)

    def discard(self, connection: Subscriber) -> None:
        """Removes one, if it is here."""
        self._connections.discard(connection)

    def skip(self) -> None:
        """Nobody here gets what has been flushed."""
        for connection in self._connections:
            connection.cursor = self.flushed

    def go_on(self, connection: Subscriber) -> None:
        """Gives it something in one of the next turns. Not at once: one that reads just then could keep it going."""
        self._due.append(connection)
        if not self._turning:
            self._turning = True
            self._schedule(self._turn)

    def hand_over(self, connection: Subscriber, end: int, taken: int) -> None:
        """Goes on after a socket took only so many bytes of the piece between the cursor and `end`.

        The frame that it stopped in must be finished, and by the transport: it says when there is room again. The rest
        of the piece stays in the log.
        """
        assert connection.view is not None
        position, rest = connection.view.split(connection.cursor, end, taken)
        connection.cursor = position + 1
        self.send(connection, rest)
        self.go_on(connection)

    def evict_too_slow(self) -> None:
        """Closes those that the tail has passed."""
        if self._log.tail > self._slowest and not self._evicting:
            self._evict_some()

    def give(self, connection: Subscriber) -> None:
        """Gives it a piece now, if it can take one."""
        if connection not in self._connections or connection.congested:
            return
        if connection in self._resuming:
            message = self._resuming.message(connection, self.flushed)
            if message is None:
                self.go_on(connection)
                return
            self._slowest = min(self._slowest, connection.cursor)
            self.send(connection, message)
        elif connection.cursor < self._log.tail:
            self._evict(connection)
            return
        elif connection.cursor < self.flushed and not self._give_piece(connection):
            return
        if connection not in self._connections or connection.congested:
            return
        if connection.cursor < self.flushed:
            # One piece a turn: one that is far behind must not hold up the others.
            self.go_on(connection)
            return
        self._connections.discard(connection)
        self._arrived(connection)

    def _give_piece(self, connection: Subscriber) -> bool:
        """False where its socket did not take all of it."""
        assert connection.view is not None
        piece, position = connection.view.read(connection.cursor, self.flushed, CATCH_UP_BYTES)
        descriptor = connection.descriptor
        if piece and descriptor is not None:
            taken = write_one(descriptor, piece)
            if taken < len(piece):
                self.hand_over(connection, position, taken)
                return False
        connection.cursor = position
        if piece and descriptor is None:
            self.send(connection, piece)
        return True

    def _turn(self) -> None:
        self._turning = False
        due = [self._due.popleft() for _ in range(min(PIECES, len(self._due)))]
        for connection in due:
            self.give(connection)
        if self._due and not self._turning:
            self._turning = True
            self._schedule(self._turn)

    def send(self, connection: Subscriber, frames: bytes | memoryview) -> None:
        """Sends through its transport; one that fails is closed, and no trouble for the others."""
        try:
            connection.send(frames)
        except Exception as error:  # whatever a transport may raise
            with suppress(Exception):
                connection.close(CloseReason.INTERNAL, error=repr(error))
            self._leave(connection)

    def _evict_some(self) -> None:
        tail = self._log.tail
        # Whoever has not been told yet where it goes on goes on at the tail, wherever that is by then.
        judged = [connection for connection in self._connections if connection not in self._resuming]
        behind = [connection for connection in judged if connection.cursor < tail]
        for connection in behind[:EVICTIONS]:
            self._evict(connection)
        self._evicting = len(behind) > EVICTIONS
        if self._evicting:
            self._schedule(self._evict_some)
        self._slowest = min(
            (connection.cursor for connection in judged if connection.cursor >= tail), default=self.flushed
        )

    def _evict(self, connection: Subscriber) -> None:
        connection.close(CloseReason.TOO_SLOW, updates_behind=self.flushed - connection.cursor)
