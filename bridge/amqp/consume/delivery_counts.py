"""Warns of unsettled events that a quorum queue has delivered several times.

A rejected event that can't be published is held, and returns to its queue with each lost connection. A quorum queue
drops an event silently when it reaches the delivery limit. The bridge declares no quorum queue, but it can use one.
"""

import structlog

from bridge.amqp.wire.properties import MessageProperties

DELIVERY_COUNT = "x-delivery-count"
"""The header with the number of earlier deliveries of a message. A quorum queue sets it."""

WARNED = 5
"""The lowest delivery count that causes a warning. Since RabbitMQ 4.0, the default limit is 20."""

_log = structlog.get_logger("bridge.amqp")


class DeliveryCounts:
    """The unsettled deliveries that were delivered before, over all sessions."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        """The delivery counts, by delivery tag."""
        self._logged = 0
        """The delivery count of the last warning."""

    def begin_session(self) -> None:
        """Forgets the deliveries of the last session, because the broker delivers them again."""
        self.counts.clear()

    def note(self, tag: int, properties: MessageProperties) -> None:
        """Records a delivery that is marked as redelivered."""
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
        """The warnings for `/readyz`."""
        return [self._warning(max(self.counts.values()))] if self.counts else []

    @staticmethod
    def _warning(count: int) -> str:
        return (
            f"an unsettled event was delivered {count} times before; a quorum queue drops it beyond its delivery limit "
            "(20 by default on RabbitMQ 4): set no limit (x-delivery-limit -1), or find out why rejected events can't "
            "be published"
        )
