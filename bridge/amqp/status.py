"""The state of a connection to the broker as reported in `/readyz`, with the state's start and the last error."""

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from bridge.timing import DEFAULT


class State(StrEnum):
    """The state of a connection to the broker."""

    CONNECTING = "connecting"
    WORKING = "working"
    LOST = "lost"
    REFUSED = "refused"
    STOPPED = "stopped"


class GapSlug(StrEnum):
    """The reason for a gap in the form that clients get. A slug contains no host, user or library name."""

    BROKER_AWAY = "broker-away"
    STREAM_TRUNCATED = "stream-truncated"
    STREAM_RECREATED = "stream-recreated"


@dataclass(frozen=True, slots=True)
class Gap:
    """A period in which the bridge may have missed events. The times of a gap are in Unix seconds."""

    since_s: float
    until_s: float
    reason: str
    """The reason for the gap, as worded by the broker or a library.

    Only the operator gets this text, because it may contain hosts and users.
    """
    slug: GapSlug = GapSlug.BROKER_AWAY

    def report(self) -> dict[str, object]:
        """Returns the JSON members that describe the gap in `/readyz`."""
        return {"since": _rfc3339(self.since_s), "until": _rfc3339(self.until_s), "reason": self.reason}


@dataclass(slots=True)
class Status:
    """The current state of a connection to the broker. Times are monotonic, in seconds."""

    answer_valid_s: float = DEFAULT.answer_valid_s
    """After an answer from the broker, the connection counts as working for this number of seconds."""
    state: State = State.CONNECTING
    since_s: float = field(default_factory=time.monotonic)
    ever_connected: bool = False
    """True as soon as a connection has worked for the first time."""
    attempts: int = 0
    """The number of attempts to connect since the connection last worked."""
    failed_connects: int = 0
    """The number of attempts in which no node accepted a connection, since the connection last worked.

    An attempt that is still running counts too.
    """
    broker_may_have_restarted: bool = False
    """True if the broker may have been restarted since the connection last worked."""
    error: str | None = None
    """The last error of the connection, as worded by the broker. The error is kept after a recovery."""
    error_unix_s: float | None = None
    """The time of the last error of the connection, in Unix seconds."""
    last_answered_s: float | None = None
    """The time when the bridge sent the latest request that the broker has answered."""

    def enter(self, state: State, error: str | None = None, requested_s: float | None = None) -> None:
        """Sets the state, and sets the last error if `error` is given.

        For the state `working`, `requested_s` is the time when the bridge sent the request that the broker has now
        answered.
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
            self.touch(time.monotonic() if requested_s is None else requested_s)

    def touch(self, requested_s: float) -> None:
        """Records that the broker has answered a request that was sent at `requested_s`.

        The bridge may have read the answer much later.
        """
        self.last_answered_s = requested_s if self.last_answered_s is None else max(self.last_answered_s, requested_s)

    @property
    def is_fresh(self) -> bool:
        """True if the broker's last answer is recent enough for the connection to count as working."""
        age_s = math.inf if self.last_answered_s is None else time.monotonic() - self.last_answered_s
        return age_s <= self.answer_valid_s

    def report(self) -> dict[str, object]:
        """Returns the JSON members that describe the connection in `/readyz`."""
        return {
            "state": self.state.value,
            "for_s": round(time.monotonic() - self.since_s, 1),
            "attempts": self.attempts,
            "last_error": self.error,
            "last_error_at": None if self.error_unix_s is None else _rfc3339(self.error_unix_s),
        }


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
