"""Sends slow clients and resuming clients the log from their cursors, until they reach its head.

Each connection has a cursor, which is its position in the log. A connection gets the log in pieces, starting at its
cursor. The total size of all pieces in one turn of the loop is limited, so that the live connections are not delayed. A
connection is closed when its cursor falls off the tail of the log. No separate limit for slow clients is needed,
because the size of the log limits the memory for all clients together.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.framing import Form
from bridge.broadcast.heartbeat import Heartbeats
from bridge.broadcast.join_storm import JoinStorm
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.resume import Resume
from bridge.broadcast.socket_writes import try_write
from bridge.broadcast.subscriber import ConnectionEvent, Dispatch, State, Subscriber
from bridge.loop_turn import LoopTurn

CATCH_UP_BYTES = 16384
"""The maximum size of one piece, in bytes."""

MAX_PARTS_PER_TURN = 16
"""The maximum number of parts of one large frame that a connection gets in one turn of the loop.

If a connection got only one part in each turn, even a fast client would fall off the log's tail during a flood of large
updates.
"""

URGENT, RETURNING, FILTERING = range(3)
"""The ranks of connections, in the order in which a turn serves them.

URGENT connections were live before they fell behind. RETURNING connections resume without a filter, or were held during
a storm. FILTERING connections resume with a filter, so the bridge has to search longer for their updates.
"""

TURN_BUDGETS_BYTES = (2**21, 2**18, 2**18)
"""The maximum work for each rank in one turn of the loop (see `ReplayIndex.work_bytes`).

The maximum work takes 5 ms for the rank URGENT, and 1 ms for each other rank. A single large update may exceed the
maximum.
"""

CATCH_UP_TURN_S = 0.01
"""The processor time after which a turn sends no further pieces, in seconds.

This time is longer than `TURN_S`, so that connections catch up even while each turn is full of other work.
"""

MIN_COST_BYTES = 2048
"""Sending a piece counts as at least this amount of work, however small the piece is."""

MAX_EVICTIONS_PER_TURN = 64
"""The maximum number of connections that are closed as too slow in one turn of the loop. Closing 64 connections takes 3
ms."""

MAX_HELD_BYTES = 16384
"""The maximum memory of the log for the updates that the held connections lack, in bytes.

