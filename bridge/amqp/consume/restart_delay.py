"""The same failure again and again: each of the sessions that follow it begins later than the one before."""

import asyncio
from collections.abc import Hashable
from contextlib import suppress

import structlog

from bridge.amqp.close_cause import CloseCause
from bridge.backoff import Backoff

ENDS_AT_ONCE = (
    "the broker ends the connection each time it delivers; a message in the queue may be one that it can't deliver: "
    "look into the broker's log"
)
"""RabbitMQ 3.10 does so for a message that was sent by AMQP 1.0 without a routing key."""

LOST_AT_ONCE = "the connection is lost each time as soon as the bridge consumes: look into the broker's log"

LONGEST_REST_S = 30.0
"""Longest pause before a session, after others that ended as soon as they had begun to consume."""

_log = structlog.get_logger("bridge.amqp")


class Repeats:
    """One kind of failure, over all sessions."""

    def __init__(self, longest_s: float) -> None:
        """`longest_s` bounds the pause before a session."""
        self.count = 0
        """How often in a row it happened at the same place."""
        self.at: Hashable = None
        """Where it happened last."""
        self._pauses = Backoff(1.0, longest_s)
        self._due = False

    def note(self, at: Hashable = None) -> bool:
        """Notes a failure, and where it happened. Returns False if the one before was at the same place."""
        if not self.count or at != self.at:
            self.reset()
        self.at = at
        self.count += 1
        self._due = self.count > 1
        return not self._due

    def reset(self) -> None:
        """Notes that it is over."""
        self.count = 0
        self._pauses.reset()

    async def wait(self, stopping: asyncio.Event) -> bool:
        """Waits before the session that follows a repeated failure, unless `stopping` is set. Returns whether so."""
        if not self._due:
            return False
        self._due = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pauses.pause_s()):
                await stopping.wait()
        return True


class EndsAtOnce(Repeats):
    """Connections that end as soon as they consume: before the broker has answered anything else."""

    def __init__(self) -> None:
        super().__init__(LONGEST_REST_S)

    def note_close(self, cause: CloseCause | None) -> None:
        """Notes how one ended; None for one that did not end so soon."""
        if cause is None:
            self.reset()
            return
        failed = cause.broker_stayed_up and not cause.reason.startswith("CONNECTION_FORCED")
        self.note(phrase := ENDS_AT_ONCE if failed else LOST_AT_ONCE)
        if self.count > 1 and self.count & (self.count - 1) == 0:
            _log.error(phrase, times=self.count, error=cause.reason)

    @property
    def warnings(self) -> list[str]:
        """For `/readyz`."""
        return [str(self.at)] if self.count > 1 else []
