"""Tests which offsets and tags of a stream count as new, repeated or missing, over several sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.amqp.consume.stream_position import RECREATED, TRUNCATED, StreamPosition, Verdict
from bridge.contract.update_id import UpdateId

NEW, ALREADY_READ, OTHER_STREAM, POSSIBLE_GAP = (
    Verdict.NEW,
    Verdict.ALREADY_READ,
    Verdict.OTHER_STREAM,
    Verdict.POSSIBLE_GAP,
)


def tag_of(offset: int) -> int:
    """Returns the tag that the message at this offset has in the stream of most tests.

    If a test uses another stream, the messages in this other stream have other tags.
    """
    return offset * 7 + 1


def observe(position: StreamPosition, *offsets: int) -> list[Verdict]:
    return [position.observe(offset, tag_of(offset)) for offset in offsets]


@pytest.fixture
def position() -> StreamPosition:
    """The position of a reader that has read the offsets 5 to 10, and has lost its connection."""
    position = StreamPosition(window=5)
    assert position.begin_session(10) == 5
    observe(position, *range(5, 11))
    assert position.catches_up(10)
    return position


# The first session


@pytest.mark.parametrize(("end", "window", "start"), [(10, 5, 5), (5, 5, 0), (3, 5, 0), (0, 5, 0), (9, 0, 9)])
def test_first_session_begins_a_window_before_the_end(end: int, window: int, start: int) -> None:
    assert StreamPosition(window).begin_session(end) == start


def test_nothing_is_lost_if_the_stream_begins_after_the_first_offset() -> None:
    position = StreamPosition(100)
    assert position.begin_session(50) == 0
    assert observe(position, 46, 48, 50) == [NEW] * 3
    assert position.loss is None
    assert position.last == UpdateId(50, tag_of(50))


def test_history_ends_with_the_end_and_only_once() -> None:
    position = StreamPosition(100)
    position.begin_session(10)
    assert [position.catches_up(number) for number in (0, 9, 10, 11)] == [False, False, True, False]
    assert position.caught_up


def test_history_also_ends_if_the_end_itself_was_dropped() -> None:
    position = StreamPosition(100)
    position.begin_session(10)
    assert [position.catches_up(number) for number in (9, 12)] == [False, True]


def test_session_that_ends_within_the_history_is_continued() -> None:
    position = StreamPosition(100)
    position.begin_session(10)
    observe(position, 0, 1, 2)
    assert position.begin_session(20) == 2
    assert observe(position, 2, 3) == [ALREADY_READ, NEW]
    assert not position.catches_up(10), "messages from between the sessions are history too"
    assert position.catches_up(20)
    assert position.loss is None


def test_session_that_ends_before_the_first_message_begins_again() -> None:
    position = StreamPosition(5)
    position.begin_session(10)
    assert position.begin_session(30) == 25
    assert observe(position, 27) == [NEW]
    assert position.loss is None


# Later sessions


def test_later_session_begins_with_the_last_message_and_continues_after_it(position: StreamPosition) -> None:
    assert position.begin_session(20) == 10
    assert observe(position, 10, 11, 13) == [ALREADY_READ, NEW, NEW]
    assert position.loss is None
    assert not position.catches_up(20), "the history was read before"


def test_messages_before_the_offset_are_already_read(position: StreamPosition) -> None:
    position.begin_session(20)
    assert observe(position, 8, 9, 10, 11) == [ALREADY_READ, ALREADY_READ, ALREADY_READ, NEW]
    assert position.loss is None


def test_offset_that_is_delivered_again_is_already_read(position: StreamPosition) -> None:
    position.begin_session(20)
    assert observe(position, 10, 11, 12, 11, 12, 13, 10, 14) == [
        ALREADY_READ,
        NEW,
        NEW,
        ALREADY_READ,
        ALREADY_READ,
        NEW,
        ALREADY_READ,
        NEW,
    ]
    assert position.loss is None


def test_messages_dropped_before_they_were_read_are_a_loss(position: StreamPosition) -> None:
    position.begin_session(20)
    assert observe(position, 15, 16) == [NEW, NEW]
    assert position.loss == TRUNCATED
    position.loss = None
    assert observe(position, 18) == [NEW]
    assert position.loss is None, "the loss is reported once"


@pytest.mark.parametrize("next_one", [11, 12])
def test_single_missing_offset_is_no_gap(position: StreamPosition, next_one: int) -> None:
    assert observe(position, next_one) == [NEW]


def test_possible_gap_ends_the_session_and_is_accepted_if_the_last_message_still_exists(
    position: StreamPosition,
) -> None:
    """The stream still has the last message that the reader received, so it has not dropped any later message."""
    assert observe(position, 13) == [POSSIBLE_GAP]
    assert position.begin_session(20) == 10
    assert observe(position, 10, 13, 14) == [ALREADY_READ, NEW, NEW]
    assert position.loss is None


def test_possible_gap_is_a_loss_if_the_last_message_was_dropped_too(position: StreamPosition) -> None:
    assert observe(position, 30) == [POSSIBLE_GAP]
    assert position.last == UpdateId(10, tag_of(10)), "no later message counts as read"
    assert position.begin_session(40) == 10
    assert observe(position, 32, 33) == [NEW, NEW]
    assert position.loss == TRUNCATED


def test_another_missing_offset_is_another_possible_gap(position: StreamPosition) -> None:
    observe(position, 13)
    position.begin_session(20)
    assert observe(position, 10, 15) == [ALREADY_READ, POSSIBLE_GAP]
    position.begin_session(20)
    assert observe(position, 10, 15, 18) == [ALREADY_READ, NEW, POSSIBLE_GAP]


def test_first_delivery_is_never_a_possible_gap() -> None:
    position = StreamPosition(5)
    position.begin_session(100)
    assert observe(position, 99) == [NEW]


def test_each_session_has_its_own_end(position: StreamPosition) -> None:
    assert position.at_end
    position.begin_session(20)
    assert not position.at_end
    observe(position, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
    assert not position.at_end
    observe(position, 21)
    assert position.at_end, "the end itself may have been dropped"
    position.begin_session(3)
    assert not position.at_end


@pytest.mark.parametrize("end", [0, 9, 10])
def test_shorter_stream_is_another_one_and_is_read_from_its_beginning(position: StreamPosition, end: int) -> None:
    assert position.begin_session(end) == 0
    assert position.loss == RECREATED
    assert observe(position, 0, 1) == [NEW, NEW], "the new stream is read from its beginning"


def test_longer_stream_is_another_one_if_the_tag_differs(position: StreamPosition) -> None:
    assert position.begin_session(20) == 10
    assert position.observe(10, tag_of(10) + 1) is OTHER_STREAM
    assert position.loss == RECREATED
    assert position.last is None
    assert position.begin_session(21) == 0
    assert observe(position, 0, *range(1, 12)) == [NEW] * 12


def test_other_stream_that_vanishes_before_it_is_read_is_followed_by_the_next_one(position: StreamPosition) -> None:
    position.begin_session(3)
    assert position.begin_session(2) == 0
    assert observe(position, 0) == [NEW]
    assert position.loss == RECREATED


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.lists(st.integers(0, 30)), st.integers(0, 5))
def test_every_message_is_new_once_and_in_order_however_often_it_is_interrupted(
    steps: list[int], sessions: list[int], chunk: int
) -> None:
    """Each session reads some messages.

    The first message of a session may be up to a chunk before the requested offset. The last session reads all
    messages.
    """
    stream = [sum(steps[: at + 1]) for at in range(len(steps))]
    position = StreamPosition(window=10**6)
    read: list[int] = []
    for most in [*sessions, *[len(stream)] * (len(stream) + 1)]:
        start = position.begin_session(stream[-1] + 1)
        coming = [number for number in stream if number >= start - chunk]
        for number in coming[:most]:
            verdict = position.observe(number, tag_of(number))
            assert verdict is not OTHER_STREAM
            if verdict is POSSIBLE_GAP:
                break
            if verdict is NEW:
                read.append(number)
    assert read == stream
    assert position.loss is None
