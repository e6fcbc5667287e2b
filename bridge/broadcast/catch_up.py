"""The connections that are behind: slow ones, and those that come back.

Each is a position in the log, its cursor, and is given piece after piece from there, so much of all together in a turn
of the loop that those who are live notice nothing. One that falls off the log's tail is closed: this is the whole
slow-consumer policy, and it bounds the memory of all clients together.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.resume import Resume
from bridge.broadcast.socket_writes import try_write
from bridge.broadcast.subscriber import Subscriber, Subscription

CATCH_UP_BYTES = 16384
"""What one is given at a time."""

MAX_PARTS_PER_TURN = 16
"""How many pieces of one large frame a client gets in a turn. With one piece, a fast client would fall behind during a
flood of large updates."""

URGENT, CATCHING_UP, FILTERING = range(3)
"""Who is given something first: those that were live until just now, then those that come back, and last those of them
with filters, which have much to ask for."""

TURN_BUDGETS_BYTES = (2**21, 2**18, 2**18)
"""What is written and looked at for each of these in one turn of the loop (bytes; see `History.work_bytes`): 5 ms, and
1 ms for those that come back, or one update, however large."""

MIN_COST_BYTES = 2048
"""What anything given counts for, however little."""

MAX_EVICTIONS_PER_TURN = 64
"""Clients that are evicted in one turn of the loop: 3 ms, when thousands stopped to read at the same time."""


class CatchUp:
    """A set of connections, each on its way to the head of the log."""

    def __init__(
        self,
        history: ReplayIndex,
        resuming: Resume,
        schedule: Callable[..., object],
        arrived: Callable[[Subscriber], None],
        leave: Callable[[Subscriber], None],
    ) -> None:
        """`arrived` is told of a connection that has had everything, `leave` of one that failed."""
        self._history = history
        self._log = history.log
        self._resuming = resuming
        self._schedule = schedule
        self._arrived = arrived
        self._leave = leave
        self._connections: set[Subscriber] = set()
        self._returning: set[Subscriber] = set()
        """Those of them that were never live."""
        self._finishing: dict[Subscriber, Subscription] = {}
        """Connections that get the rest of a frame before their close frame, each with its view."""
        self._due: tuple[OrderedDict[Subscriber, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        """Those that can be given something, each once, by who comes first."""
        self._turning = False
        self.flushed = 0
        """The position up to which the live connections have had everything."""
        self._slowest = 0
        """A lower bound of the cursors: they are looked through only when the tail passes it."""
        self._evicting = False
        """True while some wait for their eviction in a later turn."""
        self.sent_bytes = 0
        """Bytes written to sockets and handed to transports."""

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Subscriber, position: int, *, returning: bool = False) -> None:
        """Adds one whose next frame is at a position; `returning` says that it was not live before."""
        assert connection.subscription is not None
        if returning:
            self._returning.add(connection)
        else:
            connection.subscription.lagging_count += 1
        connection.cursor, connection.offset = position, 0
        if not (self._connections or self._finishing) or position < self._slowest:
            self._slowest = position
        self._connections.add(connection)

    def finish(self, connection: Subscriber, subscription: Subscription) -> bool:
        """Sends a removed connection the rest of its current frame. Returns False if the log has dropped the frame."""
        if connection.cursor < self._log.tail:
            return False
        self._slowest = min(self._slowest, connection.cursor)
        self._finishing[connection] = subscription
        self.schedule(connection)
        return True

    def forget(self, connection: Subscriber) -> None:
        """Stops sending the rest of a frame. To be called when the connection is gone."""
        if self._finishing.pop(connection, None) is not None:
            self._due[URGENT].pop(connection, None)

    def discard(self, connection: Subscriber) -> bool:
        """Removes one, if it is here; says whether it was to have what it has not had."""
        if connection not in self._connections:
            return False
        self._connections.remove(connection)
        for due in self._due:
            due.pop(connection, None)
        if connection in self._returning:
            self._returning.remove(connection)
            return False
        assert connection.subscription is not None
        connection.subscription.lagging_count -= 1
        return True

    def skip(self) -> None:
        """Nobody here gets what has been flushed."""
        for connection in self._connections:
            connection.cursor = self.flushed

    def schedule(self, connection: Subscriber) -> None:
        """Gives it something in one of the next turns. Not at once: one that reads just then could keep it going."""
        if connection not in self._connections and connection not in self._finishing:
            return
        rank = URGENT
        if connection in self._returning:
            assert connection.subscription is not None
            rank = CATCHING_UP if connection.subscription.filter is None else FILTERING
        self._due[rank].setdefault(connection)
        self._wake()

    def on_partial_write(self, connection: Subscriber, positions: Sequence[int], offset: int, taken: int) -> None:
        """Continues after a socket took only `taken` bytes of the frames at `positions`.

        `offset` is where the first frame started. The transport sends the next piece of the frame in which the socket
        stopped, and reports when it has room again. The rest stays in the log.
        """
        subscription = connection.subscription
        assert subscription is not None
        position, offset = subscription.split(positions, offset, taken)
        piece = subscription.read(position, offset, position + 1, CATCH_UP_BYTES)
        connection.cursor, connection.offset = piece.end, piece.offset
        self.send(connection, piece.frames)
        self.schedule(connection)

    def evict_too_slow(self) -> None:
        """Closes those that the tail has passed."""
        if self._log.tail > self._slowest and not self._evicting:
            self._evict_some()

    def send_next(self, connection: Subscriber) -> None:
        """Gives it a piece now, if it can take one."""
        try:
            self._send_next(connection)
        except Exception as error:  # of one connection: it must not affect the others, nor be forgotten
            self.fail(connection, error)

    def _send_next(self, connection: Subscriber) -> None:
        if connection in self._finishing:
            self._send_rest(connection)
            return
        if connection not in self._connections or connection.congested:
            return
        if connection in self._resuming:
            message = self._resuming.message(connection, self.flushed)
            if message is None:
                self.schedule(connection)
                return
            self._slowest = min(self._slowest, connection.cursor)
            self.send(connection, message)
        elif connection.cursor < self._log.tail:
            self._evict(connection)
            return
        elif connection.cursor < self.flushed:
            self._send_piece(connection)
            for _ in range(MAX_PARTS_PER_TURN - 1):
                if not connection.offset or connection.congested or connection not in self._connections:
                    break
                self._send_piece(connection)
        if connection not in self._connections or connection.congested:
            return
        if connection.cursor < self.flushed:
            # One piece a turn: one that is far behind must not hold up the others.
            self.schedule(connection)
            return
        self.discard(connection)
        self._arrived(connection)

    def _send_piece(self, connection: Subscriber) -> None:
        assert connection.subscription is not None
        offset = connection.offset
        piece = connection.subscription.read(connection.cursor, offset, self.flushed, CATCH_UP_BYTES)
        frames = piece.frames
        self._history.work_bytes += len(frames)
        connection.cursor, connection.offset = piece.end, piece.offset
        descriptor = connection.descriptor
        if not frames:
            return
        if descriptor is None:
            # Encryption costs as much as the write.
            self._history.work_bytes += len(frames)
            self.send(connection, frames)
        else:
            taken = try_write(descriptor, frames)
            self.sent_bytes += taken
            if taken < len(frames):
                self.on_partial_write(connection, piece.positions, offset, taken)
        if offset and not connection.offset:
            connection.frame_ended()

    def _send_rest(self, connection: Subscriber) -> None:
        if connection.congested:
            return
        if connection.cursor < self._log.tail:
            self.forget(connection)
            connection.reset()
            return
        subscription = self._finishing[connection]
        piece = subscription.read(connection.cursor, connection.offset, connection.cursor + 1, CATCH_UP_BYTES)
        self._history.work_bytes += len(piece.frames)
        connection.cursor, connection.offset = piece.end, piece.offset
        self.send(connection, piece.frames)
        if connection.offset:
            self.schedule(connection)
        else:
            self.forget(connection)
            connection.frame_ended()

    def _wake(self) -> None:
        if not self._turning:
            self._turning = True
            self._schedule(self._turn)

    def _turn(self) -> None:
        self._turning = False
        for due, budget_bytes in zip(self._due, TURN_BUDGETS_BYTES, strict=True):
            self._spend(budget_bytes, due)
        if any(self._due):
            self._wake()

    def _spend(self, budget_bytes: int, due: OrderedDict[Subscriber, None]) -> None:
        history = self._history
        enough = history.work_bytes + budget_bytes
        # Each once, and not those that are added meanwhile: one piece a turn.
        for _ in range(len(due)):
            if not due or history.work_bytes >= enough:
                return
            history.work_bytes += MIN_COST_BYTES
            connection, _ = due.popitem(last=False)
            self.send_next(connection)

    def send(self, connection: Subscriber, *frames: bytes | memoryview) -> None:
        """Sends through its transport; one that fails is closed, and no trouble for the others."""
        try:
            if connection.send(*frames):
                self.sent_bytes += sum(map(len, frames))
        except Exception as error:  # whatever a transport may raise
            self.fail(connection, error)

    def fail(self, connection: Subscriber, error: Exception) -> None:
        """Closes a connection because of an error of the bridge's own."""
        with suppress(Exception):
            connection.close(CloseReason.INTERNAL, error=repr(error))
        self._leave(connection)

    def _evict_some(self) -> None:
        tail = self._log.tail
        for connection in [connection for connection in self._finishing if connection.cursor < tail]:
            self.forget(connection)
            connection.reset()
        # Whoever has not been told yet where it goes on goes on at the tail, wherever that is by then.
        judged = [connection for connection in self._connections if connection not in self._resuming]
        behind = [connection for connection in judged if connection.cursor < tail]
        for connection in behind[:MAX_EVICTIONS_PER_TURN]:
            self._evict(connection)
        self._evicting = len(behind) > MAX_EVICTIONS_PER_TURN
        if self._evicting:
            self._schedule(self._evict_some)
        self._slowest = min(
            (connection.cursor for connection in (*judged, *self._finishing) if connection.cursor >= tail),
            default=self.flushed,
        )

    def _evict(self, connection: Subscriber) -> None:
        connection.close(CloseReason.TOO_SLOW, updates_behind=self.flushed - connection.cursor)
