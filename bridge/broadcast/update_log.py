"""The shared log: the most recent framed updates, bounded in bytes, read by every connection from its own position.

Pure: it knows neither connections nor time. Positions count up from 0 and are never used twice. A frame may be empty:
its position is for others than those who read everything from here (see `history`).
"""

ENTRY_BYTES = 174
"""What an entry costs beside its frame (CPython 3.11, 64 bit): 33 for the bytes object, 32 for the position, about 95
for a slot of the dict, and 14 for what `history` knows of it. Counted, because the log's bound is there to bound
memory."""


class UpdateLog:
    """Frames at the positions from `tail` up to, but not including, `head`."""

    __slots__ = ("_beside", "_frames", "head", "max_bytes", "size_bytes", "tail")

    def __init__(self, max_bytes: int) -> None:
        # A dict by position, not a deque: a slow connection reads from the middle.
        self._frames: dict[int, bytes] = {}
        self._beside: dict[int, int] = {}
        self.max_bytes = max_bytes
        self.head = 0
        self.tail = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return self.head - self.tail

    def append(self, frame: bytes, beside_bytes: int = 0) -> None:
        """Adds the newest frame, and drops the oldest ones that no longer fit. The newest always stays.

        `beside_bytes` is what somebody keeps for it elsewhere, and as long.
        """
        if beside_bytes:
            self._beside[self.head] = beside_bytes
        self._frames[self.head] = frame
        self.head += 1
        self.size_bytes += len(frame) + ENTRY_BYTES + beside_bytes
        while self.size_bytes > self.max_bytes and self.head - self.tail > 1:
            self.size_bytes -= len(self._frames.pop(self.tail)) + ENTRY_BYTES + self._beside.pop(self.tail, 0)
            self.tail += 1

    def frame(self, position: int) -> bytes:
        """The frame at a position that is in the log; empty where there is nothing for everybody."""
        return self._frames[position]

    def read(self, position: int, end: int, max_bytes: int) -> tuple[bytes, int]:
        """The frames from `position` on in one piece, and the position after the last of them.

        Stops before `end`, and before the frame that would make the piece larger than `max_bytes`, but holds one frame
        at least. `position` must be in the log, and below `end`.
        """
        frames = self._frames
        first = frames[position]
        position += 1
        size = len(first)
        if position == end or size >= max_bytes:
            return first, position
        run = [first]
        while position < end:
            frame = frames[position]
            size += len(frame)
            if size > max_bytes:
                break
            run.append(frame)
            position += 1
        return b"".join(run), position