Larger writes would save little time. If the next flush would exceed this maximum, the held connections get their
updates before that flush. A small log, or a log that fills fast, therefore does not drop these updates.
"""

# In Python 3.11, each access to an enum member runs Python code, which takes longer than a comparison with the member.
_RESUMING, _CATCHING_UP, _LAGGING, _CLOSING = State.RESUMING, State.CATCHING_UP, State.LAGGING, State.CLOSING
_CAUGHT_UP = ConnectionEvent.CAUGHT_UP

_READING = frozenset({State.LAGGING, State.CATCHING_UP})
"""The states in which a connection reads the log. Any write to a connection can move it to another state."""

_SENDING = _READING | {State.LIVE}


class CatchUp:
    """Manages the connections that read the log from their cursors, and decides when each of them gets its next piece.

    Connections that read from their cursors are in the state RESUMING, CATCHING_UP, LAGGING or CLOSING.
    """

    def __init__(
        self,
        index: ReplayIndex,
        resume: Resume,
        schedule: Callable[..., object],
        call_later: Callable[[float, Callable[[], None]], object],
        time: Callable[[], float],
        dispatch: Dispatch,
        turn: LoopTurn,
        heartbeats: Heartbeats,
    ) -> None:
        """`schedule`, `call_later` and `time` are methods of the event loop: `call_soon`, `call_later` and `time`."""
        self._index = index
        self._update_log = index.update_log
        self._resume = resume
        self._time = time
        self._heartbeats = heartbeats
        self._schedule = schedule
        self._dispatch = dispatch
        self._turn_clock = turn
        self.catching_up: set[Subscriber] = set()
        """The connections in the state CATCHING_UP. Only `CatchUp` changes the set `catching_up`."""
        self.lagging: set[Subscriber] = set()
        """The connections in the state LAGGING. Only `CatchUp` changes the set `lagging`."""
        self.closing: set[Subscriber] = set()
        """The connections in the state CLOSING that still get the rest of a frame. Only `CatchUp` changes the set
        `closing`."""
        self._urgent: OrderedDict[Subscriber, None] = OrderedDict()
        self._due: tuple[OrderedDict[Subscriber, None], ...] = (self._urgent, OrderedDict(), OrderedDict())
        """The connections that wait for their next piece, by rank."""
        self.join_storm = JoinStorm(call_later, self._release_held)
        self._held: OrderedDict[Subscriber, None] = OrderedDict()
        """The LAGGING connections that joined during a storm, and have not been sent their first updates."""
        self._held_bytes = 0
        """The memory of the log for the updates that the held connections lack, in bytes."""
        self._turn_is_scheduled = False
        self._slowest = 0
        """No cursor is lower than this position.

        The cursors are compared with the log's tail only when the tail passes this position.
        """
        self._evicting = False
        """True if some of the connections that are too slow are left for a later turn to evict."""
        self.sent_bytes = dict.fromkeys(Form, 0)
        """The number of bytes written to sockets and handed to transports, by form."""

    # Methods that the hub calls when connections enter and leave states

    def add_catching_up(self, connection: Subscriber) -> None:
        """Adds a connection that is now CATCHING_UP. The connection reads the log from its cursor."""
        self.catching_up.add(connection)
        self._slowest = min(self._slowest, connection.cursor)

    def discard_catching_up(self, connection: Subscriber) -> None:
        """Removes a connection that is no longer CATCHING_UP."""
        self.catching_up.discard(connection)
        self._due[_rank(connection)].pop(connection, None)

    def add_lagging(self, connection: Subscriber) -> None:
        """Adds a connection that is now LAGGING. The connection reads the log from its cursor."""
        connection.offset = 0
        self._slowest = min(self._slowest, connection.cursor)
        connection.subscription.lagging_count += 1
        self.lagging.add(connection)

    def discard_lagging(self, connection: Subscriber) -> None:
        """Removes a connection that is no longer LAGGING."""
        connection.subscription.lagging_count -= 1
        self.lagging.discard(connection)
        for queue in (self._urgent, self._due[RETURNING], self._held):
            queue.pop(connection, None)

    def discard_resuming(self, connection: Subscriber) -> None:
        """Removes a connection that is no longer RESUMING."""
        self._resume.forget(connection)
        self._due[_rank(connection)].pop(connection, None)

    def discard_closing(self, connection: Subscriber) -> None:
        """Removes a connection that is no longer CLOSING or has received the rest of its frame."""
        self.closing.discard(connection)
        self._urgent.pop(connection, None)

    def finish_frame(self, connection: Subscriber) -> None:
        """Sends a CLOSING connection the rest of a frame if only a part of the frame was sent."""
        if not connection.offset:
            return
        if connection.cursor < self._update_log.tail:
            self._dispatch(connection, ConnectionEvent.OVERTAKEN)
            return
        self._slowest = min(self._slowest, connection.cursor)
        self.closing.add(connection)
        self.schedule(connection)

    def hold(self, connection: Subscriber) -> None:
        """Holds a LAGGING connection until the storm ends. The connection must have all flushed updates."""
        if not self._held:
            self._held_bytes = 0
        self._held[connection] = None

    def before_flush(self, waiting_bytes: int) -> Iterator[None]:
        """Returns the steps that must run before the next updates are flushed.

        `waiting_bytes` is the memory of the log for all updates that are not flushed. If the held connections would
        lack too many updates, the steps send them the flushed updates.
        """
        self._held_bytes += waiting_bytes
        if self._held and self._held_bytes > MAX_HELD_BYTES:
            yield from self.send_held()
            # It is unknown how many updates wait by now. If more connections are held already, the next flush sends
            # them their updates.
            self._held_bytes = MAX_HELD_BYTES

    def send_held(self) -> Iterator[None]:
        """Sends each held connection its next piece, in one step for each connection."""
        # The number of steps is limited, because more connections may join between two steps.
        for _ in range(len(self._held)):
            if not self._held:
                return
            connection, _ = self._held.popitem(last=False)
            self.send_next(connection)
            yield

    def _release_held(self) -> None:
        for connection in self._held:
            # Thousands of connections of the rank URGENT would delay the live connections.
            self._due[RETURNING][connection] = None
        if not self._turn_is_scheduled:
            self._schedule_turn()

    def skip_flushed(self) -> None:
        """Moves all cursors to the flushed position, so that no connection receives any earlier updates."""
        for connection in chain(self.catching_up, self.lagging):
            connection.cursor = self._update_log.flushed

    # Turns

    def schedule(self, connection: Subscriber) -> None:
        """Sends a connection a piece in a later turn.

        Without a turn of the loop between two pieces, a fast client could block the loop.
        """
        due = self._urgent if connection.state is _LAGGING else self._due[_rank(connection)]
        due[connection] = None
        if not self._turn_is_scheduled:
            self._schedule_turn()

    def _schedule_turn(self) -> None:
        self._turn_is_scheduled = True
        self._schedule(self._turn)

    def _turn(self) -> None:
        self._turn_is_scheduled = False
        # Without this call, the next turn could count as a part of this turn.
        self._turn_clock.begin()
        for due, budget_bytes in zip(self._due, TURN_BUDGETS_BYTES, strict=True):
            self._consume(budget_bytes, due)
        if any(self._due) and not self._turn_is_scheduled:
            self._schedule_turn()

    def _consume(self, budget_bytes: int, due: OrderedDict[Subscriber, None]) -> None:
        index = self._index
        limit_bytes = index.work_bytes + budget_bytes
        # In this turn, each connection that was already waiting gets at most one piece. Connections that are added
        # during this turn get their piece in the next turn. Each rank gets at least one piece in a turn.
        for _ in range(len(due)):
            if not due or index.work_bytes >= limit_bytes:
                return
            index.work_bytes += MIN_COST_BYTES
            connection, _ = due.popitem(last=False)
            self.send_next(connection)
            if self._turn_clock.is_over(CATCH_UP_TURN_S):
                return

    # Pieces

    def send_next(self, connection: Subscriber) -> None:
        """Sends a connection a piece now, if its transport is empty."""
        if connection.congested:
            return
        try:
            if connection.state is _CLOSING:
                self._send_rest(connection)
            else:
                self._send_next(connection)
        except Exception as error:  # an error of one connection must not affect other connections
            self.fail(connection, error)

    def _send_next(self, connection: Subscriber) -> None:
        log = self._update_log
        if connection.state is _RESUMING:
            message = self._resume.next_message(connection)
            if message is None:
                self.schedule(connection)
                return
            self._dispatch(connection, ConnectionEvent.RESUME_SENT)
            if connection.cursor >= log.flushed:
                self._reach_head(connection, message)
                return
            self._send_message(connection, message)
        elif connection.cursor < log.tail:
            self._dispatch(connection, ConnectionEvent.OVERTAKEN)
            return
        elif connection.cursor < log.flushed:
            self._send_piece(connection)
            for _ in range(MAX_PARTS_PER_TURN - 1):
                if not connection.offset or connection.congested or connection.state not in _READING:
                    break
                self._send_piece(connection)
        if connection.congested or connection.state not in _READING:
            return
        if connection.cursor < log.flushed:
            # Each connection gets only one piece in a turn, so that a connection that lags far behind does not delay
            # the others.
            self.schedule(connection)
        else:
            self._reach_head(connection)

    def _reach_head(self, connection: Subscriber, message: bytes = b"") -> None:
        """Makes a connection live, or holds it during a storm. Sends a message before, and a heartbeat after a replay.

        The connection must have everything that is flushed, except the message.
        """
        if connection.state is _CATCHING_UP:
            form = connection.subscription.form
            if form.has_ids:
                # Two frames in one write take half the time of two writes.
                message += self._heartbeats.frame(form)
                self._heartbeats.watch()
                self._send_message(connection, message)
            if connection.state is not _CATCHING_UP:
                return
            if connection.congested:
                self._dispatch(connection, ConnectionEvent.REACHED_HEAD)
                return
            if self.join_storm.is_on:
                self._dispatch(connection, ConnectionEvent.HOLD)
                return
        self._dispatch(connection, _CAUGHT_UP)

    def send_heartbeat(self, connection: Subscriber) -> None:
        """Sends a heartbeat to a LIVE connection that has received everything that is flushed."""
        self._send_message(connection, self._heartbeats.frame(connection.subscription.form))

    def _send_message(self, connection: Subscriber, frame: bytes) -> None:
        connection.sent_at = self._time()
        descriptor = connection.descriptor
        if descriptor is not None:
            taken = try_write(descriptor, frame)
            self.sent_bytes[connection.subscription.form] += taken
            frame = frame[taken:]
        if frame:
            self.send(connection, frame)

    def _send_piece(self, connection: Subscriber) -> None:
        offset = connection.offset
        piece = connection.subscription.read(connection.cursor, offset, self._update_log.flushed, CATCH_UP_BYTES)
        frames = piece.frames
        self._index.work_bytes += len(frames)
        connection.cursor, connection.offset = piece.end, piece.offset
        descriptor = connection.descriptor
        if not frames:
            return
        connection.sent_at = self._time()
        if descriptor is None:
            # The frames are counted twice, because encrypting them takes as much time as writing them.
            self._index.work_bytes += len(frames)
            self.send(connection, frames)
        else:
            taken = try_write(descriptor, frames)
            self.sent_bytes[connection.subscription.form] += taken
            if taken < len(frames):
                self.on_partial_write(connection, piece.positions, offset, taken)
        if offset and not connection.offset:
            connection.frame_ended()

    def on_partial_write(self, connection: Subscriber, positions: Sequence[int], offset: int, taken: int) -> None:
        """Continues sending after a socket took only `taken` bytes of the frames at `positions`.

        `offset` says at which byte of the first frame the write began. If the socket took only a part of a frame, the
        transport sends the next piece of this frame, and reports when the socket has room again. All further frames
        stay in the log and are read later.
        """
        subscription = connection.subscription
        position, offset = subscription.split(positions, offset, taken)
        piece = subscription.read(position, offset, position + 1, CATCH_UP_BYTES)
        connection.cursor, connection.offset = piece.end, piece.offset
        self.send(connection, piece.frames)
        if connection.state in _READING:
            self.schedule(connection)

    def _send_rest(self, connection: Subscriber) -> None:
        if connection.cursor < self._update_log.tail:
            self._dispatch(connection, ConnectionEvent.OVERTAKEN)
            return
        piece = connection.subscription.read(
            connection.cursor, connection.offset, connection.cursor + 1, CATCH_UP_BYTES
        )
        self._index.work_bytes += len(piece.frames)
        connection.cursor, connection.offset = piece.end, piece.offset
        self.send(connection, piece.frames)
        if connection not in self.closing:
            return
        if connection.offset:
            self.schedule(connection)
        else:
            self.discard_closing(connection)
            connection.frame_ended()

    def send(self, connection: Subscriber, *frames: bytes | memoryview) -> None:
        """Sends frames through the connection's transport. Closes the connection if the transport fails."""
        try:
            if connection.send(*frames):
                self.sent_bytes[connection.subscription.form] += sum(map(len, frames))
            elif connection.state in _SENDING:
                # Without this event, each flush would write to a connection whose transport has failed.
                self._dispatch(connection, ConnectionEvent.LEAVE)
        except Exception as error:  # a transport may raise any error
            self.fail(connection, error)

    def fail(self, connection: Subscriber, error: Exception) -> None:
        """Closes a connection because of a fault of the bridge."""
        with suppress(Exception):
            connection.close(CloseReason.INTERNAL, error=repr(error))
        self._dispatch(connection, ConnectionEvent.LEAVE)

    # Evictions

    def evict_too_slow(self) -> None:
        """Evicts each connection whose cursor is now behind the tail of the log."""
        if self._update_log.tail > self._slowest and not self._evicting:
            self._evict_some()

    def _evict_some(self) -> None:
        tail = self._update_log.tail
        # RESUMING connections are not evicted. If the tail of the log passes the cursor of a RESUMING connection, this
        # connection begins again at a later position.
        reading = (*self.closing, *self.catching_up, *self.lagging)
        overtaken = [connection for connection in reading if connection.cursor < tail]
        for connection in overtaken[:MAX_EVICTIONS_PER_TURN]:
            self._dispatch(connection, ConnectionEvent.OVERTAKEN)
        self._evicting = len(overtaken) > MAX_EVICTIONS_PER_TURN
        if self._evicting:
            self._schedule(self._evict_some)
        cursors = (connection.cursor for connection in reading)
        self._slowest = min((cursor for cursor in cursors if cursor >= tail), default=self._update_log.flushed)


def _rank(connection: Subscriber) -> int:
    state = connection.state
    if state is _LAGGING or state is _CLOSING:
        return URGENT
    return RETURNING if connection.subscription.filter is None else FILTERING
