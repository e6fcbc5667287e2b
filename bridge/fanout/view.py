"""What clients that asked for the same are sent of the log: all of it, or what a filter matches, with ids or without.

Who asked for nothing sees the log as it is. All others share a view with those that asked for the same, so that an
update is looked at once for each of them. This file must never know how bytes reach a socket.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from bridge.fanout.framing import Framing
from bridge.fanout.history import History
from bridge.fanout.live import Live, Place
from bridge.fanout.segment import Filter

P = TypeVar("P", bound=Place)


class Piece(NamedTuple):
    """Some frames of a view."""

    frames: bytes
    positions: Sequence[int]
    """Those that they are of."""
    end: int
    """The position behind the last that was looked at."""


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

    def read(self, position: int, end: int, max_bytes: int) -> Piece:
        """What it shows from `position` on.

        Stops before `end`, before the frame that would make the piece larger than `max_bytes` but for the first, and
        where enough was looked at; so the piece may be empty. `position` must be in the log, and below `end`.
        """
        if self.filter is None and not self.ids:
            frames, reached = self._history.log.read(position, end, max_bytes)
            return Piece(frames, range(position, reached), reached)
        run: list[bytes] = []
        size = 0
        positions, reached = self._history.wanted(self.filter, position, end, notices=self.ids)
        for at in positions:
            frame = self._framing.frame(at, ids=self.ids)
            size += len(frame)
            if run and size > max_bytes:
                reached = at
                break
            run.append(frame)
        return Piece(b"".join(run), positions[: len(run)], reached)

    def split(self, positions: Sequence[int], taken: int) -> tuple[int, list[bytes | memoryview]]:
        """Where frames of these positions stopped of which only `taken` bytes were taken, which must be less than all.

        Returns the position of the first one that was not taken in full, and what is left of it.
        """
        ends = self._framing.ends(positions, ids=self.ids)
        at = bisect_right(ends, taken)
        before = ends[at - 1] if at else 0
        return positions[at], self._framing.rest(positions[at], taken - before, ids=self.ids)
