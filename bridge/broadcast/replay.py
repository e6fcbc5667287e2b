"""What the log holds, and not only its bytes: which id each position has, and which of them a filter matches.

In segments of some hundreds of positions, which go when the log has dropped all that they tell of. What a filter said
of a segment stays with it: it is asked once, however many clients of the same filter come by. Some positions hold no
update but a *mark*, an id that a client may resume after, or a *notice*, which clients with ids get and others don't.

Pure: it knows neither connections nor time.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import compress, pairwise
from typing import Generic, Protocol, TypeVar

from bridge.broadcast.frames import payload_of, text_frame
from bridge.broadcast.update_log import ENTRY_BYTES, UpdateLog
from bridge.contract.envelope import unwrap
from bridge.contract.update_id import UpdateId

FilterInput = tuple[str, object]
"""An update's type and data, for filters."""

V = TypeVar("V")

RECENT_BYTES = 2**19
"""Of the data of updates, and of frames with ids: so much of each."""

SEGMENT_UPDATES = 256
"""Positions of a segment: what a filter is asked at once takes half a millisecond."""

SEGMENT_BYTES = 65536
"""The same for large updates: behind so many bytes a new segment begins."""

REPLAY_MARGIN = 8
"""Who is given all that is kept begins behind an eighth of what the log can hold: otherwise the next update would drop
what it is to get first."""

MAX_CACHED_FILTERS = 32
"""Filters whose answers are kept for a segment: with the default log, 2 MB in all. More are asked again."""

MATCH_COST_BYTES = 128
"""What a filter's answer counts for in `History.work_bytes`: about 0.4 microseconds, in which so much JSON is read."""

CACHED_COST_BYTES = 1024
"""What it counts for to look at the answers of a segment that are known."""


class UpdateFilter(Protocol):
    """What a client wants of all updates. Hashable, and equal to those that want the same."""

    def matches(self, update_type: str, data: object) -> bool:
        """Whether it wants this one."""


class Segment:
    """A run of positions from `start` on, up to where the next one begins."""

    __slots__ = (
        "match_cache",
        "non_updates",
        "non_updates_before",
        "own_messages",
        "sequences",
        "size_bytes",
        "start",
        "tags",
    )

    def __init__(self, start: int) -> None:
        self.start = start
        self.size_bytes = 0
        """Once it is full."""
        self.non_updates_before = 0
        """How many positions before it held no update."""
        self.sequences = array("Q")
        self.tags = array("I")
        """By position, where ids are not counted."""
        self.non_updates: set[int] = set()
        """Positions of what is no update."""
        self.own_messages: dict[int, bytes] = {}
        """By position, the frames of those that are notices."""
        self.match_cache: dict[UpdateFilter, bytearray] = {}
        """By filter and position, 1 for an update that it matches; as far as it has been asked."""


class BoundedCache(Generic[V]):
    """Some values by position."""

    __slots__ = ("_max_bytes", "_size_bytes", "_values")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        # Not a dict: one that is always emptied from the front gets slower with every key that was there before.
        self._values: OrderedDict[int, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, position: int) -> V | None:
        """The value; None where it is not there any more."""
        found = self._values.get(position)
        return None if found is None else found[0]

    def put(self, position: int, value: V, size_bytes: int) -> None:
        """Adds one that is not there."""
        self._values[position] = (value, size_bytes)
        self._size_bytes += size_bytes
        while self._size_bytes > self._max_bytes and len(self._values) > 1:
            _, (_, gone_bytes) = self._values.popitem(last=False)
            self._size_bytes -= gone_bytes


