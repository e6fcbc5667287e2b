"""Keeps the position of a reader in a stream.

The position shows whether a delivery is new, already read, or after a gap.

The broker numbers the entries of a stream. Not every entry is a message, because the broker also writes entries of its
own. Each message also has a tag that depends on its body. The tag distinguishes messages that have the same offset in
two different streams.

Each session begins with the last message that the previous session read. If the last message that was read is still in
the stream, the stream is the same as before, and no later message was dropped. This module works only with offsets and
tags; it uses no connection and no clock.
"""

from enum import Enum, auto

from bridge.contract.update_id import UpdateId

MAX_STEP = 2
"""The largest difference between the offsets of two successive messages.

The difference is 2 if the broker has written an entry of its own between the two messages.

RabbitMQ 3.10.8 writes one entry of its own at the start of each segment, and never two in a row. If a segment was
dropped, the difference is larger, because the segment contained the broker's entry and at least one message."""

RECREATED = "the stream was deleted and declared again"
TRUNCATED = "the stream reached its limit of age or size, and dropped events before the bridge read them"


class Verdict(Enum):
    """What the position in the stream says about a delivery."""

    NEW = auto()
    ALREADY_READ = auto()
    OTHER_STREAM = auto()
    """The delivery does not come from the stream that was read before.

    The session must end; the next session reads the new stream from its start.
    """
    POSSIBLE_GAP = auto()
    """More offsets are missing before this delivery than the broker's own entries can explain.

    The session must end. The next session starts with the last message that was read, and so finds out whether a
    message was dropped.
    """


class StreamPosition:
    """The position of a reader in a stream, over all sessions of the reader."""

    def __init__(self, window: int) -> None:
        """The first session starts to read at `window` offsets before the end of the stream."""
        self.last: UpdateId | None = None
        """The id of the message that was read last."""
        self.caught_up = False
        """True when all messages that were in the stream before the reader started have been read."""
        self.loss: str | None = None
        """The reason why messages were missed (TRUNCATED or RECREATED), until `take_loss` is called."""
        self.end = 0
        """The offset of the end of the stream when the session began."""
        self._window = window
        self._rereads_last = False
        """True until the session has read the message `last` again."""
        self._after_possible_gap: int | None = None
        """The offset of the delivery that was judged as POSSIBLE_GAP.

        If the next session also gets this offset directly after `last`, no message was dropped.
        """
        self._from_start = False

    @property
    def offset(self) -> int:
        """The offset of the last message that was read, or -1 if no message was read."""
        return -1 if self.last is None else self.last.sequence

    @property
    def at_end(self) -> bool:
        """True when all messages that were in the stream before the session have been read."""
        return self.offset >= self.end

    def begin_session(self, end: int) -> int:
        """Returns the offset from which the session reads. `end` is the offset of a marker that was just published."""
        if self.last is not None and end <= self.last.sequence:
            self._on_other_stream()
        self.end = end
        self._rereads_last = self.last is not None
        if self.last is not None:
            return self.last.sequence
        return 0 if self._from_start else max(0, end - self._window)

    def observe(self, offset: int, tag: int) -> Verdict:
        """Returns what the position says about the next delivery. If the delivery is NEW, its id becomes `last`."""
        if self._rereads_last:
            assert self.last is not None
            if offset < self.offset:
                return Verdict.ALREADY_READ
            self._rereads_last = False
            if offset > self.offset:
                self.loss = TRUNCATED
                return self._advance(offset, tag)
            if tag != self.last.tag:
                self._on_other_stream()
                return Verdict.OTHER_STREAM
        if offset <= self.offset:
            return Verdict.ALREADY_READ
        # Retention drops the oldest messages. The broker does not report the drop to a slow consumer. The next delivery
        # to the consumer is then simply the oldest remaining message.
        if self.last is not None and offset > self.offset + MAX_STEP and offset != self._after_possible_gap:
            self._after_possible_gap = offset
            return Verdict.POSSIBLE_GAP
        return self._advance(offset, tag)

    def catches_up(self, offset: int) -> bool:
        """Returns True once: when `offset` has reached the end that the stream had at the session's start."""
        if self.caught_up or offset < self.end:
            return False
        self.caught_up = True
        return True

    def take_loss(self) -> str:
        """Returns and clears `loss`, which must be set."""
        loss, self.loss = self.loss, None
        assert loss is not None
        return loss

    def _advance(self, offset: int, tag: int) -> Verdict:
        self.last = UpdateId(offset, tag)
        self._after_possible_gap = None
        return Verdict.NEW

    def _on_other_stream(self) -> None:
        self.last = None
        self._from_start = True
        self.loss = RECREATED
