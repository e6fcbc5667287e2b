"""What clients that asked for the same are sent of the log: all of it, or what a filter matches, with ids or without.

Who asked for nothing sees the log as it is. All others share a view with those that asked for the same, so that an
update is looked at once for each of them. This file must never know how bytes reach a socket.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from bridge.broadcast.framing import Framing
from bridge.broadcast.live_set import Live, Place
from bridge.broadcast.replay import History
from bridge.broadcast.segment import Filter

P = TypeVar("P", bound=Place)


class Piece(NamedTuple):
    """Some frames of a view, or a part of one."""

    frames: bytes
    positions: Sequence[int]
    """Those that they are of."""
    end: int
    """The position of the frame with which the next piece begins."""
    offset: int
    """How many bytes of the frame at `end` are in this piece and the pieces before it."""


class View(Generic[P]):
    """The log as some connections see it, and those of them that have had everything."""

    __slots__ = ("_framing", "_history", "behind", "filter", "ids", "live", "members")

    def __init__(self, history: History, framing: Framing, wanted: Filter | None, ids: bool) -> None:
        """`framing` is of the history; `wanted` None wants everything."""
        self._history = history
        self._framing = framing
        self.filter = wanted
        self.ids = ids
        self.live: Live[P] = Live()
        self.members = 0
        """All of its connections, also those that are not live."""
        self.behind = 0
        """Of these, those that were live before."""

    def read(self, position: int, offset: int, end: int, max_bytes: int) -> Piece:
        """Returns frames of the view from byte `offset` of the frame at `position` on, in at most `max_bytes`.

        A larger frame is returned in parts. The piece stops before `end`. It also stops when enough positions were
        searched, so it may be empty. `position` must be in the log, and below `end`.
        """
        if offset:
            return self._part(position, offset, max_bytes)
        log = self._history.log
        if self.filter is None and not self.ids:
            frames, reached = log.read(position, end, max_bytes)
            if len(frames) > max_bytes:
                return self._part(position, 0, max_bytes)
            return Piece(frames, range(position, reached), reached, 0)
        run: list[bytes] = []
        size = 0
        positions, reached = self._history.wanted(self.filter, position, end, notices=self.ids)
        for at in positions:
            size += len(log.frame(at))
            if run and size > max_bytes:
                return Piece(b"".join(run), positions[: len(run)], at, 0)
            if size > max_bytes:
                return self._part(at, 0, max_bytes)
            run.append(self._framing.frame(at, ids=self.ids))
        return Piece(b"".join(run), positions, reached, 0)

    def _part(self, position: int, offset: int, max_bytes: int) -> Piece:
        part, is_last = self._framing.part(position, offset, max_bytes, ids=self.ids)
        end, reached = (position + 1, 0) if is_last else (position, offset + len(part))
        return Piece(part, (position,), end, reached)

    def split(self, positions: Sequence[int], offset: int, taken: int) -> tuple[int, int]:
        """Finds where a client stopped that took only `taken` bytes of the frames at these positions.

        `taken` must be less than all bytes. `offset` is how many bytes of the first frame the client had before.
        Returns the position of the first incomplete frame, and how many bytes of this frame the client has.
        """
        taken += offset
        if len(positions) == 1:
            return positions[0], taken
        ends = self._framing.ends(positions, ids=self.ids)
        at = bisect_right(ends, taken)
        return positions[at], taken - (ends[at - 1] if at else 0)
