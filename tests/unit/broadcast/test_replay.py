"""Tests that the log's index finds ids, and counts and finds matching updates, in one or more segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from bridge.broadcast.frames import text_frame
from bridge.broadcast.framing import Form, FrameEncoder
from bridge.broadcast.replay import (
    CACHED_COST_BYTES,
    MATCH_COST_BYTES,
    SEGMENT_BYTES,
    SEGMENT_UPDATES,
    BoundedCache,
    ReplayIndex,
)
from bridge.broadcast.update_log import ENTRY_BYTES, UpdateLog
from bridge.contract import envelope
from bridge.contract.update_id import UpdateId

TAG = 7
FRAME = b"x"


def own_message(_: str) -> bytes:
    return b"own message"


@dataclass(slots=True)
class Odd:
    """A filter for odd numbers. Records the numbers to which the filter was applied."""

    asked: list[int] = field(default_factory=list)

    def matches(self, update_type: str, data: object) -> bool:
        assert isinstance(data, int)
        self.asked.append(data)
        return data % 2 == 1

    def __hash__(self) -> int:
        return id(self)


def id_at(position: int) -> UpdateId:
    """Returns the id of the update at a position."""
    return UpdateId(position + 1, TAG)


def holding(updates: int) -> UpdateLog:
    """Returns a log with room for the given number of the shortest frames."""
    return UpdateLog(updates * (ENTRY_BYTES + len(FRAME)))


def shared(log: UpdateLog, updates: int = 0) -> ReplayIndex:
    index = ReplayIndex(log)
    for position in range(updates):
        index.append(FRAME, id_at(position))
    return index


def mixed(updates: int) -> tuple[ReplayIndex, list[int]]:
    """Returns an index that contains updates, ids and the bridge's own messages, and the positions of the updates."""
    index = ReplayIndex(UpdateLog(2**24))
    positions = []
    for position in range(updates):
        if position % 10 == 3:
            index.record_id(id_at(position))
        elif position % 10 == 7:
            index.append_own_message(own_message, id_at(position))
        else:
            index.append(text_frame(envelope.wrap("a", position, 0)), id_at(position))
            positions.append(position)
    return index, positions


# Counts


def test_positions_without_updates_are_not_counted_in_any_segment() -> None:
    index, positions = mixed(4 * SEGMENT_UPDATES)
    end = index.update_log.head
    for start in (0, 3, 4, 7, 8, SEGMENT_UPDATES - 1, SEGMENT_UPDATES, 2 * SEGMENT_UPDATES + 5, end - 1):
        expected = [position for position in positions if position >= start]
        assert index.count(None, start, end) == (len(expected), end)
        assert [*index.updates(start, end)] == expected


@pytest.mark.parametrize("first", [0, 5, SEGMENT_UPDATES, SEGMENT_UPDATES + 99, 2 * SEGMENT_UPDATES - 1])
def test_filter_is_counted_one_segment_at_a_time_and_all_at_once_if_cached(first: int) -> None:
    index, positions = mixed(4 * SEGMENT_UPDATES)
    end, wanted = index.update_log.head, Odd()
    expected = sum(position % 2 for position in positions if position >= first)
    start, counted, ends = first, 0, []
    while start < end:
        count, start = index.count(wanted, start, end)
        counted += count
        ends.append(start)
    assert counted == expected
    assert ends == [at for at in range(SEGMENT_UPDATES, end + 1, SEGMENT_UPDATES) if at > first]
    asked = len(wanted.asked)
    assert index.count(wanted, first, end) == (expected, end)
    assert len(wanted.asked) == asked


def test_count_applies_the_filter_to_one_segment_after_the_cached_ones() -> None:
    index, _ = mixed(4 * SEGMENT_UPDATES)
    end, wanted = index.update_log.head, Odd()
    assert index.count(wanted, 0, end)[1] == SEGMENT_UPDATES
    assert index.count(wanted, 0, end)[1] == 2 * SEGMENT_UPDATES
    assert index.count(wanted, 0, end)[1] == 3 * SEGMENT_UPDATES
    assert len(wanted.asked) == len(set(wanted.asked)), "the filter is applied once for each update"


