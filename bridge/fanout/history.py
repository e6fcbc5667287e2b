"""What the log holds, and not only its bytes: which id each position has, and which of them a filter matches.

In segments of some hundreds of positions, which go when the log has dropped all that they tell of. What a filter said
of a segment stays with it: it is asked once, however many clients of the same filter come by. Some positions hold no
update but a *mark*, an id that a client may resume after, or a *notice*, which clients with ids get and others don't.

Pure: it knows neither connections nor time.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import compress
from typing import Protocol

from bridge.contract.envelope import unwrap, with_id
from bridge.contract.ids import Id
from bridge.fanout.frames import payload_of, text_frame
from bridge.fanout.log import Log

SEGMENT_UPDATES = 256
"""Positions of a segment: what a filter is asked at once takes half a millisecond."""

SEGMENT_BYTES = 65536
"""The same for large updates: behind so many bytes a new segment begins."""

ANSWERS = 32
"""Filters whose answers are kept for a segment: with the default log, 2 MB in all. More are asked again."""


class Filter(Protocol):
    """What a client wants of all updates. Hashable, and equal to those that want the same."""

    def matches(self, update_type: str, data: object) -> bool:
        """Whether it wants this one."""


class Segment:
    """A run of positions from `start` on."""

    __slots__ = ("_checks", "_numbers", "answers", "notices", "size_bytes", "start", "updates")

    def __init__(self, start: int) -> None:
        self.start = start
        self.size_bytes = 0
        self._numbers = array("Q")
        self._checks = array("I")
        self.updates = bytearray()
        """By position, 1 for an update and 0 for anything else."""
        self.notices: dict[int, bytes] = {}
        """By position, the frame."""
        self.answers: dict[Filter, bytearray] = {}
        """By filter and position, 1 for an update that it matches; as far as it has been asked."""

    def append(self, each: Id, size_bytes: int, is_update: bool) -> None:
        """Adds a position."""
        self._numbers.append(each.number)
        self._checks.append(each.check)
        self.size_bytes += size_bytes
        self.updates.append(is_update)

    @property
    def end(self) -> int:
        """The position behind the last."""
        return self.start + len(self._numbers)

    @property
    def is_full(self) -> bool:
        """True where the next position belongs into another one."""
        return len(self._numbers) >= SEGMENT_UPDATES or self.size_bytes >= SEGMENT_BYTES

    def id_of(self, position: int) -> Id:
        """The id of one of its positions."""
        return Id(self._numbers[position - self.start], self._checks[position - self.start])

    def find(self, sought: Id) -> int | None:
        """The position of an id; the first one, where notices behind it bear it too."""
        at = bisect_left(self._numbers, sought.number)
        if at == len(self._numbers) or (self._numbers[at], self._checks[at]) != sought:
            return None
        return self.start + at


class History:
    """A log whose positions have ids. Numbers grow within a segment: where they don't, another one begins."""

    def __init__(self, log: Log, check: int | None = None) -> None:
        """`check` is that of all ids, which are counted from 1; None where each comes with its own."""
        self.log = log
        self._check = check
        # Before the first position there is nothing that anybody could have seen.
        self._origin = self.newest = Id(0, check or 0)
        """`newest` is the id of the last position."""
        self._segments: list[Segment] = []

    def append(self, frame: bytes, given: Id | None = None) -> None:
        """Adds an update; `given` is its id, where ids are not counted here."""
        self._append(frame, given or Id(self.newest.number + 1, self.newest.check), is_update=True)

    def mark(self, given: Id) -> None:
        """Adds an id that belongs to no update."""
        self._append(b"", given, is_update=False)

    def notice(self, payload: bytes) -> None:
        """Adds something for clients with ids alone. Who has had it resumes before it: it has no id of its own."""
        position = self.log.head
        self._append(b"", self.newest, is_update=False)
        self._segments[-1].notices[position] = text_frame(payload)

    def _append(self, frame: bytes, each: Id, *, is_update: bool) -> None:
        log, segments = self.log, self._segments
        if not segments or segments[-1].is_full or each.number < self.newest.number:
            segments.append(Segment(log.head))
        log.append(frame)
        segments[-1].append(each, len(frame), is_update)
        self.newest = each
        # The position before the tail is kept: who has had that one misses nothing.
        while segments[0].end < log.tail:
            del segments[0]

    def is_ahead(self, sought: Id) -> bool:
        """Whether an id may be one that is still to come: another bridge on the same stream may have had it first."""
        return self._check is None and sought.number > self.newest.number

    def after(self, sought: Id) -> int | None:
        """The position behind an id; None where it is unknown, or where what is behind it is not kept any more."""
        if self._check is not None and self.log.tail == 0 and sought == self._origin:
            return 0
        for segment in reversed(self._segments):
            position = segment.find(sought)
            if position is not None:
                return position + 1 if position + 1 >= self.log.tail else None
        return None

    def before(self, position: int) -> Id:
        """The id that a client has had last for whom this position, of the log or its head, is the next."""
        return self._origin if position == 0 else self._segment(position - 1).id_of(position - 1)

    def frame(self, position: int, *, ids: bool) -> bytes:
        """What a client is sent of a position, with its id if it wants that; nothing of what is not for it."""
        frame = self.log.frame(position)
        if not ids:
            return frame
        segment = self._segment(position)
        if not frame:
            return segment.notices.get(position, b"")
        return text_frame(with_id(payload_of(frame), str(segment.id_of(position))))

    def wanted(self, wanted_by: Filter | None, start: int, end: int, *, notices: bool) -> tuple[Sequence[int], int]:
        """Those positions from `start` on that a client wants, and where the answer ends: at `end` or before it.

        `start` is below `end`. One segment is looked at, so that a filter that has much to look at does not hold up
        everybody else.
        """
        segment = self._segment(start)
        end = min(end, segment.end)
        found: Sequence[int] = list(
            compress(range(start, end), self._answer(segment, wanted_by, end)[start - segment.start :])
        )
        if notices and segment.notices:
            found = sorted({*found, *(position for position in segment.notices if start <= position < end)})
        return found, end

    def count(self, wanted_by: Filter | None, start: int, end: int) -> tuple[int, int]:
        """How many updates from `start` on a client wants, and where the answer ends: at `end` or before it.

        Goes on as long as the answers are known, and asks for those of one segment beside.
        """
        count, asked = 0, False
        while start < end:
            segment = self._segment(start)
            until = min(end, segment.end)
            known = wanted_by is None or len(segment.answers.get(wanted_by, b"")) >= until - segment.start
            if asked and not known:
                break
            asked = asked or not known
            answer = self._answer(segment, wanted_by, until)
            count += answer.count(1, start - segment.start, until - segment.start)
            start = until
        return count, start

    def _answer(self, segment: Segment, wanted_by: Filter | None, end: int) -> bytearray:
        """Up to `end` at least, by position: 1 for an update that is wanted."""
        if wanted_by is None:
            return segment.updates
        answers = segment.answers
        answer = answers.get(wanted_by)
        if answer is None:
            if len(answers) >= ANSWERS:
                answers.clear()
            answer = answers[wanted_by] = bytearray()
        # What has been dropped meanwhile nobody asks for.
        dropped = min(self.log.tail, end) - (segment.start + len(answer))
        if dropped > 0:
            answer.extend(bytes(dropped))
        for position in range(segment.start + len(answer), end):
            frame = self.log.frame(position)
            answer.append(bool(frame) and wanted_by.matches(*unwrap(payload_of(frame))))
        return answer

    def _segment(self, position: int) -> Segment:
        return self._segments[bisect_right(self._segments, position, key=lambda segment: segment.start) - 1]
