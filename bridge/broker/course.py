"""How far a stream has been read, and what that says of the next delivery: decided from offsets and checks alone.

An offset is a place in a stream, but not every place has a message: the broker keeps notes of its own in between. A
message is told from another stream's of the same offset by its check. What the reader last had is read once more at the
beginning of each life, which proves that nothing between was dropped, and that it is the same stream. This file must
never know of connections, clocks, or what a message means.
"""

from enum import Enum, auto

from bridge.contract.ids import Id

REMADE = "the stream was deleted and made again"
DROPPED = "the stream has dropped events that the bridge had not read yet: they were older, or more, than it keeps"

AWAY = "the broker was away, and may have confirmed events on its return before the stream took them"
"""RabbitMQ 3.10.8, killed and started again, did so for 0.3 s: with its listener open, and the stream's leader not
elected yet, a message for it was confirmed and dropped."""


class Verdict(Enum):
    """What a delivery is."""

    NEW = auto()
    KNOWN = auto()
    """One that was read before."""
    FOREIGN = auto()
    """Of another stream than the one that was read so far: to be left, and that one begun."""


class Course:
    """One reader's way through a stream, over all its lives."""

    def __init__(self, window: int) -> None:
        """`window`: how many places of what was there before the reader are looked at."""
        self.last: Id | None = None
        """What was read last."""
        self.caught_up = False
        """True once all that was there before the reader has been read."""
        self.lost: str | None = None
        """Why events may have been missed, until it is taken back by whoever has said so."""
        self._window = window
        self._number = -1
        """The last one's number; below all numbers where nothing was read of this stream."""
        self._proving = False
        """The next delivery must be the last one again."""
        self._from_start = False
        self._end = 0

    def begin(self, end: int) -> int:
        """A life begins: returns the offset to read from. `end` is that of a message that was published just now."""
        if self.last is not None and end <= self.last.number:
            self._forget()
        self._end = end
        self._proving = self.last is not None
        if self.last is not None:
            return self.last.number
        return 0 if self._from_start else max(0, end - self._window)

    def doubt(self, reason: str | None) -> None:
        """Says why events may have been missed, where nothing worse is known by now."""
        if self.lost is None:
            self.lost = reason

    def judge(self, number: int, check: int) -> Verdict:
        """What a delivery is; NEW ones count as read from now on. To be called for each, in order."""
        if self._proving:
            assert self.last is not None
            if number < self._number:
                return Verdict.KNOWN
            self._proving = False
            if number > self._number:
                self.lost = DROPPED
            elif check != self.last.check:
                self._forget()
                return Verdict.FOREIGN
        if number <= self._number:
            return Verdict.KNOWN
        self._number = number
        self.last = Id(number, check)
        return Verdict.NEW

    def catch_up(self, number: int) -> bool:
        """True once: where all that was there before the reader has a smaller number."""
        if self.caught_up or number < self._end:
            return False
        self.caught_up = True
        return True

    def _forget(self) -> None:
        self.last = None
        self._number = -1
        self._from_start = True
        self.lost = REMADE
