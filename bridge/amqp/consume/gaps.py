"""Logs and counts each gap (a time in which events may have been missed), and passes the gap to the handler.

This module does not decide whether there was a gap.
"""

import time

import structlog

from bridge.amqp.consume.session import DeliveryHandler
from bridge.amqp.status import Gap, GapSlug
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics

_log = structlog.get_logger("bridge.amqp")


class GapReporter:
    """Reports gaps to a delivery handler.

    The parameter `update_id` of the methods has the same meaning as in `DeliveryHandler.on_gap`.
    """

    def __init__(self, handler: DeliveryHandler, metrics: Metrics) -> None:
        self.last: Gap | None = None
        """The newest gap that this bridge has found by itself (not from another bridge's marker)."""
        self._complete_until_s = time.monotonic()
        self._handler = handler
        self._metrics = metrics

    def confirm_complete(self, until_s: float) -> None:
        """Records that all events before `until_s` (monotonic seconds) have been delivered."""
        self._complete_until_s = max(self._complete_until_s, until_s)

    def report_loss(self, reason: str, slug: GapSlug = GapSlug.BROKER_AWAY, update_id: UpdateId | None = None) -> None:
        """Reports a gap that ends now and began at the last time when all events were known to be delivered."""
        self.report(gap_until_now(self._complete_until_s, reason, slug), update_id)

    def report(self, gap: Gap, update_id: UpdateId | None = None) -> None:
        """Reports a gap that this bridge has found."""
        self.last = gap
        _log.warning("events may have been missed", **gap.report())
        self._metrics.gaps.inc()
        self._handler.on_gap(gap, update_id)

    def forward(self, gap: Gap, update_id: UpdateId) -> None:
        """Reports a gap found by another bridge, or by this bridge before its restart. The gap is not counted."""
        _log.warning("events may have been missed, according to the stream", **gap.report())
        self._handler.on_gap(gap, update_id)


def gap_until_now(since_s: float, reason: str, slug: GapSlug = GapSlug.BROKER_AWAY) -> Gap:
    """Returns a gap that lasts from `since_s` (monotonic seconds) until now."""
    now_s, now_unix_s = time.monotonic(), time.time()
    return Gap(now_unix_s - (now_s - since_s), now_unix_s, reason, slug)
