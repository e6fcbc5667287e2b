"""The log that all connections share. The log holds the most recent updates as frames, up to a maximum size in bytes.

Each connection reads the log from its own position. The module is pure: it has no connections and no clock. Positions
count up from 0 and are never used twice. A frame is empty if its position holds one of the bridge's own messages, or an
id without an update (see `replay`).
"""

ENTRY_BYTES = 174
"""The memory that an entry takes besides its frame, in bytes (CPython 3.11, 64 bit): 33 for the bytes object, 32 for
the position, about 95 for a slot of the dict, and 14 in the `ReplayIndex`. These bytes count towards the maximum size
of the log, because this maximum limits the use of memory."""


class UpdateLog:
    """The frames at the positions from `tail` up to, but not including, `head`."""

    __slots__ = ("_extra_bytes", "_frames", "flush_start", "flushed", "head", "max_bytes", "size_bytes", "tail")

    def __init__(self, max_bytes: int) -> None:
        # The frames are in a dict by position, not in a deque, because a slow connection reads from the middle of the
        # log.
        self._frames: dict[int, bytes] = {}
        self._extra_bytes: dict[int, int] = {}
        self.max_bytes = max_bytes
        self.head = 0
        self.tail = 0
        self.flushed = 0
        """The position up to which the live connections have received all frames."""
        self.flush_start = 0
        """The position at which the last call of `flush` began."""
        self.size_bytes = 0

    def __len__(self) -> int:
        return self.head - self.tail

    def append(self, frame: bytes, extra_bytes: int = 0) -> None:
        """Adds the newest frame, and drops the oldest frames if they no longer fit into the log.

        The newest frame always stays. `extra_bytes` is the size of the memory that the caller uses elsewhere while the
        log holds the frame.
        """
        if extra_bytes:
            self._extra_bytes[self.head] = extra_bytes
        self._frames[self.head] = frame
        self.head += 1
        self.size_bytes += len(frame) + ENTRY_BYTES + extra_bytes
        while self.size_bytes > self.max_bytes and self.head - self.tail > 1:
            self.size_bytes -= len(self._frames.pop(self.tail)) + ENTRY_BYTES + self._extra_bytes.pop(self.tail, 0)
            self.tail += 1

    def frame(self, position: int) -> bytes:
        """Returns the frame at a position that is in the log. The frame is empty if the position holds no update."""
        return self._frames[position]

    def read(self, position: int, end: int, max_bytes: int) -> tuple[bytes, int]:
        """Returns one piece with the frames from `position` on, and the position after the last of these frames.

        The piece ends before `end`, and before the frame that would make the piece larger than `max_bytes`. The piece
        contains at least one frame. `position` must be in the log, and below `end`.
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

    def flush(self, end: int, max_bytes: int) -> bytes:
        """Returns the next frames for the live connections, and counts these frames as flushed.

        `end` must be greater than `flushed`. See `read` for where the piece ends.
        """
        self.flush_start = self.flushed
        frames, self.flushed = self.read(self.flushed, end, max_bytes)
        return frames

    def skip(self) -> None:
        """Counts all frames as flushed."""
        self.flushed = self.head
