"""Parses the body of a response with Server-Sent Events, as the HTML standard describes it.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re
from dataclasses import dataclass

MAX_BLOCK_BYTES = 2**30
"""The default limit of a block in bytes. A bridge can be configured for events of up to 512 MiB."""

_LINE_BREAK = re.compile(rb"\r\n|\r|\n")

_RETRY = re.compile(r"[0-9]{1,9}")
"""Matches a pause in milliseconds. A longer number is ignored, because nobody waits for 11 days."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event."""

    type: str
    """The value of `event:`, or `message` if there was none."""
    data: str
    last_id: str
    """The value of the newest `id:` so far, or an empty text."""


class BlockTooLarge(ValueError):
    """The lines before an empty line have more bytes than the limit."""


class EventParser:
    """Parses a body that arrives in pieces of any size."""

    def __init__(self, max_block_bytes: int = MAX_BLOCK_BYTES) -> None:
        self.retry_ms: int | None = None
        """The value of the newest `retry:`, in milliseconds, or None if there was none."""
        self._max_block_bytes = max_block_bytes
        self._is_first_line = True
        self._ends_with_cr = False
        self._rest: list[bytes] = []
        """The pieces of the last line, which has no line break yet."""
        self._block_bytes = 0
        self._has_fields = False
        self._type = ""
        self._data: list[str] = []
        self._last_id = ""

    @property
    def is_in_block(self) -> bool:
        """Whether the bytes so far end inside a block. If the body ends here, the event of the block is lost."""
        return self._has_fields or bool(self._rest and not self._rest[0].startswith(b":"))

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """Returns the events that end in the next piece of the body. Raises BlockTooLarge."""
        if not piece:
            return []
        if self._ends_with_cr:
            # The carriage return has ended its line. A line feed after it belongs to the same line break.
            piece = piece.removeprefix(b"\n")
        self._ends_with_cr = piece.endswith(b"\r")
        *lines, rest = _LINE_BREAK.split(piece)
        events = []
        for end in lines:
            self._count(end)
            line = b"".join([*self._rest, end])
            self._rest.clear()
            event = self._event_at(line)
            if event is not None:
                events.append(event)
        if rest:
            self._count(rest)
            self._rest.append(rest)
        return events

    def _count(self, part: bytes) -> None:
        self._block_bytes += len(part)
        if self._block_bytes > self._max_block_bytes:
            raise BlockTooLarge

    def _event_at(self, line: bytes) -> ServerSentEvent | None:
        """Processes a line, and returns the event that the line ends, if any."""
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._end_block()
        name, _, value = line.decode(errors="replace").partition(":")
        if not name:
            # A comment does not belong to the block, and a bridge sends comments for as long as it has no update.
            self._block_bytes -= len(line)
            return None
        self._has_fields = True
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._last_id = value
        elif name == "retry" and _RETRY.fullmatch(value):
            self.retry_ms = int(value)
        return None

    def _end_block(self) -> ServerSentEvent | None:
        data, update_type = self._data, self._type or "message"
        self._block_bytes, self._has_fields, self._type, self._data = 0, False, "", []
        return ServerSentEvent(update_type, "\n".join(data), self._last_id) if data else None
