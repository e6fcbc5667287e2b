"""Sends heartbeats to live connections with ids.

A heartbeat says that the connection has received everything up to an id. A client whose filter rarely matches therefore
knows a recent id, and a client that gets nothing can tell a quiet bridge from a dead connection.

A connection gets a heartbeat when its replay has reached the head of the log, and after an interval in which it got
neither an update nor an own message. The hub sends the due heartbeats between two rounds of a flush. At that time, all
live connections have received everything that is flushed.
"""

from collections.abc import Callable, Iterable, Iterator

from bridge.broadcast.framing import Form
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.subscriber import State, Subscriber, Subscription
from bridge.contract import envelope

CHECKS = 10
"""The number of checks in an interval, unless they would be more than `MAX_CHECK_INTERVAL_S` apart."""

MAX_CHECK_INTERVAL_S = 1.0
"""The maximum time between two checks, in seconds. A heartbeat is at most this late."""

# In Python 3.11, each access to an enum member runs Python code.
_LIVE = State.LIVE


class Heartbeats:
    """Knows which live connections are due for a heartbeat, and encodes heartbeats."""

    def __init__(
        self,
        index: ReplayIndex,
        subscriptions: Iterable[Subscription],
        interval_s: float,
        is_consuming: Callable[[], bool],
        now_ms: Callable[[], int],
        time: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
        flush: Callable[[], None],
    ) -> None:
        """If `interval_s` is 0, only the end of a replay causes a heartbeat.

        `subscriptions` iterates over a copy. `time` and `call_later` are methods of the event loop. `flush` flushes the
        hub, which then sends the due heartbeats.
        """
        self._index = index
        self._subscriptions = subscriptions
        self._interval_s = interval_s
        self._is_consuming = is_consuming
        self._now_ms = now_ms
        self._time = time
        self._call_later = call_later
        self._flush = flush
        self._is_watching = False
        """Whether the next check is scheduled."""
        self._due: Iterator[Subscriber] = iter(())
        """The connections that the last check has still to find."""

    def frame(self, form: Form) -> bytes:
        """Returns a heartbeat for a connection that has received everything that is flushed."""
        newest = str(self._index.before(self._index.update_log.flushed))
        return form.own_message(envelope.heartbeat(newest, self._is_consuming(), self._now_ms()), newest)

    def watch(self) -> None:
        """Must be called when a connection with ids becomes live for the first time. Schedules the checks."""
        if self._interval_s and not self._is_watching:
            self._is_watching = True
            self._call_later(min(self._interval_s / CHECKS, MAX_CHECK_INTERVAL_S), self._check)

    def next_due(self) -> Subscriber | None:
        """Returns a live connection that is due, or None if there is no other. Call this only between two rounds."""
        return next(self._due, None)

    def _check(self) -> None:
        self._is_watching = False
        if any(subscription.form.has_ids for subscription in self._subscriptions):
            self._due = self._search()
            # A flush that fails must not end the checks.
            self.watch()
            self._flush()

    def _search(self) -> Iterator[Subscriber]:
        """Yields the connections that are due. The search may take several turns of the event loop."""
        interval_s = self._interval_s
        for subscription in self._subscriptions:
            now_s = self._time()
            if not subscription.form.has_ids or now_s < subscription.heartbeat_at:
                continue
            # A lagging connection may be due as soon as it is live again. Any other connection is due an interval after
            # the message with which it becomes live.
            next_s = now_s if subscription.lagging_count else now_s + interval_s
            for connection in subscription.live:
                due_s = max(connection.sent_at, subscription.sent_at) + interval_s
                if due_s > now_s:
                    next_s = min(next_s, due_s)
                elif connection.state is _LIVE:
                    yield connection
                else:
                    next_s = now_s
            subscription.heartbeat_at = next_s
