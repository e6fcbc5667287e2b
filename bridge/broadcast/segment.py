"""What is known of some hundred positions of the log beside their frames.

Pure: a record, which whoever keeps it fills in.
"""

from array import array
from typing import Protocol

Content = tuple[str, object]
"""An update's type and data, for filters."""


class Filter(Protocol):
    """What a client wants of all updates. Hashable, and equal to those that want the same."""

    def matches(self, update_type: str, data: object) -> bool:
        """Whether it wants this one."""


class Segment:
    """A run of positions from `start` on, up to where the next one begins."""

    __slots__ = ("answers", "checks", "notices", "numbers", "others", "others_before", "size_bytes", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.size_bytes = 0
        """Once it is full."""
        self.others_before = 0
        """How many positions before it held no update."""
        self.numbers = array("Q")
        self.checks = array("I")
        """By position, where ids are not counted."""
        self.others: set[int] = set()
        """Positions of what is no update."""
        self.notices: dict[int, bytes] = {}
        """By position, the frames of those that are notices."""
        self.answers: dict[Filter, bytearray] = {}
        """By filter and position, 1 for an update that it matches; as far as it has been asked."""
