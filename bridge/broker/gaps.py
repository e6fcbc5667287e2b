"""Times in which events may have been missed: each is told, counted, and the last one kept.

This file must never know how anybody came to think so.
"""

import time

from bridge.broker.epoch import Recipient
from bridge.broker.status import Gap
from bridge.metrics import Metrics


class Gaps:
    """Tells a recipient."""

    def __init__(self, recipient: Recipient, metrics: Metrics) -> None:
        self.last: Gap | None = None
        """The last one of this bridge's own."""
        self._recipient = recipient
        self._metrics = metrics

    def tell(self, gap: Gap) -> None:
        """Tells of a gap that this bridge had."""
        self.last = gap
        self._metrics.gaps.inc()
        self.pass_on(gap)

    def pass_on(self, gap: Gap) -> None:
        """Tells of one that another bridge had, or this one before it was started again."""
        self._recipient.missed(gap)


def until_now(since_s: float, reason: str) -> Gap:
    """From some monotonic second on."""
    now_s, now_unix_s = time.monotonic(), time.time()
    return Gap(now_unix_s - (now_s - since_s), now_unix_s, reason)
