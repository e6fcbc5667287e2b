"""The id of an update. A client can ask for all updates after the update with a given id.

An id has a sequence and a tag, such as `1234-9f86d081`. The sequence grows from one update to the next. The tag
distinguishes updates that have the same sequence, but are from different logs. Two ids belong to the same update only
if both their sequences and their tags are equal.

With `BRIDGE_HISTORY=stream`, the sequence is the event's offset in the stream, and the tag is the CRC-32 of the event's
body. Bridges that read the same stream give an event the same id. If a stream is deleted and declared again, its
updates get different ids. Without a stream, the bridge counts its updates, and creates one tag when it starts.

Some ids are from before an update: they mean all updates from this one on. Clients get such an id if the bridge knows
no earlier update, and with a gap before the update.
"""

import re
from typing import NamedTuple

_PATTERN = re.compile(r"(before-)?(0|[1-9][0-9]{0,18})-([0-9a-f]{8})")


class UpdateId(NamedTuple):
    """The id of one update. As text, an id has at most 35 characters.

    An id is a tuple because creating a frozen dataclass takes three times as long, and a stream needs an id for each
    update.
    """

    sequence: int
    tag: int
    """The tag of the update log or of the event's body, in 32 bits."""
    before: bool = False
    """Whether the id is from before the update. A client that resumes after this id gets the update itself too."""

    def __str__(self) -> str:
        return f"{'before-' if self.before else ''}{self.sequence}-{self.tag:08x}"

    @classmethod
    def parse(cls, text: str) -> "UpdateId | None":
        """Returns the id that a text represents, or None if no bridge could have made this id."""
        match = _PATTERN.fullmatch(text)
        return None if match is None else cls(int(match[2]), int(match[3], 16), match[1] is not None)
