"""Where the broker's side and the clients' side meet: each delivery's way to an update, or to the rejects.

One visible branch decides: Accepted goes to the hub and is settled after the flush, Rejected goes to the rejects and is
settled after the confirm.
"""

import time
from collections import Counter
from collections.abc import Mapping

import structlog

from bridge.amqp.consume.session import Delivery
from bridge.amqp.rejects.publisher import RejectPublisher
from bridge.amqp.status import Gap
from bridge.broadcast.hub import Hub
from bridge.contract import envelope
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Accepted, Event, Pipeline, Reason, Rejected
from bridge.contract.text import printable
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics

_log = structlog.get_logger("bridge.relay")


class UnflushedDeliveries:
    """The deliveries whose updates are in the log, until the hub flushes: then they are settled.

    The hub also flushes on its own, before the log could drop an update.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._deliveries: list[Delivery] = []

    def add(self, delivery: Delivery) -> None:
        """Adds a delivery. To be called after its update is published: publishing may flush."""
        self._deliveries.append(delivery)

    def on_flush(self) -> None:
        """Settles all deliveries."""
        settled, self._deliveries = self._deliveries, []
        now_s = time.monotonic()
        observe = self._metrics.receipt_to_flush.observe
        for delivery in settled:
            observe(now_s - delivery.received_s)
            delivery.settle()


class Relay:
    """Takes deliveries in order, and sees to it that each is settled once."""

    def __init__(
        self,
        exchanges: Mapping[str, str],
        pipeline: Pipeline,
        window: DuplicateWindow,
        hub: Hub,
        unflushed: UnflushedDeliveries,
        rejects: RejectPublisher,
        metrics: Metrics,
        *,
        replaying: bool = False,
    ) -> None:
        """`exchanges` maps an exchange to the update type that it carries by default.

        `unflushed` is the listener of the hub's flushes. With `replaying`, all deliveries until `on_caught_up` were
        published before the bridge's start.
        """
        self._exchanges = exchanges
        # A message that came through another exchange bears that one's name; where all carry the same type, it's clear.
        types = set(exchanges.values())
        self._only_type = types.pop() if len(types) == 1 else None
        self._pipeline = pipeline
        self._window = window
        self._hub = hub
        self._rejects = rejects
        self._metrics = metrics
        self._unflushed = unflushed
        self._rejected: Counter[Reason] = Counter()
        self._replaying = replaying
        self._invalid_before = 0
        """Events of before that can't become an update."""

    def deliver(self, delivery: Delivery) -> None:
        """Takes a delivery; its update waits for `flush`.

        Never raises: what goes wrong in here is the delivery's rejection.
        """
        self._metrics.deliveries += 1
        if delivery.redelivered:
            self._metrics.redeliveries += 1
        duplicate = False
        outcome: Accepted | Rejected
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
                duplicate = outcome.identity is not None and outcome.identity in self._window
                if not duplicate:
                    self._hub.publish(outcome.payload, (outcome.type, outcome.data), delivery.id)
        except Exception:
            _log.exception("an event could not be processed")
            outcome = Rejected(Reason.INTERNAL_ERROR, "the bridge failed on this event; its log says how")
        if isinstance(outcome, Rejected):
            if self._replaying:
                # A bridge that consumed it when it was new has said so. To say it at each start would bury the rest.
                self._invalid_before += 1
                self._record_id(delivery)
                delivery.settle()
                return
            self._say(delivery, outcome)
            self._record_id(delivery)
            self._rejects.reject(delivery, outcome)
        elif duplicate:
            self._record_id(delivery)
            self._metrics.duplicates[outcome.type] += 1
            delivery.settle()
        else:
            # All of it once the update is in the log. Publishing may flush what came before, and must not settle this
            # one for it; and what failed to get there is no duplicate when it comes again.
            self._unflushed.add(delivery)
            if not self._replaying:
                self._metrics.updates[outcome.type] += 1
                self._metrics.last_update_ms = received_ms
            if outcome.identity is not None:
                self._window.remember(outcome.identity)

    def _record_id(self, delivery: Delivery) -> None:
        # Another bridge, which began elsewhere or knows other schemas, may have sent it: its id is one to resume after.
        if delivery.id is not None:
            self._hub.record_id(delivery.id)

    def flush(self) -> None:
        """Hands out the updates of all deliveries so far."""
        self._hub.flush()

    def record_id(self, update_id: UpdateId) -> None:
        """Records an id that belongs to no event."""
        self._hub.record_id(update_id)

    def on_caught_up(self) -> None:
        """Ends the replay: the deliveries that follow are new."""
        self._replaying = False
        self._hub.end_replay()
        if self._invalid_before:
            _log.warning(
                "events of before this bridge's start can't become updates; who consumed them then has rejected them",
                events=self._invalid_before,
            )

    def on_gap(self, gap: Gap) -> None:
        """Sends clients with ids the own message for a gap."""
        report = gap.report()
        self._hub.send_own_message(envelope.gap(str(report["since"]), str(report["until"]), gap.slug, now_ms()))

    def on_session_end(self) -> None:
        """Passes on that unsettled deliveries belong to the broker again."""
        self._rejects.on_session_end()

    def _say(self, delivery: Delivery, rejected: Rejected) -> None:
        """One line for the first event of a reason, and for each that doubles their number: a flood stays short."""
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
    """The time, in Unix milliseconds."""
    return time.time_ns() // 1_000_000
