"""How long the broker may send nothing before its connection is given up: only time in which the bridge ran counts.

aiormq gives a connection up if no frame came for three heartbeats, by the clock. A broker that is frozen together with
the bridge, on one paused machine, has sent nothing either: its connection would be given up at once when both run
again, and an exclusive queue and its events with it.
"""

import aiormq

LATE_INTERVALS = 2
"""A check that comes later than this gives no connection up."""


class _Patient(aiormq.connection.Connection):
    """A connection that begins to count anew after a check that came late."""

    checked_at: float
    awake_since_s: float

    @property
    def is_connection_was_stuck(self) -> bool:
        """Whether no frame came for too long. aiormq asks this every half of a heartbeat."""
        now_s = self.loop.time()
        interval_s = max(1, self.heartbeat_timeout // 2)
        if now_s - self.checked_at > (1 + LATE_INTERVALS) * interval_s:
            self.awake_since_s = now_s
        self.checked_at = now_s
        grace_s = (self.heartbeat_timeout + 1) * self.HEARTBEAT_GRACE_MULTIPLIER
        return super().is_connection_was_stuck and now_s - self.awake_since_s > grace_s


def make_patient(connection: aiormq.abc.AbstractConnection) -> None:
    """Makes aiormq judge this connection's broker so. To be called when it is open."""
    if isinstance(connection, aiormq.connection.Connection):
        # aiormq makes its connections itself, of this one class.
        connection.__class__ = _Patient
        assert isinstance(connection, _Patient)
        connection.checked_at = connection.loop.time()
        connection.awake_since_s = float("-inf")
