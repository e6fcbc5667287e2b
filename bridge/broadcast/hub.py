"""The hub decides which connection gets which update, and when.

All connections share one log, and each connection has a cursor in this log.

The main methods of the hub are join, leave, publish and drain. The next flush sends a new update to all live
connections. All other connections read the update from the log, each from its own cursor. The module `subscriber`
defines the states of a connection and the table of transitions between the states. `Hub._dispatch` changes the states.
`_reset_illegal` handles an event that has no row in the table of transitions.

This module neither interprets updates nor writes to sockets.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Protocol

import structlog

from bridge.broadcast.catch_up import CATCH_UP_BYTES, CatchUp
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import text_frame
from bridge.broadcast.framing import Form
from bridge.broadcast.heartbeat import Heartbeats
from bridge.broadcast.hub_log import LOGGER
from bridge.broadcast.live_set import BroadcastWriter, LiveSet
from bridge.broadcast.replay import FilterInput, ReplayIndex
from bridge.broadcast.resume import Resume
from bridge.broadcast.subscriber import TRANSITIONS, Action, ConnectionEvent, State, Subscriber, Transition
from bridge.broadcast.subscriptions import Batch, Subscriptions
from bridge.broadcast.update_log import ENTRY_BYTES
from bridge.contract.filters import EVERYTHING, SubscribeRequest
from bridge.contract.update_id import UpdateId
from bridge.loop_turn import LoopTurn
from bridge.metrics import Metrics

_log = structlog.get_logger(LOGGER)

FLUSH_BYTES = 65536
"""The maximum size of one write to a connection, in bytes.

Larger writes would not be faster, because at this size the kernel already spends more time on the frames than on the
system call.
"""

TLS_FLUSH_BYTES = CATCH_UP_BYTES - 2048
"""The maximum size of one write to a connection with TLS, in bytes.

The transport holds all records that the socket does not take, so these records must not be larger than one piece. 2 KiB
are reserved for ids, because a connection with ids gets the same updates in larger frames.
"""


OWN_MESSAGE_BYTES = 512
"""More than the size of an own message in the log, in bytes."""

HEARTBEATS_PER_ROUND = 64
"""The number of heartbeats that are sent before the updates that wait. Sending these heartbeats takes less than 1 ms.

Without a minimum, connections with a rare filter would get no heartbeat while each flush begins before the last one has
ended."""


class FlushListener(Protocol):
    """An object that is called after each flush."""

    def on_flush(self, flushed: int) -> None:
        """Called at the end of each flush, and while a long flush has more to send.

        By then, all updates below the position `flushed` have been written to the live connections. The other
        connections read these updates from the log.
        """


class FlushListeners:
    """Calls several listeners, in order."""

    def __init__(self, *listeners: FlushListener) -> None:
        self._listeners = listeners

    def on_flush(self, flushed: int) -> None:
        """Called after each flush."""
        for listener in self._listeners:
            listener.on_flush(flushed)


class FlowControl(Protocol):
    """Controls how fast updates arrive."""

    def set_behind(self, behind: bool) -> None:
        """Called with True if too many updates wait for a flush, and with False when these updates are sent."""


class Source(Protocol):
    """The source of the updates."""

    @property
    def is_live(self) -> bool:
        """True if new updates arrive as soon as they are published."""

    @property
    def is_consuming(self) -> bool:
        """True if the source has a working broker."""


_Call = Callable[[Subscriber], None]

_Calls = tuple[_Call | None, State, tuple[_Call, ...]]
"""A compiled row of the table of transitions.

It contains the call that leaves the old state, the next state, and all further calls."""

# In Python 3.11, each access to an enum member runs Python code, which takes longer than the transition itself.
_CONGESTED, _DRAINED, _PARTIAL_WRITE = ConnectionEvent.CONGESTED, ConnectionEvent.DRAINED, ConnectionEvent.PARTIAL_WRITE
_LIVE = State.LIVE


class Trace(Protocol):
    """Observes the transitions and flushes of a hub."""

    def on_transition(self, connection: Subscriber, *, before: State, event: ConnectionEvent) -> None:
        """Called after a change of a connection's state. `before` is the previous state."""

    def on_flush(self, flushed: int, live: int) -> None:
        """Called after each flush, with the flushed position and the number of connections that are live now."""


