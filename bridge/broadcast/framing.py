"""Makes the frames that clients receive for a position of the log, in the form that their transport needs.

The log has each update as a frame without an id. All other frames are encoded when they are sent. All clients that
receive the same frame at about the same time share one encoding. This module does no I/O.
"""

from collections.abc import Sequence
from enum import Enum
from itertools import accumulate

from bridge.broadcast.frames import EVENT_END, event_block, event_start, payload_of, text_frame, text_header
from bridge.broadcast.replay import CACHE_BYTES, BoundedCache, ReplayIndex
from bridge.contract.envelope import ending


class Form(Enum):
    """The form in which a client receives updates. The value of each member of this enum is a description."""

    TEXT = "WebSocket messages, updates without ids"
    TEXT_WITH_ID = "WebSocket messages, updates with ids"
    EVENT = "Server-Sent Events, which always have ids"

    # `Enum.__hash__` is slow Python code, and each lookup of a subscription would call it.
    __hash__ = object.__hash__

    @property
    def has_ids(self) -> bool:
        """Whether updates have ids. Only clients with ids receive the bridge's own messages."""
        return self is not Form.TEXT

    def own_message(self, payload: bytes, id: str) -> bytes:  # noqa: A002 - the member's own name
        """Returns the frame of one of the bridge's own messages (UTF-8 JSON), which has `id` in its data."""
        return event_block(payload, id) if self is Form.EVENT else text_frame(payload)


class FrameEncoder:
    """Encodes the frames for the positions of an index, in each form."""

    def __init__(self, index: ReplayIndex) -> None:
        self._index = index
        self._encoded: dict[Form, BoundedCache[bytes]] = {
            form: BoundedCache(CACHE_BYTES) for form in Form if form.has_ids
        }
        self._last_ends: tuple[Sequence[int], Form, Sequence[int]] = ((), Form.TEXT, ())
        """The arguments and the result of the last call of `ends`."""

    def frame(self, position: int, form: Form) -> bytes:
        """Returns the frame for a position. The frame is empty if clients receive nothing for this position.

        A form with ids requires a position that holds an update or an own message.
        """
        if form is Form.TEXT:
            return self._index.update_log.frame(position)
        encoded = self._encoded[form]
        frame = encoded.get(position)
        if frame is None:
            frame = b"".join(self._parts(position, form))
            encoded.put(position, frame, len(frame))
            self._index.work_bytes += len(frame)
        return frame

    def ends(self, positions: Sequence[int], form: Form) -> Sequence[int]:
        """Returns at which byte each frame would end if the frames of all positions were joined."""
        # The last result is kept, because many sockets can become full in the same flush, and each of these sockets
        # needs the same ends.
        if self._last_ends[0] is not positions or self._last_ends[1] is not form:
            sizes = (len(self.frame(position, form)) for position in positions)
            self._last_ends = (positions, form, list(accumulate(sizes)))
        return self._last_ends[2]

    def part(self, position: int, offset: int, max_bytes: int, form: Form) -> tuple[bytes, bool]:
        """Returns the part of the frame that starts at `offset`, and whether the frame ends with this part.

        The part is a copy, because a view would keep the entire frame in memory after the log drops the frame.
        """
        end, start = offset + max_bytes, 0
        found = []
        for part in self._parts(position, form):
            found.append(memoryview(part)[max(0, offset - start) : max(0, end - start)])
            start += len(part)
        return b"".join(found), end >= start

    def _parts(self, position: int, form: Form) -> Sequence[bytes | memoryview]:
        frame = self._index.update_log.frame(position)
        if form is Form.TEXT:
            return (frame,)
        update_id = str(self._index.id_of(position))
        if not frame:
            return (form.own_message(self._index.own_message_at(position), update_id),)
        # The log has an envelope without an id. Its closing brace is replaced.
        payload, end = payload_of(frame)[:-1], ending(update_id)
        if form is Form.EVENT:
            return event_start(update_id), payload, end, EVENT_END
        return text_header(len(payload) + len(end)), payload, end
