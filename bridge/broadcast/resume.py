"""Starts connections that ask for ids or for a backlog: finds their positions, and makes their `resume` messages.

1. `Resume.start` decides whether the client must wait. If a client's last update came from another instance, the
   client waits until this update arrives here too (`PendingResumes`). While the bridge itself is reading back the
   stream, all clients wait.
2. `Resume._begin` finds the position at which the replay starts. The replay starts after the client's last update, or
   at the head of the log if the client wants only new updates. If the client's id is unknown, the replay starts at the
   oldest update that will not be dropped soon.
3. `Resume.next_message` first searches for the newest updates if the client asked for their number (`last`). It then
   counts the updates to replay. Both take many turns of the event loop if a filter must be applied to each update. At
   the end, `next_message` returns the `resume` message.
4. `CatchUp` sends the `resume` message, and then the frames of the log from the start of the replay to the log's head.
   After these frames, it sends a heartbeat, and the connection is live.

Clients without ids get neither a `resume` message nor a heartbeat.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bridge.broadcast.newest_search import NewestSearch
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.subscriber import ConnectionEvent, Dispatch, Subscriber
from bridge.contract.envelope import resume
from bridge.contract.filters import EARLIEST, FROM_NOW_ON, SubscribeRequest
from bridge.contract.update_id import UpdateId

MAX_RELEASES_PER_TURN = 64
"""The maximum number of pending connections that are started in one turn of the event loop."""


@dataclass(slots=True)
class _Count:
    """The number of updates to replay to one connection, as counted so far."""

    after_id: bool
    """Whether the client asked for the updates after an id."""
    complete: bool
    """False if the client asked for the updates after an id, and will miss some of these updates."""
    search: NewestSearch | None
    """The search for the first update to replay, or None if this update is known."""
    counted: int
    """The position up to which updates are counted."""
    updates: int = 0
    overtaken: bool = False
    """Whether the log dropped the first of the updates to replay before the `resume` message was sent."""


class Resume:
    """The connections that have asked for ids or for a backlog, until the position of their first update is known."""

    def __init__(
        self,
        index: ReplayIndex,
        now_ms: Callable[[], int],
        schedule: Callable[..., object],
        dispatch: Dispatch,
        flush: Callable[[], None],
        on_resumed: Callable[[Subscriber, bool, int], None],
        fail: Callable[[Subscriber, Exception], None],
        *,
        replaying: bool = False,
    ) -> None:
        """`schedule` is the event loop's `call_soon`, and `now_ms` is a clock in Unix milliseconds.

        `flush` flushes the hub's log. `on_resumed` is called with each connection whose updates are counted, with
        whether its replay is complete, and with the number of updates to replay. `fail` closes a connection after an
        error.
        """
        self._index = index
        self._update_log = index.update_log
        self._now_ms = now_ms
        self._schedule = schedule
        self._dispatch = dispatch
        self._flush = flush
        self._on_resumed = on_resumed
        self._fail = fail
        self.pending = PendingResumes(index, replaying)
        self._resuming: dict[Subscriber, _Count] = {}
        self._releasing = False
        """Whether more pending connections will be started in a later turn of the event loop."""

    def __len__(self) -> int:
        """The number of connections in the state RESUMING."""
        return len(self._resuming)

    def __iter__(self) -> Iterator[Subscriber]:
        """Iterates over a copy of the connections."""
        return iter(tuple(self._resuming))

    def start(self, connection: Subscriber, request: SubscribeRequest) -> None:
        """Finds the position of a new connection, or makes the connection wait."""
        self._flush_all()
        if self.pending.defer(connection, request):
            self._dispatch(connection, ConnectionEvent.DEFER)
        else:
            self._begin(connection, request)

    def forget(self, connection: Subscriber) -> None:
        """Removes a connection that is no longer RESUMING."""
        self._resuming.pop(connection, None)

    # The wait

    def end_replay(self) -> None:
        """Call this method when the bridge has read back the stream.

        After the call, connections no longer wait for the bridge to read back the stream.
        """
        self.pending.end_replay()
        self.release()

    def tick(self, source_is_live: bool) -> None:
        """Ends the wait for each update that was already awaited at the last tick and has still not arrived.

        Call this method every few seconds.
        """
        self._flush_all()
        self.pending.tick(source_is_live)
        self.release()

    def release(self) -> None:
        """Starts some of the connections that no longer need to wait, and schedules the rest for later turns."""
        if self.pending.waits and not self._releasing:
            self._release_some()

    def _release_some(self) -> None:
        ready = self.pending.ready()
        # `_releasing` is set before `_begin` is called, because `_begin` may flush, and a flush must not release
        # further connections in this turn of the event loop.
        self._releasing = bool(ready)
        if ready:
            self._schedule(self._release_some)
        for connection, request in ready:
            try:
                self._begin(connection, request)
            except Exception as error:  # the others no longer wait, so nothing else would start them
                self._fail(connection, error)

    def _flush_all(self) -> None:
        # Updates are counted from the cursor to the flushed position. The cursor may be the head of the log, so the log
        # is flushed first. A flush to many connections ends in a later turn.
        if self._update_log.flushed < self._update_log.head:
            self._flush()

    # The position

    def _begin(self, connection: Subscriber, request: SubscribeRequest) -> None:
        flushed, after = self._update_log.flushed, request.after
        after_id = after is not None and after not in (FROM_NOW_ON, EARLIEST)
        position = self._index.after(after.id) if after is not None and after.id is not None else None
        known = position is not None
        search = None
        if position is None:
            if request.last is not None:
                search = NewestSearch(self._index, request.filter, request.last, flushed)
            position = self._oldest() if search is None and (after_id or after == EARLIEST) else flushed
        # The cursor must not be after the flushed position, because the client would then miss the next updates.
        connection.cursor = min(position, flushed)
        connection.offset = 0
        self._resuming[connection] = _Count(after_id, known or not after_id, search, connection.cursor)
        from_now_on = not after_id and search is None and after != EARLIEST
        self._dispatch(connection, ConnectionEvent.START if from_now_on else ConnectionEvent.RESUME)

    def _oldest(self) -> int:
        # If the position were after the flushed position, the number of replayed updates would be negative.
        return min(self._index.oldest, self._update_log.flushed)

    # The resume message

    def next_message(self, connection: Subscriber) -> bytes | None:
        """Continues to search and to count updates. Returns None if this is not complete yet.

        At the end, returns the frame of the `resume` message, or empty bytes if the client gets no ids.

        If a filter must be applied, one call applies it to the updates of at most two segments.
        """
        count, index, log = self._resuming[connection], self._index, self._update_log
        flushed = log.flushed
        if (search := count.search) is not None:
            if not search.step():
                return None
            count.search = None
            connection.cursor = count.counted = search.position
        if connection.cursor < log.tail:
            # If the log drops uncounted updates a second time, the client gets only updates from now on, because
            # counting might otherwise never end.
            count.complete, count.updates = not count.after_id, 0
            connection.cursor = count.counted = flushed if count.overtaken else self._oldest()
            count.overtaken = True
        subscription = connection.subscription
        updates, count.counted = index.count(subscription.filter, count.counted, flushed)
        count.updates += updates
        if count.counted < flushed:
            return None
        if not count.updates and not index.has_own_message(connection.cursor, flushed):
            # There is nothing to replay. The client gets a newer id, so that fewer updates must be counted at its next
            # resume.
            connection.cursor = flushed
        self._on_resumed(connection, count.complete, count.updates)
        if not subscription.form.has_ids:
            return b""
        after = str(index.before(connection.cursor))
        return subscription.form.own_message(resume(count.complete, count.updates, after, self._now_ms()), after)


@dataclass(slots=True)
class _Wait:
    """The reason why a connection waits."""

    request: SubscribeRequest
    awaited: UpdateId | None
    """The update for which the connection waits, or None if it only waits until the bridge has read back the stream."""
    ticked: bool = False
    """Whether the connection waited at the last tick."""
    expired: bool = False
    """Whether the connection no longer waits for the arrival of the update, but only for its flush."""


class PendingResumes:
    """The connections in the state PENDING. These connections wait for updates that another instance has already sent.

    No connection waits forever. If an awaited update does not arrive while the source is live, its id counts as
    unknown.
    """

    def __init__(self, index: ReplayIndex, replaying: bool) -> None:
        """With `replaying`, all connections must wait until `end_replay` is called."""
        self._index = index
        self.replaying = replaying
        """Whether the bridge is still reading back the stream. Other classes must not change `replaying`."""
        self.waits: dict[Subscriber, _Wait] = {}
        """The reason why each pending connection waits. Other classes must not change `waits`."""
        self._next_sequence = 0
        """A lower bound for the sequence numbers of the awaited updates.

        The connections are searched only after the log has reached this sequence number.
        """

    def __len__(self) -> int:
        return len(self.waits)

    def __iter__(self) -> Iterator[Subscriber]:
        """Iterates over a copy of the connections."""
        return iter(tuple(self.waits))

    def end_replay(self) -> None:
        """Call this method when the bridge has read back the stream.

        After the call, connections no longer wait for the bridge to read back the stream.
        """
        self.replaying = False

    def defer(self, connection: Subscriber, request: SubscribeRequest) -> bool:
        """Adds a connection if it must wait. Returns whether the connection must wait."""
        awaited = None if request.after is None else request.after.id
        sequence = None if awaited is None else self._awaited_sequence(awaited)
        if sequence is None:
            if not self.replaying:
                return False
            sequence = 0
        self._next_sequence = min(self._next_sequence, sequence) if self.waits else sequence
        self.waits[connection] = _Wait(request, awaited)
        return True

    def _awaited_sequence(self, awaited: UpdateId) -> int | None:
        """Returns the sequence number that the log must reach before an update is flushed, or None if it is flushed."""
        index = self._index
        if index.is_ahead(awaited):
            return awaited.sequence
        log = index.update_log
        is_flushed = log.flushed == log.head or (index.after(awaited) or 0) <= log.flushed
        return None if is_flushed else 0

    def forget(self, connection: Subscriber) -> None:
        """Removes a connection if it is waiting."""
        self.waits.pop(connection, None)

    def ready(self) -> list[tuple[Subscriber, SubscribeRequest]]:
        """Removes and returns some of the connections that no longer need to wait, each with its request."""
        if not self.waits or self.replaying or self._index.newest_sequence < self._next_sequence:
            return []
        ready: list[tuple[Subscriber, SubscribeRequest]] = []
        next_sequence: int | None = None
        for connection, wait in self.waits.items():
            waits = wait.awaited is not None and not (wait.expired and self._index.is_ahead(wait.awaited))
            sequence = self._awaited_sequence(wait.awaited) if waits and wait.awaited is not None else None
            if sequence is not None:
                next_sequence = sequence if next_sequence is None else min(next_sequence, sequence)
                continue
            ready.append((connection, wait.request))
            if len(ready) == MAX_RELEASES_PER_TURN:
                # More connections may be ready, so the next call searches again.
                break
        else:
            self._next_sequence = next_sequence or 0
        for connection, _ in ready:
            del self.waits[connection]
        return ready

    def tick(self, source_is_live: bool) -> None:
        """Ends the wait of each connection that was already waiting at the last tick.

        Only ticks at which the source is live count.
        """
        counts = source_is_live and not self.replaying
        for wait in self.waits.values():
            if counts and wait.ticked:
                wait.expired = True
                self._next_sequence = 0
            wait.ticked = counts
