"""A client's connection, as all those see it that decide what it is sent, and when."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.live_set import LiveSet, Slot
from bridge.broadcast.replay import UpdateFilter


class Piece(NamedTuple):
    """Some frames of a view, or a part of one."""

    frames: bytes
    positions: Sequence[int]
    """Those that they are of."""
    end: int
    """The position of the frame with which the next piece begins."""
    offset: int
    """How many bytes of the frame at `end` are in this piece and the pieces before it."""


class Subscription(Protocol):
    """What one kind of client asked for, as a connection with this subscription needs it."""

    @property
    def filter(self) -> UpdateFilter | None:
        """Selects updates; None selects all."""

    @property
    def ids(self) -> bool:
        """True if its connections get each update with its id."""

    @property
    def live(self) -> "LiveSet[Subscriber]":
        """Its connections that are live."""

    members: int
    """The number of its connections, whatever their state."""
    lagging_count: int
    """The number of its connections that lag."""

    def read(self, position: int, offset: int, end: int, max_bytes: int) -> Piece:
        """Returns frames from byte `offset` of the frame at `position` on, in at most `max_bytes`."""

    def split(self, positions: Sequence[int], offset: int, taken: int) -> tuple[int, int]:
        """Returns the position and the offset at which a client stopped that took only `taken` bytes."""


class Subscriber(Slot, Protocol):
    """A connection, as the hub sees it."""

    cursor: int
    """The position of the next frame to send. Meaningful while the connection lags."""
    offset: int
    """How many bytes of the frame at the cursor are sent. It is 0 unless the frame is sent in parts."""
    congested: bool
    """True while the transport still holds something."""
    subscription: Subscription | None
    """The hub's: what it sees of the log, from joining to leaving."""

    def send(self, *frames: bytes | memoryview) -> int:
        """Through the transport: bytes written; -1 where (a part of) them is enqueued; 0 where they are dropped."""

    def frame_ended(self) -> None:
        """Called when all parts of a frame are sent. Control frames may follow."""

    def reset(self) -> None:
        """Ends the connection at once, in the middle of a frame that the log has dropped."""

    def close(self, reason: CloseReason, **details: object) -> None:
        """Closes with a reason; `details` are numbers for the log."""
