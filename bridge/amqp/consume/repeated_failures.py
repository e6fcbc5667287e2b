"""Delays the next session if the same failure happens repeatedly. The delay grows with each repetition."""

import asyncio
from collections.abc import Hashable
from contextlib import suppress

import structlog

from bridge.amqp.close_cause import CloseCause
from bridge.backoff import Backoff

CLOSED_EARLY = (
    "the broker closes the connection each time it delivers; it may be unable to deliver a message in the queue: see "
    "the broker's log"
)
"""RabbitMQ 3.10 closes the connection when it delivers a message that was published with AMQP 1.0 and without a routing
key."""

LOST_EARLY = "the connection is lost each time the bridge begins to consume: see the broker's log"

LONGEST_DELAY_S = 30.0
"""The longest delay before the next session if sessions are repeatedly closed early."""

_log = structlog.get_logger("bridge.amqp")


class RepeatedFailures:
    """Counts consecutive failures of one kind. The count continues from session to session."""

    def __init__(self, longest_s: float) -> None:
        """`longest_s` is the longest delay before a session."""
        self.count = 0
        """The number of consecutive failures at the same place."""
        self.place: Hashable = None
        """The place where the last failure happened."""
        self._delays = Backoff(1.0, longest_s)
        self._delay_due = False

    def note(self, place: Hashable = None) -> bool:
        """Records a failure. Returns False if the last failure was at the same place."""
        if not self.count or place != self.place:
            self.reset()
        self.place = place
        self.count += 1
        self._delay_due = self.count > 1
        return not self._delay_due

    def reset(self) -> None:
        """Records that the repeated failure is over."""
        self.count = 0
        self._delays.reset()

    async def wait(self, stopping: asyncio.Event) -> bool:
        """After a repeated failure, delays the next session; returns whether it waited. `stopping` ends the wait."""
        if not self._delay_due:
            return False
        self._delay_due = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._delays.pause_s()):
                await stopping.wait()
        return True


class EarlyLosses(RepeatedFailures):
    """Connections that are closed right after `basic.consume`, before the broker answers anything else."""

    def __init__(self) -> None:
        super().__init__(LONGEST_DELAY_S)

    def note_close(self, cause: CloseCause | None) -> None:
        """Records why a session was closed early. `cause` is None if the session was not closed early."""
        if cause is None:
            self.reset()
            return
        closed_by_broker = cause.broker_stayed_up and not cause.reason.startswith("CONNECTION_FORCED")
        warning = CLOSED_EARLY if closed_by_broker else LOST_EARLY
        self.note(warning)
        if self.count > 1 and self.count & (self.count - 1) == 0:
            _log.error(warning, times=self.count, error=cause.reason)

    @property
    def warnings(self) -> list[str]:
        """The warnings for `/readyz` about connections that are repeatedly closed early."""
        return [str(self.place)] if self.count > 1 else []