class ReplayIndex:
    """A log whose positions have ids."""

    def __init__(self, log: UpdateLog, tag: int | None = None) -> None:
        """`tag` is that of all ids, which are counted from 1; None where each position comes with its own."""
        self.log = log
        self._tag = tag
        self._segments = [Segment(0)]
        self._full_at = SEGMENT_UPDATES
        """The position at which the next segment begins,"""
        self._room = SEGMENT_BYTES
        """and how many bytes may come before that, if fewer."""
        self._kept = 0
        """Where the second segment begins."""
        self._newest = UpdateId(0, 0)
        """The last id that came with its position."""
        self._last_non_update = -1
        """The last position that holds no update."""
        self._contents: BoundedCache[FilterInput] = BoundedCache(RECENT_BYTES)
        self.work_bytes = 0
        """What was read, asked and written here for clients that are behind or filter: it only grows."""

    def append(
        self, frame: bytes, update_id: UpdateId | None = None, content: FilterInput | None = None, extra_bytes: int = 0
    ) -> None:
        """Adds an update's frame; `given` is its id, where ids are not counted here. An empty frame is no update.

        `content` is what it holds, where somebody will ask for it; `extra_bytes` is kept for it elsewhere.
        """
        log = self.log
        if content is not None:
            self._contents.put(log.head, content, len(frame))
        # Within a segment numbers grow; but a notice bears the one before it.
        again = update_id is not None and update_id.sequence <= self._newest.sequence and update_id != self._newest
        if log.head >= self._full_at or self._room <= 0 or again:
            self._begin(log.head)
        if update_id is not None:
            self._newest = update_id
            self._segments[-1].sequences.append(update_id.sequence)
            self._segments[-1].tags.append(update_id.tag)
        self._room -= len(frame) + extra_bytes
        log.append(frame, extra_bytes)
        if log.tail > self._kept:
            self._drop()

    def record_id(self, update_id: UpdateId) -> None:
        """Adds an id that belongs to no update."""
        position = self._last_non_update = self.log.head
        self.append(b"", update_id)
        self._segments[-1].non_updates.add(position)

    def append_own_message(self, payload: bytes) -> None:
        """Adds something for clients with ids alone. Who has had it resumes before it: it has no id of its own."""
        position = self._last_non_update = self.log.head
        frame = text_frame(payload)
        self.append(b"", None if self._tag is not None else self._newest, extra_bytes=len(frame))
        self._segments[-1].non_updates.add(position)
        self._segments[-1].own_messages[position] = frame

    def _begin(self, position: int) -> None:
        last = self._segments[-1]
        last.size_bytes = SEGMENT_BYTES - self._room + ENTRY_BYTES * (position - last.start)
        self._segments.append(Segment(position))
        self._segments[-1].non_updates_before = last.non_updates_before + len(last.non_updates)
        self._full_at, self._room = position + SEGMENT_UPDATES, SEGMENT_BYTES
        self._kept = self._segments[1].start

    def _drop(self) -> None:
        # The position before the tail is kept: who has had that one misses nothing.
        while len(self._segments) > 1 and self._segments[1].start < self.log.tail:
            del self._segments[0]
        self._kept = self._segments[1].start if len(self._segments) > 1 else self._full_at

    def is_ahead(self, sought: UpdateId) -> bool:
        """Whether an id may be one that is still to come: another bridge on the same stream may have had it first."""
        return self._tag is None and sought.sequence > self._newest.sequence and self._find(sought) is None

    def after(self, sought: UpdateId) -> int | None:
        """The position behind an id; None where it is unknown, or where what is behind it is not kept any more."""
        position = self._find(sought)
        return position + 1 if position is not None and position + 1 >= self.log.tail else None

    def _find(self, sought: UpdateId) -> int | None:
        if self._tag is not None:
            # Before the first there is nothing that anybody could have missed.
            return sought.sequence - 1 if sought.tag == self._tag and sought.sequence <= self.log.head else None
        for segment in reversed(self._segments):
            if not segment.sequences or segment.sequences[0] > sought.sequence:
                continue
            # The first one: notices behind it bear it too, and may be all that there is of it in this segment.
            at = bisect_left(segment.sequences, sought.sequence)
            known = at < len(segment.sequences) and (segment.sequences[at], segment.tags[at]) == sought
            if known and segment.start + at not in segment.own_messages:
                return segment.start + at
        return None

    @property
    def newest_sequence(self) -> int:
        """Of the last id that came with its position."""
        return self._newest.sequence

    @property
    def oldest(self) -> int:
        """The position from which on everything stays for a while: the tail, where there is room left in the log."""
        log = self.log
        needed = log.max_bytes // REPLAY_MARGIN - (log.max_bytes - log.size_bytes)
        position = log.tail
        for segment, following in pairwise(self._segments):
            if needed <= 0:
                break
            # Of the first, most may be gone already.
            kept = (following.start - position) / (following.start - segment.start)
            needed -= int(segment.size_bytes * kept)
            position = following.start
        return position

    def before(self, position: int) -> UpdateId:
        """The id that a client has had last for whom this position, of the log or its head, is the next."""
        return self.id_of(position - 1) if position or self._tag is not None else UpdateId(0, 0)

    def id_of(self, position: int) -> UpdateId:
        """The id of a position."""
        if self._tag is not None:
            return UpdateId(position + 1, self._tag)
        segment = self._segment(position)
        return UpdateId(segment.sequences[position - segment.start], segment.tags[position - segment.start])

    def own_message_at(self, position: int) -> bytes:
        """The frame of a notice; empty where there is none."""
        return self._segment(position).own_messages.get(position, b"")

    def content(self, position: int) -> FilterInput:
        """An update's type and data."""
        content = self._contents.get(position)
        if content is None:
            frame = self.log.frame(position)
            content = unwrap(payload_of(frame))
            self._contents.put(position, content, len(frame))
            self.work_bytes += len(frame)
        return content

    def updates(self, start: int, end: int) -> Sequence[int]:
        """Those of the positions that hold updates."""
        if start > self._last_non_update:
            return range(start, end)
        segments = self._segments[self._index(start) :]
        others = {position for segment in segments for position in segment.non_updates}
        return [position for position in range(start, end) if position not in others]

    def has_own_message(self, start: int, end: int) -> bool:
        """Whether there is a notice at any of the positions."""
        if start > self._last_non_update:
            return False
        segments = self._segments[self._index(start) :]
        return any(start <= position < end for segment in segments for position in segment.own_messages)

    def matching(
        self, update_filter: UpdateFilter | None, start: int, end: int, *, own_messages: bool
    ) -> tuple[Sequence[int], int]:
        """Those positions from `start` on that a client wants, and where the answer ends: at `end` or before it.

        `start` is below `end`. One segment is looked at, so that a filter that has much to look at does not hold up
        everybody else.
        """
        segment, end = self._segment(start), self._end(start, end)
        found: Sequence[int] = range(start, end)
        if update_filter is not None:
            found = list(compress(found, self._matches(segment, update_filter, end)[start - segment.start :]))
        elif segment.non_updates:
            found = [position for position in found if position not in segment.non_updates]
        if own_messages and segment.own_messages:
            found = sorted({*found, *(position for position in segment.own_messages if start <= position < end)})
        return found, end

    def count(self, update_filter: UpdateFilter | None, start: int, end: int) -> tuple[int, int]:
        """How many updates from `start` on a client wants, and where the answer ends: at `end` or before it.

        Goes on as long as the answers are known, and asks for those of one segment beside.
        """
        if update_filter is None:
            return end - start - self._non_updates_before(end) + self._non_updates_before(start), end
        count, asked = 0, False
        while start < end:
            segment, until = self._segment(start), self._end(start, end)
            if len(segment.match_cache.get(update_filter, b"")) < until - segment.start:
                if asked:
                    break
                asked = True
            answer = self._matches(segment, update_filter, until)
            count += answer.count(1, start - segment.start, until - segment.start)
            self.work_bytes += CACHED_COST_BYTES
            start = until
        return count, start

    def _non_updates_before(self, position: int) -> int:
        """How many positions before this one hold no update."""
        segment = self._segment(position)
        return segment.non_updates_before + sum(other < position for other in segment.non_updates)

    def forget(self, nobodys: UpdateFilter) -> None:
        """To be called when no client has a filter any more."""
        for segment in self._segments:
            segment.match_cache.pop(nobodys, None)

    def _matches(self, segment: Segment, update_filter: UpdateFilter, end: int) -> bytearray:
        """Up to `end` at least, by position: 1 for an update that is wanted."""
        answers = segment.match_cache
        answer = answers.get(update_filter)
        if answer is None:
            if len(answers) >= MAX_CACHED_FILTERS:
                del answers[next(iter(answers))]
            answer = answers[update_filter] = bytearray()
        # What has been dropped meanwhile nobody asks for.
        dropped = min(self.log.tail, end) - (segment.start + len(answer))
        if dropped > 0:
            answer.extend(bytes(dropped))
        for position in range(segment.start + len(answer), end):
            answer.append(position not in segment.non_updates and update_filter.matches(*self.content(position)))
            self.work_bytes += MATCH_COST_BYTES
        return answer

    def _segment(self, position: int) -> Segment:
        return self._segments[self._index(position)]

    def _end(self, position: int, end: int) -> int:
        """Of the segment of a position, but not beyond `end`."""
        behind = self._index(position) + 1
        return min(end, self._segments[behind].start) if behind < len(self._segments) else end

    def _index(self, position: int) -> int:
        return bisect_right(self._segments, position, key=_start) - 1


def _start(segment: Segment) -> int:
    return segment.start
