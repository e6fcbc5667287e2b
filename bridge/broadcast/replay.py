"""The index of the log, which maps positions to ids, to the bridge's own messages, and to the matches of filters.

The positions are divided into segments, which have some hundreds of positions each. The index drops a segment when the
log has dropped all positions of the segment. Each segment caches the matches of a filter, so that the filter is applied
to the segment only once, even if many clients resume with this filter. Some positions hold no update: they hold one of
the bridge's own messages to clients with ids, or only an id after which a client can resume. Each position has an id.

The module is pure: it has no connections and no clock.
"""

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import compress, pairwise
from typing import Generic, Protocol, TypeVar

from bridge.broadcast.frames import payload_of
from bridge.broadcast.update_log import ENTRY_BYTES, UpdateLog
from bridge.contract.envelope import unwrap
from bridge.contract.update_id import UpdateId

SEGMENT_UPDATES = 256
"""The maximum number of positions in a segment.

Applying a filter to all positions of a segment takes half a millisecond.
"""

SEGMENT_BYTES = 65536
"""A segment ends when its frames reach this total size, even if it has fewer than `SEGMENT_UPDATES` positions."""

REPLAY_MARGIN = 8
"""A full replay skips the oldest eighth of the log, because the next updates would evict this part first."""

MAX_CACHED_FILTERS = 32
"""The maximum number of filters whose matches a segment caches.

With the default size of the log, the cached matches of all segments take 2 MB. If the matches of a filter are not
cached, the filter is applied again for each client.
"""

MATCH_COST_BYTES = 128
"""The number of bytes that one filter call adds to `ReplayIndex.work_bytes`.

A filter call takes 0.4 us. Parsing 128 bytes of JSON takes the same time.
"""

CACHED_COST_BYTES = 1024
"""The number of bytes that a lookup in the cached matches of a segment adds to `ReplayIndex.work_bytes`."""

CACHE_BYTES = 2**19
"""The maximum size, in bytes, of the cache for filter inputs, and also of the cache for frames with ids."""

START = UpdateId(0, 0, before=True)
"""The id that clients get before the first entry, if the index does not assign the ids."""

FilterInput = tuple[str, object]
"""The type and the data of an update."""

V = TypeVar("V")


class UpdateFilter(Protocol):
    """Selects updates. A filter is hashable. Two filters that select the same updates are equal."""

    def matches(self, update_type: str, data: object) -> bool:
        """Whether the filter selects an update."""


