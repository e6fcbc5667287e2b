"""What clients are sent of a position of the log, byte for byte: the frame as it is there, or one with its id.

Those with ids are made when they are wanted, once for all that want them at the same time. Pure.
"""

from collections.abc import Sequence
from itertools import accumulate

from bridge.broadcast.frames import payload_of, text_head
from bridge.broadcast.replay import RECENT_BYTES, BoundedCache, ReplayIndex
from bridge.contract.envelope import ending


class FrameEncoder:
    """The frames of a history."""

    def __init__(self, index: ReplayIndex) -> None:
        self._index = index
        self._framed: BoundedCache[bytes] = BoundedCache(RECENT_BYTES)
        self._measured: tuple[Sequence[int], bool, Sequence[int]] = ((), False, ())
        """What was asked for last of `ends`, and its answer."""

    def frame(self, position: int, *, ids: bool) -> bytes:
        """What a client is sent of a position, with its id if it wants that; nothing of what is not for it."""
        frame = self._index.log.frame(position)
        if not ids:
            return frame
        if not frame:
            return self._index.own_message_at(position)
        framed = self._framed.get(position)
        if framed is None:
            framed = b"".join(self._parts(position))
            self._framed.put(position, framed, len(framed))
            self._index.work_bytes += len(framed)
        return framed

    def ends(self, positions: Sequence[int], *, ids: bool) -> Sequence[int]:
        """Where each of the frames of these positions ends, in bytes, one behind the other."""
        # Many stop in the same frames at the same time.
        if self._measured[0] is not positions or self._measured[1] is not ids:
            sizes = (len(self.frame(position, ids=ids)) for position in positions)
            self._measured = (positions, ids, list(accumulate(sizes)))
        return self._measured[2]

    def part(self, position: int, offset: int, max_bytes: int, *, ids: bool) -> tuple[bytes, bool]:
        """A part of the frame that starts at `offset`, and whether the frame ends with it.

        The part is a copy. A view would keep the entire frame in memory after the log drops it.
        """
        frame = self._index.log.frame(position)
        parts: Sequence[bytes | memoryview]
        parts = self._parts(position) if ids and frame else (self.frame(position, ids=ids),)
        end, start = offset + max_bytes, 0
        found = []
        for part in parts:
            found.append(memoryview(part)[max(0, offset - start) : max(0, end - start)])
            start += len(part)
        return b"".join(found), end >= start

    def _parts(self, position: int) -> tuple[bytes, memoryview, bytes]:
        payload, end = payload_of(self._index.log.frame(position))[:-1], ending(str(self._index.id_of(position)))
        return text_head(len(payload) + len(end)), payload, end