class Hub:
    """Publishes updates to all connections."""

    def __init__(
        self,
        index: ReplayIndex,
        metrics: Metrics,
        schedule: Callable[..., object],
        call_later: Callable[[float, Callable[[], None]], object],
        time: Callable[[], float],
        now_ms: Callable[[], int],
        flush_listener: FlushListener,
        source: Source,
        turn: LoopTurn,
        flow_control: FlowControl,
        *,
        heartbeat_s: float,
        flush_bytes: int = FLUSH_BYTES,
        replaying: bool = False,
        trace: Trace | None = None,
    ) -> None:
        """`flush_bytes` is the maximum size of one write to a connection, except that a single frame may be larger.

        `schedule`, `call_later` and `time` are the event loop's `call_soon`, `call_later` and `time`. `now_ms` returns
        the time in Unix milliseconds. `heartbeat_s` is the interval of heartbeats in seconds, or 0 for none.

        If `replaying` is True, all updates that arrive before `end_replay` is called are older than the bridge's start.
        These replayed updates fill the log, and only clients that resume get them.
        """
        self._index = index
        self._update_log = log = index.update_log
        self._metrics = metrics
        self.schedule = schedule
        """Calls a function in the next turn of the loop. Connections also call `schedule`, so that they need no
        reference to the loop."""
        self._turn = turn
        self._after_flush = flush_listener.on_flush
        if trace is not None:
            self._after_flush = partial(self._trace_flush, trace, flush_listener)
        self._source = source
        self._flow_control = flow_control
        self._behind = False
        """Whether `flow_control` was told that too many updates wait."""
        # These limits ensure that no frame falls off the tail of the log before it is flushed.
        self._flush_bytes = min(flush_bytes, log.max_bytes // 4)
        self._flush_updates = log.max_bytes // 2 // ENTRY_BYTES
        self._unflushed_bytes = 0
        """The size of the frames, of updates and own messages, that no round has begun to send."""
        self._round_bytes = 0
        """The size of the frames, or of the own message, of the current round."""
        self._flushing: Iterator[None] | None = None
        """The steps of the current flush, or None if there is no flush."""
        self._on_stopped: Callable[[], None] | None = None
        """Set by `drain`, until all updates are flushed."""
        self._subscriptions = Subscriptions(index)
        self._writer = BroadcastWriter()
        self._resume = Resume(
            index,
            now_ms,
            schedule,
            self._dispatch,
            self.flush,
            self._on_resumed,
            self._fail,
            replaying=replaying,
        )
        self._time = time
        self._heartbeats = heartbeats = Heartbeats(
            index,
            self._subscriptions,
            heartbeat_s,
            lambda: source.is_consuming,
            now_ms,
            time,
            call_later,
            self.flush,
        )
        self._catch_up = catch_up = CatchUp(
            index, self._resume, schedule, call_later, time, self._dispatch, turn, heartbeats
        )
        self._stopping = False
        self._sent_bytes = dict.fromkeys(Form, 0)
        """The number of bytes sent to live connections, by form."""
        self._leave: Mapping[State, _Call] = {
            State.PENDING: self._resume.pending.forget,
            State.RESUMING: catch_up.discard_resuming,
            State.CATCHING_UP: catch_up.discard_catching_up,
            State.LIVE: self._discard_live,
            State.LAGGING: catch_up.discard_lagging,
            State.CLOSING: catch_up.discard_closing,
        }
        """For each state, the method that removes a connection from the collection of connections in this state."""
        self._table = self._compile(trace)
        assert log.head == 0

    # Numbers

    def __len__(self) -> int:
        return sum(subscription.connections for subscription in self._subscriptions)

    def connections_in(self, form: Form) -> int:
        """Returns the number of connections that receive updates in a form."""
        return sum(subscription.connections for subscription in self._subscriptions if subscription.form is form)

    @property
    def lagging(self) -> int:
        """The number of connections that still lack some updates (in the states RESUMING, CATCHING_UP and LAGGING)."""
        return len(self._resume) + len(self._catch_up.catching_up) + len(self._catch_up.lagging)

    def lagging_in(self, form: Form) -> int:
        """Returns the number of connections that still lack some updates, of those that receive updates in a form."""
        catch_up = self._catch_up
        lagging = chain(self._resume, catch_up.catching_up, catch_up.lagging)
        return sum(connection.subscription.form is form for connection in lagging)

    @property
    def pending(self) -> int:
        """The number of connections that wait for an update before they resume."""
        return len(self._resume.pending)

    @property
    def replaying(self) -> bool:
        """Whether the bridge is still reading back the stream."""
        return self._resume.pending.replaying

    @property
    def subscriptions(self) -> int:
        """The number of subscriptions in use, apart from the default subscription."""
        return len(self._subscriptions)

    @property
    def sent_bytes(self) -> int:
        """The number of bytes (updates and own messages) that were written to sockets or handed to transports."""
        return sum(map(self.sent_bytes_in, Form))

    def sent_bytes_in(self, form: Form) -> int:
        """Returns the number of bytes in a form that were written to sockets or handed to transports."""
        return self._sent_bytes[form] + self._catch_up.sent_bytes[form]

    @property
    def newest_id(self) -> UpdateId:
        """The id of the newest entry of the log."""
        return self._index.before(self._update_log.head)

    @property
    def head(self) -> int:
        """The position in the log of the next update."""
        return self._update_log.head

    @property
    def logged_updates(self) -> int:
        """The number of updates in the log. The bridge's own messages and ids without an update are not counted."""
        return self._index.count(None, self._update_log.tail, self._update_log.head)[0]

    # Connections

    def join(self, connection: Subscriber, request: SubscribeRequest = EVERYTHING, form: Form = Form.TEXT) -> None:
        """Adds a connection that asks for updates in a form.

        If the form has ids, `request.after` may also be None, which means from now on.
        """
        if connection.state is State.NEW:
            connection.subscription = self._subscriptions.join(request.filter, form)
            must_hold = self._catch_up.join_storm.on_join()
            if form.has_ids or request.last is not None:
                self._resume.start(connection, request)
                return
            if must_hold:
                connection.cursor = self._update_log.flushed
                self._dispatch(connection, ConnectionEvent.HOLD)
                return
        # If the connection has already joined, this event resets the connection, because the table has no row for a
        # second join.
        self._dispatch(connection, ConnectionEvent.JOIN)
        if connection.congested:
            self._dispatch(connection, _CONGESTED)

    def closing(self, connection: Subscriber) -> None:
        """Stops the updates of a connection, because its closing handshake begins.

        If only a part of a frame was sent, the hub still sends the rest, and then calls `frame_ended`. If the log has
        already dropped the rest of the frame, no close frame can follow, and the hub resets the connection.
        """
        self._dispatch(connection, ConnectionEvent.CLOSE)

    def leave(self, connection: Subscriber) -> None:
        """Forgets a connection.

        Must be called before the connection's descriptor is closed, because the next socket may get the same
        descriptor.
        """
        self._dispatch(connection, ConnectionEvent.LEAVE)

    def congested(self, connection: Subscriber) -> None:
        """Tells the hub that a connection's transport still holds bytes.

        Until the transport is empty, nothing may be written to the socket directly.
        """
        self._dispatch(connection, _CONGESTED)

    def drained(self, connection: Subscriber) -> None:
        """Tells the hub that the transport of a congested connection is empty again."""
        self._dispatch(connection, _DRAINED)

    def drain(self, on_stopped: Callable[[], None]) -> None:
        """Closes all connections: at once if they have all updates, otherwise as soon as they have caught up.

        Closing many connections takes several turns of the loop. Calls `on_stopped` when all connections that have all
        updates are closed.
        """
        self._on_stopped = on_stopped
        self._catch_up.join_storm.end()
        self.flush()

    def _connections(self) -> Iterator[Subscriber]:
        live = chain.from_iterable(subscription.live for subscription in self._subscriptions)
        catch_up = self._catch_up
        return chain(live, self._resume.pending, self._resume, catch_up.catching_up, catch_up.lagging)

    # Updates

    def publish(
        self, payload: bytes, filter_input: FilterInput | None = None, update_id: UpdateId | None = None
    ) -> None:
        """Adds an update (UTF-8 JSON) to the log. The next `flush` sends the update.

        `filter_input` contains the update's type and data, if the caller has them. `update_id` is the update's id. The
        id is None if the source of the updates assigns no ids.
        """
        frame = text_frame(payload)
        self._make_room(len(frame))
        self._index.append(frame, update_id, filter_input if self._subscriptions else None)
        self._unflushed_bytes += len(frame)

    def record_id(self, update_id: UpdateId) -> None:
        """Records in the log an id that belongs to no update.

        A client that got this id from another instance of the bridge can then resume after the id.
        """
        self._make_room(0)
        self._index.record_id(update_id)

    def _make_room(self, size_bytes: int) -> None:
        """Flushes the log if the log might otherwise drop a frame before the frame is flushed."""
        log = self._update_log
        # If the current flush has more to send, new updates wait in the log. If the waiting updates fill a quarter of
        # the log, the source pauses.
        if self._flushing is not None and self._waiting_bytes + size_bytes > log.max_bytes // 4:
            self._set_behind(True)
        unflushed_bytes, unflushed = self._unflushed_bytes + size_bytes, log.head - log.flushed
        if unflushed_bytes > self._flush_bytes or unflushed >= self._flush_updates:
            self.flush()
        # If the waiting updates fill half of the log nevertheless, they are sent in this turn, however long the turn
        # gets. Otherwise, frames would fall off the log, and healthy clients would lose these frames.
        while self._flushing is not None and self._waiting_bytes + size_bytes > log.max_bytes // 2:
            next(self._flushing, None)

    @property
    def _waiting_bytes(self) -> int:
        """The memory that the log takes for the updates that the current flush has not sent to all connections."""
        log = self._update_log
        entries = log.head - log.flush_start
        return self._round_bytes + self._unflushed_bytes + ENTRY_BYTES * (entries + 1)

    def _set_behind(self, behind: bool) -> None:
        if behind != self._behind:
            self._behind = behind
            self._flow_control.set_behind(behind)

    def send_own_message(self, encode: Callable[[str], bytes], update_id: UpdateId | None = None) -> None:
        """Sends one of the bridge's own messages to the connections that get ids.

        `encode` returns the message (UTF-8 JSON) with a given id. The message keeps its place among the updates.
        `update_id` has the same meaning as in `ReplayIndex.append_own_message`.
        """
        self._make_room(OWN_MESSAGE_BYTES)
        self.flush()
        self._unflushed_bytes += self._index.append_own_message(encode, update_id)
        self.flush()

    def end_replay(self) -> None:
        """Ends the replay of updates that are older than the bridge's start.

        From now on, each new update goes to all connections.
        """
        self.flush()
        self._resume.end_replay()

    def tick(self) -> None:
        """Call `tick` every few seconds.

        `tick` ends the wait of each connection that has waited for an update since the last tick.
        """
        self._resume.tick(self._source.is_live)

    # The flush

    def flush(self) -> None:
        """Sends all live connections the updates that were published since the last flush.

        A flush to many connections takes several turns of the loop. Updates that are published meanwhile are sent after
        this flush, in the same way.
        """
        if self._flushing is None:
            self._flushing = self._flush_steps()
            self._turn.spread(self._flushing)

    def _flush_steps(self) -> Iterator[None]:
        """Flushes the log in rounds. In each round, all live connections get the same piece of the log."""
        log, catch_up = self._update_log, self._catch_up
        try:
            if self._resume.pending.replaying:
                log.skip()
                self._unflushed_bytes = 0
                catch_up.skip_flushed()
            while True:
                if log.flushed < log.head:
                    try:
                        yield from self._round()
                    except Exception:
                        _log.exception("flush failed; resetting the unserved connections")
                        self._reset_unserved()
                    self._round_bytes = 0
                catch_up.evict_too_slow()
                self._resume.release()
                self._after_flush(log.flushed)
                yield from self._send_heartbeats()
                if log.flushed < log.head:
                    yield
                    continue
                if self._on_stopped is None:
                    return
                on_stopped, self._on_stopped = self._on_stopped, None
                try:
                    yield from self._stop_steps()
                finally:
                    on_stopped()
        except Exception:
            # `drain` must not wait for a flush that has failed.
            if self._on_stopped is not None:
                on_stopped, self._on_stopped = self._on_stopped, None
                on_stopped()
            raise
        finally:
            self._flushing = None
            self._set_behind(False)

    def _round(self) -> Iterator[None]:
        log, metrics, catch_up = self._update_log, self._metrics, self._catch_up
        yield from catch_up.before_flush(self._unflushed_bytes + ENTRY_BYTES * (log.head - log.flushed))
        frames = log.flush(self._index.run_end(log.flushed), self._flush_bytes)
        # An own message is flushed alone, and its place among the frames is empty.
        self._round_bytes = len(frames) or len(self._index.own_message_at(log.flush_start))
        self._unflushed_bytes -= self._round_bytes
        try:
            batches, later = self._subscriptions.batches(log.flush_start, log.flushed, frames)
        except Exception:
            # The frames count as flushed, but no live connection has been sent them.
            for subscription in self._subscriptions:
                subscription.live.begin_round(0)
            raise
        now_s = self._time()
        for batch in batches:
            for subscription in batch.subscriptions:
                subscription.sent_at = now_s
                subscription.live.begin_round(batch.updates)
                metrics.enqueued += subscription.lagging_count * batch.updates
        for subscription in later:
            subscription.live.begin_round(0)
        for number, batch in enumerate(batches):
            if number:
                yield
            yield from self._broadcast(batch)
        for subscription in later:
            for members in (subscription.live.sockets, subscription.live.tls_sockets):
                while (connection := members.next_unserved) is not None:
                    self._dispatch(connection, ConnectionEvent.POSTPONED)
                    catch_up.schedule(connection)
                    yield

    def _send_heartbeats(self) -> Iterator[None]:
        """Sends the heartbeats that are due, or only some of them if updates wait for the next round."""
        log, sent = self._update_log, 0
        while (connection := self._heartbeats.next_due()) is not None:
            self._catch_up.send_heartbeat(connection)
            sent += 1
            yield
            if sent >= HEARTBEATS_PER_ROUND and log.flushed < log.head:
                return

    def _trace_flush(self, trace: Trace, flush_listener: FlushListener, flushed: int) -> None:
        live = sum(len(subscription.live) for subscription in self._subscriptions)
        trace.on_flush(flushed, live)
        flush_listener.on_flush(flushed)

    def _broadcast(self, batch: Batch) -> Iterator[None]:
        subscriptions, frames, positions, updates = batch
        metrics = self._metrics
        lives = [subscription.live for subscription in subscriptions]
        form = subscriptions[0].form
        for sockets, short, more in self._writer.write(lives, frames):
            complete = sockets - len(short)
            self._sent_bytes[form] += len(frames) * complete
            metrics.written += complete * updates
            metrics.enqueued += len(short) * updates
            for connection, taken in short:
                self._dispatch(connection, _PARTIAL_WRITE)
                self._sent_bytes[form] += taken
                try:
                    self._catch_up.on_partial_write(connection, positions, 0, taken)
                except Exception:  # an error of one connection must not affect other connections
                    _log.exception("connection reset after a failed write", peer=connection.peer)
                    self._drop(connection)
            if more:
                yield
        for live in lives:
            if live.tls_sockets.connections:
                yield from self._encrypt(live, frames, updates, form)

    def _reset_unserved(self) -> None:
        """Resets the connections that have not been sent the frames of the current round. Their clients resume."""
        for subscription in self._subscriptions:
            for members in (subscription.live.sockets, subscription.live.tls_sockets):
                while (connection := members.next_unserved) is not None:
                    self._drop(connection)

    def _drop(self, connection: Subscriber) -> None:
        """Ends a connection without a close frame, which could become a part of another frame."""
        self._dispatch(connection, ConnectionEvent.LEAVE)
        with suppress(Exception):
            connection.reset()

    def _encrypt(self, live: LiveSet[Subscriber], frames: bytes, updates: int, form: Form) -> Iterator[None]:
        catch_up, members, metrics = self._catch_up, live.tls_sockets, self._metrics
        if len(frames) > CATCH_UP_BYTES:
            # A transport must not hold more than one piece, so these frames are sent in pieces.
            while (connection := members.next_unserved) is not None:
                self._dispatch(connection, ConnectionEvent.POSTPONED)
                catch_up.send_next(connection)
                if connection.state is _LIVE:
                    metrics.enqueued -= updates
                    metrics.written += updates
                yield
            return
        while members.next_unserved is not None:
            already = members.served
            connections, failed = self._writer.encrypt(live, frames)
            self._sent_bytes[form] += len(frames) * (connections - len(failed))
            for connection, error in failed:
                catch_up.fail(connection, error)
            # Only connections whose transports sent all frames are still in the set.
            complete = members.served - already
            metrics.written += complete * updates
            metrics.enqueued += (connections - complete - len(failed)) * updates
            if members.next_unserved is not None:
                yield

    def _stop_steps(self) -> Iterator[None]:
        self._stopping = True
        yield from self._catch_up.send_held()
        for connection in tuple(self._connections()):
            # The connection may have ended during an earlier step.
            if connection.state in _JOINED:
                self._dispatch(connection, ConnectionEvent.STOP)
                yield

    # Transitions

    def _compile(self, trace: Trace | None) -> Mapping[State, Mapping[ConnectionEvent, _Calls]]:
        """Returns the table of transitions, with the functions to call in place of the actions.

        If `trace` is None, tracing takes no time.
        """
        catch_up = self._catch_up
        enter: Mapping[State, _Call] = {
            State.CATCHING_UP: catch_up.add_catching_up,
            State.LIVE: _add_live,
            State.LAGGING: catch_up.add_lagging,
        }
        actions: Mapping[Action, _Call] = {
            Action.SEND: catch_up.send_next,
            Action.SCHEDULE: catch_up.schedule,
            Action.HOLD: catch_up.hold,
            Action.CLOSE_STOPPING: self._close_stopping,
            Action.CLOSE_IF_STOPPING: self._close_if_stopping,
            Action.CLOSE_TOO_SLOW: self._close_too_slow,
            Action.COUNT_DROPPED: self._count_dropped,
            Action.UNSUBSCRIBE: self._unsubscribe,
            Action.FINISH_FRAME: catch_up.finish_frame,
            Action.RESET: _reset,
        }

        def calls(before: State, event: ConnectionEvent, step: Transition) -> _Calls:
            acted = [actions[each] for each in step.actions]
            if step.to is before:
                return None, before, tuple(acted)
            entered = [enter[step.to]] if step.to in enter else []
            traced = [] if trace is None else [partial(trace.on_transition, before=before, event=event)]
            return self._leave.get(before), step.to, (*entered, *traced, *acted)

        return {
            before: {event: calls(before, event, step) for event, step in steps.items()}
            for before, steps in TRANSITIONS.items()
        }

    def _dispatch(self, connection: Subscriber, event: ConnectionEvent) -> None:
        """Makes the transition of a connection, and carries out the actions of this transition."""
        try:
            leave, state, calls = self._table[connection.state][event]
        except KeyError:
            self._reset_illegal(connection, event)
            return
        if leave is not None:
            leave(connection)
        connection.state = state
        for call in calls:
            call(connection)

    def _reset_illegal(self, connection: Subscriber, event: ConnectionEvent) -> None:
        """Resets a single connection after a fault of the bridge, so that other connections are not affected."""
        state = connection.state
        _log.error(
            "connection reset after an event that is illegal in its state",
            peer=connection.peer,
            state=state.name.lower(),
            cause=event.name.lower(),
        )
        if (leave := self._leave.get(state)) is not None:
            leave(connection)
        connection.state = State.CLOSED
        if state in _JOINED:
            self._unsubscribe(connection)
        with suppress(Exception):
            connection.reset()

    # Actions

    def _discard_live(self, connection: Subscriber) -> None:
        live = connection.subscription.live
        if live.discard(connection):
            connection.cursor = self._update_log.flushed
        else:
            connection.cursor = self._update_log.flush_start
            self._metrics.enqueued += live.round_updates

    def _close_stopping(self, connection: Subscriber) -> None:
        connection.close(CloseReason.STOPPING)

    def _close_if_stopping(self, connection: Subscriber) -> None:
        if self._stopping:
            connection.close(CloseReason.STOPPING)

    def _close_too_slow(self, connection: Subscriber) -> None:
        connection.close(CloseReason.TOO_SLOW, updates_behind=self._update_log.flushed - connection.cursor)

    def _count_dropped(self, connection: Subscriber) -> None:
        # If the connection has a filter, the bridge does not know which updates the connection would have received.
        if connection.subscription.filter is None and connection.cursor < self._update_log.flushed:
            self._metrics.dropped += self._index.count(None, connection.cursor, self._update_log.flushed)[0]

    def _unsubscribe(self, connection: Subscriber) -> None:
        self._subscriptions.leave(connection.subscription)

    def _fail(self, connection: Subscriber, error: Exception) -> None:
        self._catch_up.fail(connection, error)

    def _on_resumed(self, connection: Subscriber, complete: bool, updates: int) -> None:
        if connection.subscription.form.has_ids:
            self._metrics.resumes.labels(str(complete).lower()).inc()
        self._metrics.replayed += updates


_JOINED = frozenset({State.PENDING, State.RESUMING, State.CATCHING_UP, State.LIVE, State.LAGGING})


def _add_live(connection: Subscriber) -> None:
    connection.subscription.live.add(connection)


def _reset(connection: Subscriber) -> None:
    connection.reset()