class Segment:
    """A part of the index, for the consecutive positions from `start` up to the start of the next segment."""

    __slots__ = (
        "before",
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
        """The memory that the segment's positions take in the log. This size is set when the next segment begins."""
        self.non_updates_before = 0
        """The number of positions before the segment that hold no update."""
        self.sequences = array("Q")
        """The sequence number of each position. `sequences` and `tags` are empty if the index assigns the ids."""
        self.tags = array("I")
        self.non_updates: set[int] = set()
        """The positions that hold no update."""
        self.own_messages: dict[int, bytes] = {}
        """The bridge's own messages (UTF-8 JSON), by position."""
        self.before: set[int] = set()
        """The positions of own messages whose ids are from before the update at the next position."""
        self.match_cache: dict[UpdateFilter, bytearray] = {}
        """For each filter, a byte for each position.

        The byte is 1 if the position holds an update that matches the filter, or else 0.
        """


class BoundedCache(Generic[V]):
    """Keeps the newest values by position, up to a maximum total size in bytes.

    The newest value is kept even if it is larger than the maximum.
    """

    __slots__ = ("_max_bytes", "_size_bytes", "_values")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        # The values are in an OrderedDict, because in a plain dict, each removal of the first key makes the next
        # removal slower.
        self._values: OrderedDict[int, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, position: int) -> V | None:
        """Returns the value of a position, or None if the value was never added or was evicted."""
        found = self._values.get(position)
        return None if found is None else found[0]

    def put(self, position: int, value: V, size_bytes: int) -> None:
        """Adds the value of a position that has no value yet."""
        self._values[position] = (value, size_bytes)
        self._size_bytes += size_bytes
        while self._size_bytes > self._max_bytes and len(self._values) > 1:
            _, (_, evicted_bytes) = self._values.popitem(last=False)
            self._size_bytes -= evicted_bytes


class ReplayIndex:
    """The log with the ids of updates, the bridge's own messages, and the matches of filters."""

    def __init__(self, log: UpdateLog, tag: int | None = None) -> None:
        """With a `tag`, the index assigns the ids itself, counting from 1.

        Without a `tag`, the caller passes the id of each entry.
        """
        self.update_log = log
        self._tag = tag
        self._segments = [Segment(0)]
        self._full_at = SEGMENT_UPDATES
        """The position at which the next segment begins, unless frames use up `_room_bytes` earlier."""
        self._room_bytes = SEGMENT_BYTES
        self._second_start = 0
        """The first position of the second segment."""
        self._newest = UpdateId(0, 0)
        """The last id that a caller passed with an entry."""
        self._highest_found = 0
        """Above `newest_sequence`, only sequence numbers up to this one may belong to an entry: to those of an earlier
        stream, and to an own message before the next update."""
        self._last_non_update = -1
        """The last position that holds no update."""
        self._filter_inputs: BoundedCache[FilterInput] = BoundedCache(CACHE_BYTES)
        self.work_bytes = 0
        """A measure, in bytes, of the work for filters and for connections that are not live.

        This measure never decreases.
        """

    def append(
        self,
        frame: bytes,
        update_id: UpdateId | None = None,
        filter_input: FilterInput | None = None,
        extra_bytes: int = 0,
    ) -> None:
        """Adds the frame of an update. If the frame is empty, the position holds no update.

        `update_id` is the update's id, unless the index assigns the ids itself. `filter_input` is the type and the data
        of the update, if a filter may need both. `extra_bytes` has the same meaning as in `UpdateLog.append`.
        """
        log = self.update_log
        if filter_input is not None:
            self._filter_inputs.put(log.head, filter_input, len(frame))
        # Within a segment, the sequence numbers of the ids never decrease. A segment without a position would have no
        # share of the log, so the first entry of all begins no segment, although its sequence number may be 0.
        restarts = update_id is not None and update_id.sequence <= self._newest.sequence and log.head > 0
        if log.head >= self._full_at or self._room_bytes <= 0 or restarts:
            self._begin(log.head)
        if restarts:
            self._highest_found = max(self._highest_found, self._newest.sequence)
        if update_id is not None:
            segment = self._segments[-1]
            segment.sequences.append(update_id.sequence)
            segment.tags.append(update_id.tag)
            if update_id.before:
                segment.before.add(log.head)
                self._highest_found = max(self._highest_found, update_id.sequence)
            else:
                self._newest = update_id
        self._room_bytes -= len(frame) + extra_bytes
        log.append(frame, extra_bytes)
        if log.tail > self._second_start:
            self._drop()

    def record_id(self, update_id: UpdateId) -> None:
        """Adds an id without an update."""
        position = self._last_non_update = self.update_log.head
        self.append(b"", update_id)
        self._segments[-1].non_updates.add(position)

    def append_own_message(self, encode: Callable[[str], bytes], update_id: UpdateId | None = None) -> int:
        """Adds one of the bridge's own messages, for clients with ids. Returns the size of the message in bytes.

        `encode` returns the message (UTF-8 JSON) with a given id. `update_id` is this id, unless the index assigns the
        ids itself. If no update has this id, it may be the id from before the next update.
        """
        position = self._last_non_update = self.update_log.head
        if self._tag is not None:
            payload = encode(str(UpdateId(position + 1, self._tag)))
            self.append(b"", extra_bytes=len(payload))
        else:
            assert update_id is not None, "an id is necessary to resume after the message"
            payload = encode(str(update_id))
            self.append(b"", update_id, extra_bytes=len(payload))
        self._segments[-1].non_updates.add(position)
        self._segments[-1].own_messages[position] = payload
        return len(payload)

    def _begin(self, position: int) -> None:
        last = self._segments[-1]
        last.size_bytes = SEGMENT_BYTES - self._room_bytes + ENTRY_BYTES * (position - last.start)
        self._segments.append(Segment(position))
        self._segments[-1].non_updates_before = last.non_updates_before + len(last.non_updates)
        self._full_at, self._room_bytes = position + SEGMENT_UPDATES, SEGMENT_BYTES
        self._second_start = self._segments[1].start

    def _drop(self) -> None:
        # The id of the position before the tail is kept, because a client that already has the update at this position
        # has missed nothing.
        while len(self._segments) > 1 and self._segments[1].start < self.update_log.tail:
            del self._segments[0]
        self._second_start = self._segments[1].start if len(self._segments) > 1 else self._full_at

    def is_ahead(self, sought: UpdateId) -> bool:
        """Whether the update with this id may still arrive.

        The update may come from another instance that is further ahead in the same stream.
        """
        sequence = sought.sequence
        if self._tag is not None or sequence <= self._newest.sequence:
            return False
        # Thousands of clients may wait for an id. A search of all segments for each of them would block the loop.
        return sequence > self._highest_found or self._find(sought) is None

    def after(self, sought: UpdateId) -> int | None:
        """Returns the position after the entry with this id, or None if the id is unknown or the entry was dropped."""
        position = self._find(sought)
        return position + 1 if position is not None and position + 1 >= self.update_log.tail else None

    def _find(self, sought: UpdateId) -> int | None:
        if self._tag is not None:
            # The id before the first update is known too: a client with this id has missed nothing.
            known = sought.tag == self._tag and sought.sequence <= self.update_log.head and not sought.before
            return sought.sequence - 1 if known else None
        if sought == START and not self.update_log.tail:
            return -1
        for segment in reversed(self._segments):
            if not segment.sequences or segment.sequences[0] > sought.sequence:
                continue
            # An own message before an update may have the same sequence and tag as the update.
            at = bisect_right(segment.sequences, sought.sequence) - 1
            if (segment.sequences[at], segment.tags[at]) != sought[:2]:
                continue
            position = segment.start + at
            if position in segment.before:
                # The update itself has not arrived yet.
                return position if sought.before else None
            return position - 1 if sought.before else position
        return None

    @property
    def newest_sequence(self) -> int:
        """The sequence number of the last id that a caller passed with an entry."""
        return self._newest.sequence

    @property
    def oldest(self) -> int:
        """The oldest position that the log will not drop soon.

        While the log has enough room, this position is the tail.
        """
        log = self.update_log
        needed = log.max_bytes // REPLAY_MARGIN - (log.max_bytes - log.size_bytes)
        position = log.tail
        for segment, following in pairwise(self._segments):
            if needed <= 0:
                break
            # The log may have dropped most of the first segment already.
            kept = (following.start - position) / (following.start - segment.start)
            needed -= int(segment.size_bytes * kept)
            position = following.start
        return position

    def before(self, position: int) -> UpdateId:
        """Returns the id after which a client resumes at a position. The position may be the head of the log."""
        if position or self._tag is not None:
            return self.id_of(position - 1)
        return self.id_of(0)._replace(before=True) if self.update_log.head else START

    def id_of(self, position: int) -> UpdateId:
        """Returns the id of a position."""
        if self._tag is not None:
            return UpdateId(position + 1, self._tag)
        segment = self._segment(position)
        at = position - segment.start
        return UpdateId(segment.sequences[at], segment.tags[at], position in segment.before)

    def own_message_at(self, position: int) -> bytes:
        """Returns the bridge's own message at a position (UTF-8 JSON), or empty bytes if there is no such message."""
        return self._segment(position).own_messages.get(position, b"")

    def filter_input(self, position: int) -> FilterInput:
        """Returns the type and the data of an update."""
        filter_input = self._filter_inputs.get(position)
        if filter_input is None:
            frame = self.update_log.frame(position)
            filter_input = unwrap(payload_of(frame))
            self._filter_inputs.put(position, filter_input, len(frame))
            self.work_bytes += len(frame)
        return filter_input

    def updates(self, start: int, end: int) -> Sequence[int]:
        """Returns the positions that hold updates, from `start` up to, but not including, `end`."""
        if start > self._last_non_update:
            return range(start, end)
        segments = self._segments[self._index(start) :]
        non_updates = {position for segment in segments for position in segment.non_updates}
        return [position for position in range(start, end) if position not in non_updates]

    def run_end(self, start: int) -> int:
        """Returns where a flush from `start` ends at the latest: an own message is flushed alone."""
        head = self.update_log.head
        if start > self._last_non_update:
            return head
        messages = (each for segment in self._segments[self._index(start) :] for each in segment.own_messages)
        first = min((position for position in messages if position >= start), default=head)
        return first + 1 if first == start else first

    def has_own_message(self, start: int, end: int) -> bool:
        """Whether any position from `start` up to, but not including, `end` holds one of the bridge's own messages."""
        if start > self._last_non_update:
            return False
        segments = self._segments[self._index(start) :]
        return any(start <= position < end for segment in segments for position in segment.own_messages)

    def matching(
        self, update_filter: UpdateFilter | None, start: int, end: int, *, own_messages: bool
    ) -> tuple[Sequence[int], int]:
        """Searches from `start`.

        Returns the positions of the frames for a client, and the position where the search ended.

        `start` must be below `end`. The search may end before `end`. A call searches only one segment, so that a slow
        filter does not delay other connections.
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

    def matching_before(self, update_filter: UpdateFilter | None, end: int) -> tuple[Sequence[int], int]:
        """Searches the last segment before `end`, which must be above the tail of the log.

        Returns the positions of the updates that match the filter, and the position where the search began.
        """
        start = max(self._segment(end - 1).start, self.update_log.tail)
        return self.matching(update_filter, start, end, own_messages=False)[0], start

    def count(self, update_filter: UpdateFilter | None, start: int, end: int) -> tuple[int, int]:
        """Returns how many updates at or after `start` match the filter, and the position where counting stopped.

        Counting stops at `end` or earlier. This method uses the cached matches, and applies the filter to at most one
        segment.
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
            matches = self._matches(segment, update_filter, until)
            count += matches.count(1, start - segment.start, until - segment.start)
            self.work_bytes += CACHED_COST_BYTES
            start = until
        return count, start

    def _non_updates_before(self, position: int) -> int:
        """Returns how many positions before `position` hold no update."""
        segment = self._segment(position)
        return segment.non_updates_before + sum(each < position for each in segment.non_updates)

    def forget(self, update_filter: UpdateFilter) -> None:
        """Drops the cached matches of a filter.

        Call this method when the last client with this filter has disconnected.
        """
        for segment in self._segments:
            segment.match_cache.pop(update_filter, None)

    def _matches(self, segment: Segment, update_filter: UpdateFilter, end: int) -> bytearray:
        """Returns the matches of a segment, at least up to `end`: 1 for each position that matches, 0 for others."""
        cache = segment.match_cache
        matches = cache.get(update_filter)
        if matches is None:
            if len(cache) >= MAX_CACHED_FILTERS:
                del cache[next(iter(cache))]
            matches = cache[update_filter] = bytearray()
        # The log may have dropped some of the segment's positions meanwhile. The matches of these positions are not
        # needed.
        dropped = min(self.update_log.tail, end) - (segment.start + len(matches))
        if dropped > 0:
            matches.extend(bytes(dropped))
        for position in range(segment.start + len(matches), end):
            matches.append(position not in segment.non_updates and update_filter.matches(*self.filter_input(position)))
            self.work_bytes += MATCH_COST_BYTES
        return matches

    def _segment(self, position: int) -> Segment:
        return self._segments[self._index(position)]

    def _end(self, position: int, end: int) -> int:
        """Returns the end of the segment that contains `position`, or `end` if the segment ends later."""
        following = self._index(position) + 1
        return min(end, self._segments[following].start) if following < len(self._segments) else end

    def _index(self, position: int) -> int:
        return bisect_right(self._segments, position, key=_start) - 1


def _start(segment: Segment) -> int:
    return segment.start
