"""A client's connection, as all those see it that decide what it is sent, and when."""

from typing import Protocol

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.live_set import Place
from bridge.broadcast.view import View


class Subscriber(Place, Protocol):
    """A connection, as the hub sees it."""

    cursor: int
    """The position of the next frame to send. Meaningful while the connection lags."""
    offset: int
    """How many bytes of the frame at the cursor are sent. It is 0 unless the frame is sent in parts."""
    congested: bool
    """True while the transport still holds something."""
    view: "View[Subscriber] | None"
    """The hub's: what it sees of the log, from joining to leaving."""

    def send(self, *frames: bytes | memoryview) -> int:
        """Through the transport: bytes written; -1 where (a part of) them is enqueued; 0 where they are dropped."""

    def frame_ended(self) -> None:
        """Called when all parts of a frame are sent. Control frames may follow."""

    def reset(self) -> None:
        """Ends the connection at once, in the middle of a frame that the log has dropped."""

    def close(self, reason: CloseReason, **details: object) -> None:
        """Closes with a reason; `details` are numbers for the log."""
