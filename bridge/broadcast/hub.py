"""Who is connected, and what each has had: one log, many cursors.

A connection is *live* (it has had all that was flushed, and its transport is empty), *lagging* (its socket could not
take everything, or it resumes from earlier on: it reads on from the log, see `lagging`) or *waiting* (for an update
that it says it has had, and that is still to come here). What waits for a slow client is a position in the log, not a
copy: its transport holds the rest of one frame.

This file must never know what an update means, or how a frame reaches a socket.
"""

from collections.abc import Callable

from bridge.broadcast.catch_up import CATCH_UP_BYTES, CatchUp
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import text_frame
from bridge.broadcast.live_set import BroadcastWriter
from bridge.broadcast.replay import FilterInput, ReplayIndex, UpdateFilter
from bridge.broadcast.resume import Resume
from bridge.broadcast.subscriber import Subscriber
from bridge.broadcast.subscriptions import Batch, SharedSubscription, Subscriptions
from bridge.broadcast.update_log import ENTRY_BYTES
from bridge.broadcast.waiting import PendingResumes
from bridge.contract.filters import After
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics

FLUSH_BYTES = 65536
"""What one write to a connection may hold. Larger writes gain nothing: a frame costs the kernel more than the call."""

ENCRYPT_BYTES = 2**20
"""How much of larger updates is encrypted for all clients in the turn of the loop that brings it: 4 ms."""


