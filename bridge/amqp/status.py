"""What `/readyz` says of a connection to the broker: its state, since when, and the last error."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from bridge.timing import DEFAULT


class State(StrEnum):
    """What a connection to the broker is doing."""

    CONNECTING = "connecting"
    WORKING = "working"
    LOST = "lost"
    REFUSED = "refused"
    STOPPED = "stopped"


class GapSlug(StrEnum):
    """The reason of a gap, as clients get it. A slug names no host, no user and no library."""

    BROKER_AWAY = "broker-away"
    STREAM_TRUNCATED = "stream-truncated"
    STREAM_RECREATED = "stream-recreated"


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which events may have been published that no queue of the bridge's got. Unix seconds."""

    since_s: float
    until_s: float
    reason: str
    """For the operator: words of the broker and of libraries, which may name hosts and users."""
    slug: GapSlug = GapSlug.BROKER_AWAY

    def report(self) -> dict[str, object]:
        """For `/readyz`."""
        return {"since": _rfc3339(self.since_s), "until": _rfc3339(self.until_s), "reason": self.reason}


@dataclass(slots=True)
class Status:
    """One connection's state, as it changes. Times are of the monotonic clock, in seconds."""

    answer_valid_s: float = DEFAULT.answer_valid_s
    """How long an answer of the broker counts."""
    state: State = State.CONNECTING
    since_s: float = field(default_factory=time.monotonic)
    ever_connected: bool = False
    """True once it has worked for the first time."""
    attempts: int = 0
    """Attempts to connect since it last worked."""
    failed_connects: int = 0
    """Of these, those in which no node of the broker let it in, the one that is under way included."""
    broker_may_have_restarted: bool = False
    """True if a connection was lost since it last worked, and the broker may have been restarted meanwhile."""
    error: str | None = None
    """The last error, in the broker's own words; kept after recovery."""
    error_unix_s: float | None = None
    """When that was said last."""
    last_answered_s: float | None = None
    """When the last answered request was sent (monotonic seconds)."""

    def enter(self, state: State, error: str | None = None, asked_s: float | None = None) -> None:
        """Changes the state; the same state again only changes the error.

        `asked_s` is when the broker was asked for what it has answered now, where it works.
        """
        if error is not None:
            self.error = error
            self.error_unix_s = time.time()
        if state is not self.state:
            self.state = state
            self.since_s = time.monotonic()
        if state is State.WORKING:
            self.ever_connected = True
            self.attempts = self.failed_connects = 0
            self.broker_may_have_restarted = False
            self.touch(time.monotonic() if asked_s is None else asked_s)

    def touch(self, asked_s: float) -> None:
        """Notes that a request sent at that time was answered. The answer may have been read much later."""
        self.last_answered_s = asked_s if self.last_answered_s is None else max(self.last_answered_s, asked_s)

    @property
    def is_fresh(self) -> bool:
        """True while the last answer is not too long ago."""
        return self.last_answered_s is not None and time.monotonic() - self.last_answered_s <= self.answer_valid_s

    def report(self) -> dict[str, object]:
        """For `/readyz`."""
        return {
            "state": self.state.value,
            "for_s": round(time.monotonic() - self.since_s, 1),
            "attempts": self.attempts,
            "last_error": self.error,
            "last_error_at": None if self.error_unix_s is None else _rfc3339(self.error_unix_s),
        }


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
