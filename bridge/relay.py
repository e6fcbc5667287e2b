"""Connects the broker's side to the clients' side: turns deliveries into updates or rejected events.

The relay passes an accepted event to the hub, and settles its delivery after the flush. The relay passes a rejected
event to the publisher of rejects, and the event's delivery is settled when the broker has confirmed the rejected event.
"""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence

import structlog

from bridge import logs
from bridge.amqp.consume.session import Delivery
from bridge.amqp.rejects.publisher import RejectPublisher
from bridge.amqp.status import Gap
from bridge.broadcast.hub import Hub
from bridge.contract import envelope
from bridge.contract.catalog import Identity
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Accepted, Event, Pipeline, Reason, Rejected
from bridge.contract.text import printable
from bridge.contract.update_id import UpdateId
from bridge.loop_turn import LoopTurn
from bridge.metrics import Metrics

_LOGGER = "bridge.relay"

_log = structlog.get_logger(_LOGGER)

LONG_READ = 8
LONG_BODY_BYTES = 65536
"""The turn of a read is measured if the read has LONG_READ deliveries, or a body of more than LONG_BODY_BYTES bytes.

Shorter reads take less than 1 ms before the flush. Measuring a turn takes 0.002 ms.
"""

_UPDATE = "update"
"""The outcome if a delivery has become an update."""


class UnflushedDeliveries:
    """Holds deliveries until their updates are flushed from the log, and then settles the deliveries.

    The hub also flushes when the log would otherwise have to drop an update that is not flushed.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._deliveries: list[Delivery] = []
        self._positions: list[int] = []
        """For each delivery, the position that the log must be flushed up to. The positions never decrease."""

    def add(self, delivery: Delivery, position: int) -> None:
        """Adds a delivery. `position` is the head of the log after the delivery's update was published."""
        self._deliveries.append(delivery)
        self._positions.append(position)

    def __len__(self) -> int:
        return len(self._deliveries)

    def on_flush(self, flushed: int) -> None:
        """Settles all deliveries whose updates are below the position `flushed`."""
        count = bisect_right(self._positions, flushed)
        settled = self._deliveries[:count]
        del self._deliveries[:count], self._positions[:count]
        now_s = time.monotonic()
        observe = self._metrics.receipt_to_flush.observe
        for delivery in settled:
            observe(now_s - delivery.received_s)
            delivery.settle()


