"""How far a stream has been read, and what that says of the next delivery: decided from offsets and checks alone.

An offset is a place in a stream, but not every place has a message: the broker keeps notes of its own in between. A
message is told from another stream's of the same offset by its check. What the reader last had is read once more at the
beginning of each life, which proves that nothing between was dropped, and that it is the same stream. This file must
never know of connections, clocks, or what a message means.
"""

from enum import Enum, auto

from bridge.contract.update_id import UpdateId

OWN_STEP = 2
"""From one message to the next across a note of the broker's own. RabbitMQ 3.10.8 writes one note at the beginning of
each segment, and never two in a row; a segment that is dropped takes its note and at least one message with it."""

REMADE = "the stream was deleted and made again"
DROPPED = "the stream has dropped events that the bridge had not read yet: they were older, or more, than it keeps"


class Verdict(Enum):
    """What a delivery is."""

    NEW = auto()
    KNOWN = auto()
    """One that was read before."""
    FOREIGN = auto()
    """Of another stream than the one that was read so far: to be left, and that one begun."""
    DOUBTFUL = auto()
    """Behind more missing places than the broker's notes take: to be left. The next life reads what was read last once
    more, which proves whether anything was dropped."""


class Course:
    """One reader's way through a stream, over all its lives."""

    def __init__(self, window: int) -> None:
        """`window`: how many places of what was there before the reader are looked at."""
        self.last: UpdateId | None = None
        """What was read last."""
        self.caught_up = False
        """True once all that was there before the reader has been read."""
        self.lost: str | None = None
        """Why events were missed, until it is taken back by whoever has said so."""
        self._window = window
        self._proving = False
        """The next delivery must be the last one again."""
        self._doubted: int | None = None
        """What was DOUBTFUL in the life before: where it follows the last one again, nothing is missing between."""
        self._from_start = False
        self.end = 0
        """The offset of this life's own mark."""

    @property
    def number(self) -> int:
        """The last one's; below all numbers where nothing was read of this stream."""
        return -1 if self.last is None else self.last.sequence

    @property
    def at_end(self) -> bool:
        """True once all is read that was there when this life began."""
        return self.number >= self.end

    def begin(self, end: int) -> int:
        """A life begins: returns the offset to read from. `end` is that of a message that was published just now."""
        if self.last is not None and end <= self.last.sequence:
            self._forget()
        self.end = end
        self._proving = self.last is not None
        if self.last is not None:
            return self.last.sequence
        return 0 if self._from_start else max(0, end - self._window)

    def judge(self, number: int, check: int) -> Verdict:
        """What a delivery is; NEW ones count as read from now on. To be called for each, in order."""
        if self._proving:
            assert self.last is not None
            if number < self.number:
                return Verdict.KNOWN
            self._proving = False
            if number > self.number:
                self.lost = DROPPED
                return self._read(number, check)
            if check != self.last.tag:
                self._forget()
                return Verdict.FOREIGN
        if number <= self.number:
            return Verdict.KNOWN
        # The broker drops the oldest first. A reader that is slower than that goes on with what is left, and nobody is
        # told.
        if self.last is not None and number > self.number + OWN_STEP and number != self._doubted:
            self._doubted = number
            return Verdict.DOUBTFUL
        return self._read(number, check)

    def catch_up(self, number: int) -> bool:
        """True once: where all that was there before the reader has a smaller number."""
        if self.caught_up or number < self.end:
            return False
        self.caught_up = True
        return True

    def _read(self, number: int, check: int) -> Verdict:
        self.last = UpdateId(number, check)
        self._doubted = None
        return Verdict.NEW

    def _forget(self) -> None:
        self.last = None
        self._from_start = True
        self.lost = REMADE
