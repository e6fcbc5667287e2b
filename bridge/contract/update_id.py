"""The id of an update, with which a client can ask for everything after that update.

An id has a sequence and a tag, as in `1234-9f86d081`. The sequence grows from one update to the next. The tag tells two
logs apart: two updates with the same sequence are the same update only if their tags are equal too.

With `BRIDGE_HISTORY=stream`, the sequence is the event's offset in the stream, and the tag is the CRC-32 of its body.
Each bridge on that stream therefore gives the same ids. If the stream was deleted and declared again, its ids differ
from those of the old stream. Without a stream, the bridge counts its updates, and the tag is that of its start.
"""

import re
from typing import NamedTuple

_PATTERN = re.compile(r"(0|[1-9][0-9]{0,18})-([0-9a-f]{8})")


class UpdateId(NamedTuple):
    """The id of one update. Its text has at most 28 characters.

    A tuple, because with a stream one is made for each update, and a frozen dataclass takes three times as long.
    """

    sequence: int
    tag: int
    """32 bits."""

    def __str__(self) -> str:
        return f"{self.sequence}-{self.tag:08x}"

    @classmethod
    def parse(cls, text: str) -> "UpdateId | None":
        """The id in a text, or None if no bridge can have given this text as an id."""
        match = _PATTERN.fullmatch(text)
        return None if match is None else cls(int(match[1]), int(match[2], 16))
