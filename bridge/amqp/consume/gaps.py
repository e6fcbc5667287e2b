"""Times in which events may have been missed: each is logged, told, counted, and the last one kept.

This file must never know how anybody came to think so.
"""

import time

import structlog

from bridge.amqp.consume.session import DeliveryHandler
from bridge.amqp.status import Gap, GapSlug
from bridge.metrics import Metrics

_log = structlog.get_logger("bridge.amqp")


class Gaps:
    """Reports gaps to a delivery handler."""

    def __init__(self, handler: DeliveryHandler, metrics: Metrics) -> None:
        self.last: Gap | None = None
        """The last one of this bridge's own."""
        self._complete_s = time.monotonic()
        self._handler = handler
        self._metrics = metrics

    def complete(self, at_s: float) -> None:
        """Notes that everything that was published before then (monotonic seconds) has come."""
        self._complete_s = max(self._complete_s, at_s)

    def tell_of_loss(self, reason: str, slug: GapSlug = GapSlug.BROKER_AWAY) -> None:
        """Tells of a gap from the last moment at which nothing was missed until now."""
        self.tell(until_now(self._complete_s, reason, slug))

    def tell(self, gap: Gap) -> None:
        """Tells of a gap that this bridge had."""
        self.last = gap
        _log.warning("events may have been missed", **gap.report())
        self._metrics.gaps.inc()
        self._handler.on_gap(gap)

    def pass_on(self, gap: Gap) -> None:
        """Tells of one that another bridge had, or this one before it was started again."""
        _log.warning("events may have been missed, says the stream", **gap.report())
        self._handler.on_gap(gap)


def until_now(since_s: float, reason: str, slug: GapSlug = GapSlug.BROKER_AWAY) -> Gap:
    """From some monotonic second on."""
    now_s, now_unix_s = time.monotonic(), time.time()
    return Gap(now_unix_s - (now_s - since_s), now_unix_s, reason, slug)