# Matches


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("own_messages", [False, True])
@pytest.mark.parametrize("start", [0, 7, 8, SEGMENT_UPDATES + 1])
def test_updates_match_and_own_messages_on_request_but_never_ids_alone(
    start: int, *, own_messages: bool, filtered: bool
) -> None:
    index, positions = mixed(2 * SEGMENT_UPDATES)
    found, end = index.matching(Odd() if filtered else None, start, 2 * SEGMENT_UPDATES, own_messages=own_messages)
    assert end == (start // SEGMENT_UPDATES + 1) * SEGMENT_UPDATES
    expected = [position for position in positions if start <= position < end and (position % 2 or not filtered)]
    if own_messages:
        expected = sorted(expected + [position for position in range(start, end) if position % 10 == 7])
    assert [*found] == expected


def test_last_position_that_holds_no_update_is_left_out() -> None:
    index = shared(holding(100), 5)
    index.record_id(id_at(5))
    assert [*index.updates(5, 6)] == []
    index.append_own_message(own_message, id_at(6))
    assert [*index.updates(4, 7)] == [4]
    assert index.has_own_message(6, 7)
    assert not index.has_own_message(4, 6)


def test_flush_ends_before_an_own_message_and_after_it() -> None:
    index = shared(holding(100), 5)
    assert index.run_end(0) == 5
    index.append_own_message(own_message, id_at(5))
    index.append_own_message(own_message, id_at(6))
    index.append(b"frame", id_at(7))
    assert [index.run_end(start) for start in range(8)] == [5, 5, 5, 5, 5, 6, 7, 8]


def test_ids_without_an_update_are_flushed_with_other_updates() -> None:
    index = shared(holding(100), 5)
    index.record_id(id_at(5))
    index.append(b"frame", id_at(6))
    assert [index.run_end(start) for start in range(7)] == [7] * 7


# Ids at the boundaries of segments, and at the tail


def test_id_before_the_tail_is_known_and_the_one_before_that_is_not() -> None:
    """A client whose last update is the newest evicted update has missed nothing.

    A client whose last update is older than the newest evicted update has missed some updates.
    """
    kept = 300
    index = shared(holding(kept))
    for position in range(3 * SEGMENT_UPDATES):
        index.append(FRAME, id_at(position))
        tail = index.update_log.tail
        assert tail == max(0, position + 1 - kept)
        assert index.after(id_at(tail)) == tail + 1
        if tail:
            assert index.before(tail) == id_at(tail - 1)
            assert index.after(id_at(tail - 1)) == tail
        if tail > 1:
            assert index.after(id_at(tail - 2)) is None


@pytest.mark.parametrize("before", [0, 1, SEGMENT_UPDATES, 2 * SEGMENT_UPDATES, 2 * SEGMENT_UPDATES + 1])
def test_update_that_evicts_everything_leaves_the_id_before_it(before: int) -> None:
    index = shared(holding(3 * SEGMENT_UPDATES), before)
    index.append(bytes(index.update_log.max_bytes), id_at(before))
    assert len(index.update_log) == 1
    assert index.after(id_at(before)) == before + 1
    assert index.before(before) == (id_at(before - 1) if before else id_at(0)._replace(before=True))
    index.append(FRAME, id_at(before + 1))
    assert index.before(index.update_log.head) == id_at(before + 1)


def test_id_of_a_stream_without_an_entry_is_known_until_an_entry_is_dropped() -> None:
    index = shared(holding(2))
    start = index.before(0)
    for position in range(2):
        assert index.after(start) == 0
        index.append(FRAME, id_at(position))
    index.append(FRAME, id_at(2))
    assert index.after(start) is None


# Ids from before an update


def test_id_from_before_the_first_entry_is_the_first_position() -> None:
    index = shared(holding(10), 3)
    before = index.before(0)
    assert before == UpdateId(1, TAG, before=True)
    assert index.after(before) == 0
    assert index.after(id_at(2)._replace(before=True)) == 2
    assert index.after(UpdateId(1, TAG + 1, before=True)) is None


def test_id_from_before_an_update_that_the_log_dropped_is_unknown() -> None:
    index = shared(holding(3), 5)
    assert [index.after(id_at(position)._replace(before=True)) for position in range(5)] == [None, None, 2, 3, 4]


def test_id_from_before_an_update_that_may_still_arrive_is_ahead() -> None:
    index = shared(holding(10), 3)
    ahead = id_at(3)._replace(before=True)
    assert index.is_ahead(ahead)
    index.append(FRAME, id_at(3))
    assert not index.is_ahead(ahead)
    assert index.after(ahead) == 3


@pytest.mark.parametrize("before", [0, 1, SEGMENT_UPDATES - 1, SEGMENT_UPDATES])
@pytest.mark.parametrize("recreated", [False, True])
def test_own_message_before_an_update_has_its_id_from_before_it(before: int, *, recreated: bool) -> None:
    """If `recreated` is True, the update comes from another stream, in which sequences begin again."""
    index = shared(holding(2**10), before)
    following = UpdateId(0, TAG + 1) if recreated else id_at(before)
    gap = following._replace(before=True)
    index.append_own_message(own_message, gap)
    assert index.id_of(before) == gap
    assert index.after(gap) == before + 1
    assert index.after(following) is None, "the update itself has not arrived"
    index.append(FRAME, following)
    assert index.id_of(before) == gap
    assert index.id_of(before + 1) == following
    assert index.after(gap) == before + 1
    assert index.after(following) == before + 2
    if before:
        assert index.after(id_at(before - 1)) == before, "a client with this id gets the own message"


@pytest.mark.parametrize("before", [1, SEGMENT_UPDATES])
def test_own_message_with_an_id_of_its_own_is_found_by_this_id(before: int) -> None:
    index = shared(holding(2**10), before)
    index.append_own_message(own_message, id_at(before))
    index.append(FRAME, id_at(before + 1))
    assert index.after(id_at(before)) == before + 1
    assert index.after(id_at(before - 1)) == before
    assert index.after(id_at(before)._replace(before=True)) == before


def test_index_that_assigns_ids_knows_no_id_from_before_an_update() -> None:
    index = ReplayIndex(UpdateLog(1000), TAG)
    index.append(FRAME)
    assert index.after(UpdateId(1, TAG, before=True)) is None


def test_index_that_assigns_ids_gives_an_own_message_the_id_of_its_position() -> None:
    index = ReplayIndex(UpdateLog(1000), TAG)
    index.append(FRAME)
    index.append_own_message(str.encode)
    assert index.own_message_at(1) == str(id_at(1)).encode()
    assert index.after(id_at(1)) == 2


def test_other_id_with_the_newest_sequence_is_not_ahead() -> None:
    index = shared(holding(10), 3)
    assert not index.is_ahead(UpdateId(3, TAG + 1))
    assert index.is_ahead(UpdateId(4, TAG + 1))


@pytest.mark.parametrize("recreated", [False, True])
def test_id_that_may_still_arrive_is_searched_only_where_an_earlier_stream_had_it(
    monkeypatch: pytest.MonkeyPatch, *, recreated: bool
) -> None:
    index = shared(holding(2**10), 2 * SEGMENT_UPDATES)
    highest = 2 * SEGMENT_UPDATES
    if recreated:
        index.append(FRAME, UpdateId(0, TAG + 1))
    searches: list[UpdateId] = []
    find = index._find

    def search(sought: UpdateId) -> int | None:
        searches.append(sought)
        return find(sought)

    monkeypatch.setattr(index, "_find", search)
    assert index.is_ahead(UpdateId(highest + 1, TAG))
    assert not searches
    assert not index.is_ahead(UpdateId(highest, TAG))
    assert index.is_ahead(UpdateId(highest, TAG + 2)) is recreated
    assert len(searches) == (2 if recreated else 0)


# Bounds


@pytest.mark.parametrize("size", [1, 1000, SEGMENT_BYTES])
def test_segments_are_few_and_are_dropped_with_their_positions(size: int) -> None:
    index = ReplayIndex(UpdateLog(20 * SEGMENT_BYTES))
    for position in range(5 * SEGMENT_UPDATES):
        index.append(bytes(size), id_at(2 * position))
        if position % 7 == 0:
            index.append_own_message(own_message, id_at(2 * position + 1))
        segments, log = index._segments, index.update_log
        assert len(segments) == 1 or segments[1].start >= log.tail
        lengths = [following.start - segment.start for segment, following in pairwise(segments)]
        assert all(length >= SEGMENT_UPDATES or length * size >= SEGMENT_BYTES for length in lengths)


@pytest.mark.parametrize("own_messages", [False, True])
def test_segment_of_large_frames_ends_at_its_byte_limit(*, own_messages: bool) -> None:
    index, frame = ReplayIndex(UpdateLog(2**24), TAG), text_frame(bytes(1000))
    for _ in range(200):
        if own_messages:
            assert index.append_own_message(lambda _: frame) == len(frame)
        else:
            index.append(frame)
    length = -(-SEGMENT_BYTES // len(frame))
    assert [segment.start for segment in index._segments] == [*range(0, 200, length)]
    assert index._segments[0].size_bytes == length * (len(frame) + ENTRY_BYTES)


# Cost


def test_work_of_a_filter_counts_reads_calls_and_cache_lookups() -> None:
    index, wanted = ReplayIndex(UpdateLog(2**20), TAG), Odd()
    frames = [text_frame(envelope.wrap("a", position, 0)) for position in range(10)]
    for frame in frames:
        index.append(frame)
    assert index.work_bytes == 0
    index.count(wanted, 0, 10)
    asked = sum(map(len, frames)) + 10 * MATCH_COST_BYTES
    assert index.work_bytes == asked + CACHED_COST_BYTES
    index.count(wanted, 0, 10)
    assert index.work_bytes == asked + 2 * CACHED_COST_BYTES, "a cached match counts as one lookup"
    index.count(Odd(), 0, 10)
    assert index.work_bytes == asked + 3 * CACHED_COST_BYTES + 10 * MATCH_COST_BYTES, "each update is read once"


def test_filter_input_passed_with_its_update_counts_as_no_work() -> None:
    index, filter_input = ReplayIndex(UpdateLog(2**20), TAG), ("a", object())
    index.append(b"no JSON", filter_input=filter_input)
    assert index.filter_input(0) is filter_input
    assert index.work_bytes == 0


def test_frame_with_an_id_counts_as_work_the_first_time() -> None:
    index = ReplayIndex(UpdateLog(2**20), TAG)
    index.append(text_frame(envelope.wrap("a", 1, 0)))
    framing = FrameEncoder(index)
    framing.frame(0, Form.TEXT)
    assert index.work_bytes == 0
    for form in (Form.TEXT_WITH_ID, Form.EVENT):
        before = index.work_bytes
        for _ in range(2):
            assert len(framing.frame(0, form)) == index.work_bytes - before > 0


def test_cache_is_bounded_and_keeps_the_newest_value() -> None:
    recent: BoundedCache[str] = BoundedCache(100)
    for position in range(5):
        recent.put(position, str(position), 30)
    assert [recent.get(position) for position in range(5)] == [None, None, "2", "3", "4"]
    recent.put(5, "large", 1000)
    assert [recent.get(position) for position in range(6)] == [None, None, None, None, None, "large"]
    assert len(recent) == 1
