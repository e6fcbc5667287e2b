"""How often unsettled events were delivered before: a quorum queue counts that, and has a limit.

A rejected event that can't be published is held, and returns to its queue with each lost connection.
Beyond its delivery limit, a quorum queue drops it, and tells nobody. The bridge makes no such queue, but uses one.
"""

import structlog

from bridge.amqp.wire.properties import MessageProperties

DELIVERY_COUNT = "x-delivery-count"
"""The header in which a quorum queue says how often it has delivered a message before."""

WARNED = 5
"""From this count on. From RabbitMQ 4.0 on, the limit is 20 unless the queue or a policy has another."""

_log = structlog.get_logger("bridge.amqp")


class Returns:
    """The deliveries in hand that were delivered before."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        """By delivery tag."""
        self._said = 0

    def begin(self) -> None:
        """A session begins: all that was in hand comes again."""
        self.counts.clear()

    def note(self, tag: int, properties: MessageProperties) -> None:
        """Notes a delivery that the broker says was delivered before."""
        count = (properties.decode().headers or {}).get(DELIVERY_COUNT)
        if isinstance(count, int) and count >= WARNED:
            self.counts[tag] = count
            if count >= 2 * self._said:
                self._said = count
                _log.warning(self._warning(count))

    def settle(self, tag: int) -> None:
        """Notes that a delivery is settled."""
        if self.counts.pop(tag, None) is not None and not self.counts:
            self._said = 0

    @property
    def warnings(self) -> list[str]:
        """For `/readyz`."""
        return [self._warning(max(self.counts.values()))] if self.counts else []

    @staticmethod
    def _warning(count: int) -> str:
        return (
            f"an event in hand was delivered {count} times before; a quorum queue drops it beyond its delivery limit, "
            "20 by default on RabbitMQ 4: give the queue no limit (x-delivery-limit -1), or see why rejected events "
            "can't be published"
        )
