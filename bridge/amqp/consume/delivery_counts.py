"""Warns of unsettled events that a quorum queue has delivered several times.

If a rejected event can't be published, the bridge holds it, and each lost connection returns it to its queue. A quorum
queue silently drops an event that reaches the delivery limit. The bridge declares no quorum queue, but can consume an
existing quorum queue.
"""

import structlog

from bridge.amqp.wire.properties import MessageProperties

DELIVERY_COUNT = "x-delivery-count"
"""The header in which a quorum queue puts the number of earlier deliveries of a message."""

WARNED = 5
"""The lowest delivery count that causes a warning. Since RabbitMQ 4.0, the default delivery limit is 20."""

_log = structlog.get_logger("bridge.amqp")


class DeliveryCounts:
    """The unsettled deliveries that a queue has delivered several times, over all sessions."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        """The delivery counts of unsettled deliveries, by delivery tag."""
        self._logged = 0
        """The delivery count that the last logged warning named."""

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
        """The warnings for `/readyz` on events that were delivered too often."""
        return [self._warning(max(self.counts.values()))] if self.counts else []

    @staticmethod
    def _warning(count: int) -> str:
        return (
            f"an unsettled event was delivered {count} times before; a quorum queue drops it beyond its delivery limit "
            "(20 by default on RabbitMQ 4): set no limit (x-delivery-limit -1), or find out why rejected events can't "
            "be published"
        )