class Relay:
    """Relays deliveries in order, and ensures that each delivery is settled only once."""

    def __init__(
        self,
        exchanges: Mapping[str, str],
        pipeline: Pipeline,
        window: DuplicateWindow,
        hub: Hub,
        unflushed: UnflushedDeliveries,
        rejects: RejectPublisher,
        metrics: Metrics,
        turn: LoopTurn,
        *,
        replaying: bool = False,
    ) -> None:
        """`exchanges` maps an exchange to the update type that it carries by default.

        `unflushed` must be the object that the hub calls at each flush. If `replaying` is True, all deliveries before
        the call of `on_caught_up` were published before the bridge's start.
        """
        self._exchanges = exchanges
        # A delivery may come from an exchange that is not configured. If all configured exchanges carry the same type,
        # the type of a delivery from an exchange that is not configured is known too.
        types = set(exchanges.values())
        self._only_type = types.pop() if len(types) == 1 else None
        self._pipeline = pipeline
        self._window = window
        self._hub = hub
        self._rejects = rejects
        self._metrics = metrics
        self._turn = turn
        self._unflushed = unflushed
        self._rejected: Counter[Reason] = Counter()
        self._replaying = replaying
        self._traces = logs.traces(_LOGGER)
        self._flush_due = False
        """Whether the hub has an update or an id that is not flushed yet."""
        self._invalid_before = 0
        """The number of events that were published before the bridge's start and can't become an update."""

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Relays the deliveries of one read (at least one), and broadcasts their updates in one flush.

        If the bridge fails on an event, the event is rejected. If the rejection of an event fails, its delivery stays
        unsettled, so that a queue delivers the event again. If relaying one delivery fails, the other deliveries are
        still relayed.
        """
        if len(deliveries) >= LONG_READ or max([len(each.body) for each in deliveries]) > LONG_BODY_BYTES:
            self._turn.begin()
        relay = self._relay_traced if self._traces else self._relay
        for delivery in deliveries:
            try:
                relay(delivery)
            except Exception:
                _log.exception("a delivery could not be relayed; it stays unsettled")
        if self._flush_due:
            self._flush_due = False
            self._hub.flush()

    def _relay_traced(self, delivery: Delivery) -> None:
        outcome = self._relay(delivery)
        update_id = self._hub.newest_id if outcome == _UPDATE else delivery.id
        fields = {} if update_id is None else {"id": str(update_id)}
        _log.debug("relayed", tag=delivery.tag, outcome=outcome, **fields)

    def _relay(self, delivery: Delivery) -> str:
        """Passes a new update to the hub, or a rejected event to the publisher of rejects. Drops duplicate events.

        Returns the outcome of the delivery, which is `update`, `duplicate`, or the reason of the rejection.
        """
        self._metrics.deliveries += 1
        if delivery.redelivered:
            self._metrics.redeliveries += 1
        outcome: Accepted | Rejected
        identity: Identity | None = None
        duplicate = False
        received_ms = now_ms()
        try:
            properties = delivery.properties
            event = Event(
                delivery.body,
                properties.type or None,
                self._exchanges.get(delivery.exchange, self._only_type),
                properties.encoding,
            )
            outcome = self._pipeline.process(event, received_ms)
            if isinstance(outcome, Accepted):
                identity = outcome.identity
                duplicate = identity is not None and not self._window.add(identity)
                if not duplicate:
                    self._hub.publish(outcome.payload, (outcome.type, outcome.data), delivery.id)
                    self._flush_due = True
        except Exception:
            _log.exception("an event could not be processed")
            outcome = Rejected(Reason.INTERNAL_ERROR, "the bridge failed on this event; its log has the error")
            if identity is not None and not duplicate:
                # The update was not broadcast, so the event must not count as a duplicate if it is delivered again.
                self._window.remove_newest()
        if isinstance(outcome, Rejected):
            self._record_id(delivery)
            if self._replaying:
                # An earlier consumer already rejected this event when it was new. Logging the rejection of a replayed
                # event again at each start would fill the log.
                self._invalid_before += 1
                delivery.settle()
            else:
                self._log_rejected(delivery, outcome)
                self._rejects.reject(delivery, outcome)
            return outcome.reason.value
        if duplicate:
            self._record_id(delivery)
            self._metrics.duplicates[outcome.type] += 1
            if self._unflushed:
                # The update of the original may wait for a flush. After a lost session, this delivery may be the only
                # one that the broker would deliver again.
                self._unflushed.add(delivery, self._hub.head)
            else:
                delivery.settle()
            return "duplicate"
        self._unflushed.add(delivery, self._hub.head)
        if not self._replaying:
            self._metrics.updates[outcome.type] += 1
            self._metrics.last_update_ms = received_ms
        return _UPDATE

    def _record_id(self, delivery: Delivery) -> None:
        # A bridge with other schemas, or a bridge that started earlier, may have broadcast this event. Clients of
        # another bridge may resume at this bridge with the event's id.
        if delivery.id is not None:
            self._hub.record_id(delivery.id)
            self._flush_due = True

    def record_id(self, update_id: UpdateId) -> None:
        """Records an id that belongs to no event, so that clients can resume after this id."""
        self._hub.record_id(update_id)
        self._hub.flush()

    def on_caught_up(self) -> None:
        """Ends the replay, because all following deliveries are new."""
        self._replaying = False
        self._hub.end_replay()
        if self._invalid_before:
            _log.warning(
                "events from before this bridge's start can't become updates; an earlier consumer rejected them",
                events=self._invalid_before,
            )

    def on_gap(self, gap: Gap, update_id: UpdateId | None) -> None:
        """Sends the bridge's message `gap` to clients that receive ids.

        `update_id` is the id in the message, or None without a stream.
        """
        report = gap.report()
        since, until = str(report["since"]), str(report["until"])
        self._hub.send_own_message(lambda gap_id: envelope.gap(since, until, gap.slug, gap_id, now_ms()), update_id)

    def on_session_end(self) -> None:
        """Reports the end of a session with the broker to the publisher of rejects.

        The broker takes back the session's unsettled deliveries.
        """
        self._rejects.on_session_end()

    def _log_rejected(self, delivery: Delivery, rejected: Rejected) -> None:
        """Logs only some rejected events, so that a flood does not fill the log.

        Logs the 1st, 2nd, 4th, 8th event (and so on) that is rejected for the same reason.
        """
        self._rejected[rejected.reason] += 1
        count = self._rejected[rejected.reason]
        if count & (count - 1) == 0:
            _log.warning(
                "event rejected",
                reason=rejected.reason.value,
                detail=rejected.detail,
                exchange=printable(delivery.exchange),
                rejected_so_far=count,
            )


def now_ms() -> int:
    """Returns the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000
