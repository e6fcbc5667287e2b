"""What an update is known by, so that a client can ask for everything after it.

An id is a number and a check, as in `1234-9f86d081`. Numbers grow from one update to the next; the check says that two
updates of the same number are the same one. Where RabbitMQ keeps the history, the number is the event's offset in the
stream and the check the CRC-32 of its body: every bridge on that stream comes to the same ids by itself, and an id of a
stream that was deleted and made again is not taken for one of the new stream's. Elsewhere the check is of the bridge's
own start.
"""

import re
from typing import NamedTuple

PATTERN = re.compile(r"(0|[1-9][0-9]{0,18})-([0-9a-f]{8})")


class Id(NamedTuple):
    """One update's id."""

    number: int
    check: int
    """32 bits."""

    def __str__(self) -> str:
        return f"{self.number}-{self.check:08x}"


def read(text: str) -> Id | None:
    """The id that a client gives back; None for what no bridge has ever given out."""
    match = PATTERN.fullmatch(text)
    return None if match is None else Id(int(match[1]), int(match[2], 16))
