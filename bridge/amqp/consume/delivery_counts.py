"""Warns of unsettled events that a quorum queue has delivered several times.

If the bridge can't publish a rejected event, it holds the event unsettled. Each time the connection is lost while the
event is held, the event returns to its queue. A quorum queue silently drops an event that reaches the delivery limit.
The bridge never declares a quorum queue, but it can consume one that exists.
"""

import structlog

from bridge.amqp.wire.properties import MessageProperties

DELIVERY_COUNT = "x-delivery-count"
"""The header that says how often a quorum queue has delivered a message before."""

WARNED = 5
"""The lowest delivery count that causes a warning. Since RabbitMQ 4.0, the default delivery limit is 20."""

_log = structlog.get_logger("bridge.amqp")


class DeliveryCounts:
    """Counts how often a queue has delivered each unsettled event, in this session and in earlier ones."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        """The delivery counts of unsettled deliveries, by delivery tag."""
        self._logged = 0
        """The delivery count in the warning that was logged last."""

    def begin_session(self) -> None:
        """Forgets the deliveries of the last session, because the broker delivers them again."""
        self.counts.clear()

    def note(self, tag: int, properties: MessageProperties) -> None:
        """Records the delivery count of a delivery that the broker marks as redelivered."""
        count = (properties.decode().headers or {}).get(DELIVERY_COUNT)
        if isinstance(count, int) and count >= WARNED:
            self.counts[tag] = count
            if count >= 2 * self._logged:
                self._logged = count
                _log.warning(self._warning(count))

    def settle(self, tag: int) -> None:
        """Records that a delivery is settled."""
        if self.counts.pop(tag, None) is not None and not self.counts:
            self._logged = 0

    @property
    def warnings(self) -> list[str]:
        """The warnings for `/readyz` about events that were delivered too often."""
        return [self._warning(max(self.counts.values()))] if self.counts else []

    @staticmethod
    def _warning(count: int) -> str:
        return (
            f"an unsettled event was delivered {count} times before; a quorum queue drops it beyond its delivery limit "
            "(20 by default on RabbitMQ 4): set no limit (x-delivery-limit -1), or find out why rejected events can't "
            "be published"
        )
