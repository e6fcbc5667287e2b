"""Limits the log lines that clients cause: each kind of line is written only a few times a minute.

Lines that exceed the limit are counted, but not written.
"""

from collections.abc import Callable

MAX_LINES = 10
"""The maximum number of log lines of one kind in a minute. Without a maximum, log lines could fill a disk and slow the
bridge down."""

MINUTE_S = 60.0


class LogLimiter:
    """Decides which of many similar log lines are written."""

    def __init__(self, time: Callable[[], float]) -> None:
        """`time` is a monotonic clock, in seconds."""
        self._time = time
        self._minute_began_at: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        """The number of calls of `allow` for each kind in the current minute."""

    def allow(self, kind: str) -> dict[str, int] | None:
        """Returns fields to add to the line, or None if the line must not be written.

        The field `suppressed` is the number of lines of this kind that were suppressed after the last written line.
        `kind` must be one of a few constants, because the limiter keeps a count for each kind forever.
        """
        now_s = self._time()
        count = self._counts.get(kind, 0) + 1
        suppressed = 0
        if now_s >= self._minute_began_at.get(kind, -MINUTE_S) + MINUTE_S:
            suppressed = max(0, count - 1 - MAX_LINES)
            count = 1
            self._minute_began_at[kind] = now_s
        self._counts[kind] = count
        if count > MAX_LINES:
            return None
        return {"suppressed": suppressed} if suppressed else {}
