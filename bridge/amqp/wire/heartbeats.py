"""Heartbeat timeouts of broker connections: only the time in which the bridge runs counts.

aiormq closes a connection if the broker sends no frame for three heartbeats. A paused machine freezes the bridge and
its broker together, and the broker then sends nothing. When both run again, aiormq would close the connection at once,
and the broker would delete an exclusive queue with its events.
"""

import aiormq

LATE_INTERVALS = 2
"""A check that is more than this many intervals late closes no connection."""


class _Patient(aiormq.connection.Connection):
    """A connection whose heartbeat timeout starts again after a late check."""

    checked_at: float
    awake_since_s: float

    @property
    def is_connection_was_stuck(self) -> bool:
        """Whether the broker has sent no frame for too long. aiormq reads this twice in each heartbeat."""
        now_s = self.loop.time()
        interval_s = max(1, self.heartbeat_timeout // 2)
        if now_s - self.checked_at > (1 + LATE_INTERVALS) * interval_s:
            self.awake_since_s = now_s
        self.checked_at = now_s
        grace_s = (self.heartbeat_timeout + 1) * self.HEARTBEAT_GRACE_MULTIPLIER
        return super().is_connection_was_stuck and now_s - self.awake_since_s > grace_s


def make_patient(connection: aiormq.abc.AbstractConnection) -> None:
    """Applies this rule to an open connection."""
    if isinstance(connection, aiormq.connection.Connection):
        # aiormq creates its connections itself, and takes no other class.
        connection.__class__ = _Patient
        assert isinstance(connection, _Patient)
        connection.checked_at = connection.loop.time()
        connection.awake_since_s = float("-inf")