class Hub:
    """Publishes updates to all connections. Few verbs: join, leave, publish, drain."""

    def __init__(
        self,
        history: ReplayIndex,
        metrics: Metrics,
        schedule: Callable[..., object],
        log_bytes: int,
        now_ms: Callable[[], int],
        *,
        reads_back: bool = False,
    ) -> None:
        """`schedule` is the event loop's `call_soon`; `log_bytes` the bound that the history's log was made with.

        `now_ms` is the clock (Unix milliseconds); `reads_back` says that what comes first, until `caught_up`, was sent
        before this bridge began: it fills the log, and nobody gets it but who resumes from there.
        """
        self._history = history
        self._log = log = history.log
        self._metrics = metrics
        self.schedule = schedule
        """Calls back in the next turn of the loop: for connections too, which then need to know no loop."""
        # Not more than the log can hold beside what is kept: nothing may fall off its tail before it was flushed.
        self._flush_bytes = min(FLUSH_BYTES, log_bytes // 4)
        self._flush_updates = log_bytes // 2 // ENTRY_BYTES
        self._subscriptions = Subscriptions(history)
        self._writer = BroadcastWriter()
        self._resuming = Resume(history, now_ms, self._on_resumed)
        self._lagging = CatchUp(history, self._resuming, schedule, self._arrived, self.leave)
        self._pending = PendingResumes(history, reads_back)
        self._releasing = False
        """True while some that need not wait any more begin in later turns."""
        self._pending_bytes = 0
        self._draining = False
        self._sent_bytes = 0
        """Bytes sent to live connections."""
        self.on_flush: Callable[[], None] = lambda: None
        """Called after each flush: all that was published before has been handed out."""
        self.is_fed: Callable[[], bool] = lambda: True
        """Whether anything can come at all."""
        assert log.head == 0

    def __len__(self) -> int:
        return sum(subscription.members for subscription in self._subscriptions)

    @property
    def lagging(self) -> int:
        """How many connections are behind."""
        return len(self._lagging)

    @property
    def sent_bytes(self) -> int:
        """Bytes of updates and own messages written to sockets, or handed to transports."""
        return self._sent_bytes + self._lagging.sent_bytes

    @property
    def logged_updates(self) -> int:
        """How many updates the log holds, without its other entries: own messages and ids without an update."""
        return self._history.count(None, self._log.tail, self._log.head)[0]

    @property
    def pending(self) -> int:
        """How many wait for the update that they have had."""
        return len(self._pending)

    @property
    def subscriptions(self) -> int:
        """How many different things clients have asked for, beside everything without ids."""
        return len(self._subscriptions)

    def join(
        self, connection: Subscriber, update_filter: UpdateFilter | None = None, after: After | None = None
    ) -> None:
        """Adds a connection: from now on, or where it asks for ids, from behind the one that it has had last."""
        connection.subscription = subscription = self._subscriptions.of(update_filter, ids=after is not None)
        subscription.members += 1
        if after is not None:
            if not self._pending.defer(connection, after):
                self._begin(connection, after)
        elif connection.congested:
            self._lagging.add(connection, self._lagging.flushed)
        else:
            subscription.live.add(connection)

    def leave(self, connection: Subscriber) -> None:
        """Forgets a connection that is closed or closing. What it has not had yet is dropped.

        To be called before its descriptor is closed: the next socket to be opened gets the same one.
        """
        self._lagging.forget(connection)
        subscription = connection.subscription
        if subscription is None:
            return
        subscription.live.discard(connection)
        subscription.members -= 1
        if not subscription.members:
            self._subscriptions.forget(subscription)
        # What a filter has not been asked about is nobody's yet.
        if self._lagging.discard(connection) and subscription.filter is None:
            self._metrics.dropped += self._history.count(None, connection.cursor, self._lagging.flushed)[0]
        self._resuming.forget(connection)
        self._pending.forget(connection)
        connection.subscription = None

    def finish(self, connection: Subscriber) -> bool:
        """Removes a connection that closes in the middle of a frame. It still receives the rest of this frame.

        Returns False if the log has dropped the frame: no close frame can follow then.
        """
        subscription = connection.subscription
        self.leave(connection)
        return subscription is not None and self._lagging.finish(connection, subscription)

    def publish(self, payload: bytes, content: FilterInput | None = None, update_id: UpdateId | None = None) -> None:
        """Adds an update (UTF-8 JSON) to the log; it leaves with the next `flush`, together with all others by then.

        `content` is what it holds, where that is at hand; `given` its id, where it comes with one.
        """
        frame = text_frame(payload)
        self._make_room(len(frame))
        self._history.append(frame, update_id, content if self._subscriptions else None)
        self._pending_bytes += len(frame)

    def record_id(self, update_id: UpdateId) -> None:
        """Notes an id of no update: nobody is sent it, but who has it from another bridge may resume after it."""
        self._make_room(0)
        self._history.record_id(update_id)

    def _make_room(self, size_bytes: int) -> None:
        """Flushes before what is not flushed yet could be dropped from the log."""
        unflushed = self._log.head - self._lagging.flushed
        if self._pending_bytes + size_bytes > self._flush_bytes or unflushed >= self._flush_updates:
            self.flush()

    def send_own_message(self, payload: bytes) -> None:
        """Sends something that is no update to those that asked for ids, in its place among the updates."""
        self.flush()
        self._history.append_own_message(payload)
        self.flush()

    def caught_up(self) -> None:
        """All that was sent before this bridge began is in the log: what follows is for everybody."""
        self.flush()
        self._pending.reads_back = False
        self._release_pending()

    def flush(self) -> None:
        """Gives every live connection all that was published since the last flush."""
        self._pending_bytes = 0
        log, lagging = self._log, self._lagging
        if self._pending.reads_back:
            lagging.flushed = log.head
            lagging.skip()
        while lagging.flushed < log.head:
            start = lagging.flushed
            frames, lagging.flushed = log.read(start, log.head, self._flush_bytes)
            batches, later = self._subscriptions.batches(start, lagging.flushed, frames)
            for group in batches:
                self._broadcast(group, start)
            for subscription in later:
                self._postpone(subscription, start)
        lagging.evict_too_slow()
        self._release_pending()
        self.on_flush()

    def _broadcast(self, group: Batch, start: int) -> None:
        lagging = self._lagging
        subscriptions, frames, positions, updates = group
        for connection, taken in self._writer.write([subscription.live for subscription in subscriptions], frames):
            assert connection.subscription is not None
            connection.subscription.live.discard(connection)
            lagging.add(connection, start)
            self._sent_bytes += taken
            lagging.on_partial_write(connection, positions, 0, taken)
        metrics = self._metrics
        for subscription in subscriptions:
            # The connections with a descriptor that are still live took all frames.
            self._sent_bytes += len(frames) * len(subscription.live.connections)
            if subscription.live.via_transport:
                self._encrypt(subscription, start, frames)
            metrics.written += len(subscription.live) * updates
            metrics.enqueued += subscription.lagging_count * updates

    def _encrypt(self, subscription: SharedSubscription, start: int, frames: bytes) -> None:
        lagging = self._lagging
        if len(frames) <= CATCH_UP_BYTES:
            connections = len(subscription.live.via_transport)
            failed = subscription.live.encrypt(frames)
            self._sent_bytes += len(frames) * (connections - len(failed))
            for connection, error in failed:
                lagging.fail(connection, error)
            return
        room_bytes = ENCRYPT_BYTES
        for connection in tuple(subscription.live.via_transport):
            subscription.live.discard(connection)
            lagging.add(connection, start)
            # The others get it in later turns: to encrypt it for hundreds of clients takes long.
            if len(frames) <= room_bytes:
                room_bytes -= len(frames)
                lagging.send_next(connection)
            else:
                lagging.schedule(connection)

    def _postpone(self, subscription: SharedSubscription, start: int) -> None:
        for connection in subscription.live:
            subscription.live.discard(connection)
            self._lagging.add(connection, start)
            self._lagging.schedule(connection)

    def congested(self, connection: Subscriber) -> None:
        """To be called when a connection's transport could not take everything: nothing may be written past it."""
        subscription = connection.subscription
        if subscription is not None and connection in subscription.live:
            subscription.live.discard(connection)
            self._lagging.add(connection, self._lagging.flushed)

    def drained(self, connection: Subscriber) -> None:
        """To be called when the transport of a congested connection is empty again."""
        self._lagging.schedule(connection)

    def tick(self) -> None:
        """To be called every few seconds: who waits in vain for what it says it has had is told that it is unknown."""
        self._pending.tick(self.is_fed())
        self._release_pending()

    def drain(self) -> None:
        """Closes every connection once it has had everything: now, or when it has caught up."""
        self.flush()
        self._draining = True
        for subscription in self._subscriptions:
            for connection in subscription.live:
                connection.close(CloseReason.STOPPING)
        # These have had nothing yet, and miss nothing.
        for connection in (*self._pending, *self._resuming):
            connection.close(CloseReason.STOPPING)

    def _begin(self, connection: Subscriber, after: After) -> None:
        assert connection.subscription is not None
        if self._lagging.flushed < self._log.head:
            # The cursor may follow the newest update, and `resume` counts from the cursor to the flushed position.
            self.flush()
        self._resuming.begin(connection, connection.subscription.filter, after, self._lagging.flushed)
        self._lagging.add(connection, connection.cursor, returning=True)
        if after.is_from_now_on:
            self._lagging.send_next(connection)
        else:
            self._lagging.schedule(connection)

    def _on_resumed(self, complete: bool, updates: int) -> None:
        self._metrics.resumes.labels(str(complete).lower()).inc()
        self._metrics.replayed += updates

    def _release_pending(self) -> None:
        if not self._releasing:
            self._release_some()

    def _release_some(self) -> None:
        ready = self._pending.ready()
        # Set before `_begin`, which may flush: that flush must not release further connections in this turn.
        self._releasing = bool(ready)
        if ready:
            self.schedule(self._release_some)
        for connection, after in ready:
            self._begin(connection, after)

    def _arrived(self, connection: Subscriber) -> None:
        assert connection.subscription is not None
        connection.subscription.live.add(connection)
        if self._draining:
            connection.close(CloseReason.STOPPING)
