"""What clients that asked for the same are sent of the log: all of it, or what a filter matches, with ids or without.

Who asked for nothing sees the log as it is. All others share a view with those that asked for the same, so that an
update is looked at once for each of them. This file must never know how bytes reach a socket.
"""

from typing import Generic, TypeVar

from bridge.fanout.history import Filter, History
from bridge.fanout.live import Live, Place

P = TypeVar("P", bound=Place)


class View(Generic[P]):
    """The log as some connections see it, and those of them that have had everything."""

    __slots__ = ("_history", "filter", "ids", "live", "members")

    def __init__(self, history: History, wanted: Filter | None, ids: bool) -> None:
        """`wanted` None wants everything."""
        self._history = history
        self.filter = wanted
        self.ids = ids
        self.live: Live[P] = Live()
        self.members = 0
        """All of its connections, also those that are behind."""

    @property
    def is_plain(self) -> bool:
        """True for the log as it is."""
        return self.filter is None and not self.ids

    def read(self, position: int, end: int, max_bytes: int) -> tuple[bytes, int]:
        """What it shows from `position` on in one piece, and the position after the last that was looked at.

        Stops before `end`, before the frame that would make the piece larger than `max_bytes` but for the first, and
        where enough was looked at; so the piece may be empty. `position` must be in the log, and below `end`.
        """
        if self.is_plain:
            return self._history.log.read(position, end, max_bytes)
        run: list[bytes] = []
        size = 0
        positions, reached = self._history.wanted(self.filter, position, end, notices=self.ids)
        for at in positions:
            frame = self._history.frame(at, ids=self.ids)
            size += len(frame)
            if run and size > max_bytes:
                return b"".join(run), at
            run.append(frame)
        return b"".join(run), reached

    def split(self, position: int, end: int, taken: int) -> tuple[int, memoryview]:
        """Where a piece stopped that was read from `position` up to `end`, and of which only `taken` bytes were taken.

        Returns the position of the first frame that was not taken in full, and what is left of it. `taken` must be less
        than the piece.
        """
        if self.is_plain:
            return self._history.log.split(position, taken)
        positions, reached = self._history.wanted(self.filter, position, end, notices=self.ids)
        for at in positions:
            frame = self._history.frame(at, ids=self.ids)
            if taken < len(frame):
                return at, memoryview(frame)[taken:]
            taken -= len(frame)
        return self.split(reached, end, taken)
