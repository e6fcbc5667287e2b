"""Makes the frames that clients receive for a position of the log: the frame in the log, with or without an id.

A frame with an id is encoded when it is sent. All clients that receive the same frame at about the same time share one
encoding. This module does no I/O.
"""

from collections.abc import Sequence
from itertools import accumulate

from bridge.broadcast.frames import payload_of, text_header
from bridge.broadcast.replay import CACHE_BYTES, BoundedCache, ReplayIndex
from bridge.contract.envelope import ending


class FrameEncoder:
    """Encodes the frames for the positions of an index, with or without ids."""

    def __init__(self, index: ReplayIndex) -> None:
        self._index = index
        self._with_ids: BoundedCache[bytes] = BoundedCache(CACHE_BYTES)
        self._last_ends: tuple[Sequence[int], bool, Sequence[int]] = ((), False, ())
        """The arguments and the result of the last call of `ends`."""

    def frame(self, position: int, *, ids: bool) -> bytes:
        """Returns the frame for a position. The frame is empty if clients receive nothing for this position."""
        frame = self._index.update_log.frame(position)
        if not ids:
            return frame
        if not frame:
            return self._index.own_message_at(position)
        with_id = self._with_ids.get(position)
        if with_id is None:
            with_id = b"".join(self._parts(position))
            self._with_ids.put(position, with_id, len(with_id))
            self._index.work_bytes += len(with_id)
        return with_id

    def ends(self, positions: Sequence[int], *, ids: bool) -> Sequence[int]:
        """Returns at which byte each frame would end if the frames of all positions were joined."""
        # The last result is kept, because many sockets can become full in the same flush, and each of these sockets
        # needs the same ends.
        if self._last_ends[0] is not positions or self._last_ends[1] is not ids:
            sizes = (len(self.frame(position, ids=ids)) for position in positions)
            self._last_ends = (positions, ids, list(accumulate(sizes)))
        return self._last_ends[2]

    def part(self, position: int, offset: int, max_bytes: int, *, ids: bool) -> tuple[bytes, bool]:
        """Returns the part of the frame that starts at `offset`, and whether the frame ends with this part.

        The part is a copy, because a view would keep the entire frame in memory after the log drops the frame.
        """
        frame = self._index.update_log.frame(position)
        parts: Sequence[bytes | memoryview]
        parts = self._parts(position) if ids and frame else (self.frame(position, ids=ids),)
        end, start = offset + max_bytes, 0
        found = []
        for part in parts:
            found.append(memoryview(part)[max(0, offset - start) : max(0, end - start)])
            start += len(part)
        return b"".join(found), end >= start

    def _parts(self, position: int) -> tuple[bytes, memoryview, bytes]:
        payload, end = payload_of(self._index.update_log.frame(position))[:-1], ending(str(self._index.id_of(position)))
        return text_header(len(payload) + len(end)), payload, end
