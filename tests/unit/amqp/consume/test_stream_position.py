"""What a stream's offsets and checks say, life after life."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.amqp.consume.stream_position import DROPPED, REMADE, Course, Verdict
from bridge.contract.update_id import UpdateId

NEW, KNOWN, FOREIGN, DOUBTFUL = Verdict.NEW, Verdict.KNOWN, Verdict.FOREIGN, Verdict.DOUBTFUL


def check_of(number: int) -> int:
    """The check of a message of the usual stream; another stream's is another."""
    return number * 7 + 1


def judge(course: Course, *numbers: int) -> list[Verdict]:
    return [course.judge(number, check_of(number)) for number in numbers]


@pytest.fixture
def course() -> Course:
    """One that has read 5 to 10, and lost its connection."""
    course = Course(window=5)
    assert course.begin(10) == 5
    judge(course, *range(5, 11))
    assert course.catch_up(10)
    return course


# The first life


@pytest.mark.parametrize(("end", "window", "start"), [(10, 5, 5), (5, 5, 0), (3, 5, 0), (0, 5, 0), (9, 0, 9)])
def test_first_life_begins_a_window_before_the_end(end: int, window: int, start: int) -> None:
    assert Course(window).begin(end) == start


def test_all_is_new_and_nothing_is_lost_where_the_stream_begins_later_than_asked_for() -> None:
    course = Course(100)
    assert course.begin(50) == 0
    assert judge(course, 46, 48, 50) == [NEW] * 3
    assert course.lost is None
    assert course.last == UpdateId(50, check_of(50))


def test_past_ends_with_the_end_and_only_once() -> None:
    course = Course(100)
    course.begin(10)
    assert [course.catch_up(number) for number in (0, 9, 10, 11)] == [False, False, True, False]
    assert course.caught_up


def test_past_ends_as_well_where_the_end_itself_is_not_there_any_more() -> None:
    course = Course(100)
    course.begin(10)
    assert [course.catch_up(number) for number in (9, 12)] == [False, True]


def test_life_that_ends_before_all_of_the_past_is_read_is_gone_on_with() -> None:
    course = Course(100)
    course.begin(10)
    judge(course, 0, 1, 2)
    assert course.begin(20) == 2
    assert judge(course, 2, 3) == [KNOWN, NEW]
    assert not course.catch_up(10), "what came meanwhile belongs to the past as well"
    assert course.catch_up(20)
    assert course.lost is None


def test_life_that_ends_before_anything_is_read_is_begun_anew() -> None:
    course = Course(5)
    course.begin(10)
    assert course.begin(30) == 25
    assert judge(course, 27) == [NEW]
    assert course.lost is None


# Later lives


def test_later_life_begins_with_what_was_read_last_and_goes_on_behind_it(course: Course) -> None:
    assert course.begin(20) == 10
    assert judge(course, 10, 11, 13) == [KNOWN, NEW, NEW]
    assert course.lost is None
    assert not course.catch_up(20), "that was long ago"


def test_chunk_that_begins_earlier_is_known(course: Course) -> None:
    course.begin(20)
    assert judge(course, 8, 9, 10, 11) == [KNOWN, KNOWN, KNOWN, NEW]
    assert course.lost is None


def test_offset_that_comes_again_within_a_life_is_known(course: Course) -> None:
    course.begin(20)
    assert judge(course, 10, 11, 12, 11, 12, 13, 10, 14) == [KNOWN, NEW, NEW, KNOWN, KNOWN, NEW, KNOWN, NEW]
    assert course.lost is None


def test_what_was_dropped_unread_is_said(course: Course) -> None:
    course.begin(20)
    assert judge(course, 15, 16) == [NEW, NEW]
    assert course.lost == DROPPED
    course.lost = None
    assert judge(course, 18) == [NEW]
    assert course.lost is None, "it is said once"


@pytest.mark.parametrize("next_one", [11, 12])
def test_single_places_are_the_brokers_own(course: Course, next_one: int) -> None:
    assert judge(course, next_one) == [NEW]


def test_more_missing_places_end_a_life_and_what_follows_the_last_one_again_is_taken(course: Course) -> None:
    """Nothing was dropped: else the last one, which is older, would not be there any more."""
    assert judge(course, 13) == [DOUBTFUL]
    assert course.begin(20) == 10
    assert judge(course, 10, 13, 14) == [KNOWN, NEW, NEW]
    assert course.lost is None


def test_more_missing_places_are_told_as_dropped_where_the_last_one_is_gone_too(course: Course) -> None:
    assert judge(course, 30) == [DOUBTFUL]
    assert course.last == UpdateId(10, check_of(10)), "nothing behind them counts as read"
    assert course.begin(40) == 10
    assert judge(course, 32, 33) == [NEW, NEW]
    assert course.lost == DROPPED


def test_other_missing_places_than_those_that_were_doubted_are_doubted_again(course: Course) -> None:
    judge(course, 13)
    course.begin(20)
    assert judge(course, 10, 15) == [KNOWN, DOUBTFUL]
    course.begin(20)
    assert judge(course, 10, 15, 18) == [KNOWN, NEW, DOUBTFUL]


def test_first_delivery_of_all_is_not_doubted() -> None:
    course = Course(5)
    course.begin(100)
    assert judge(course, 99) == [NEW]


def test_end_is_that_of_each_life(course: Course) -> None:
    assert course.at_end
    course.begin(20)
    assert not course.at_end
    judge(course, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
    assert not course.at_end
    judge(course, 21)
    assert course.at_end, "the end itself may be gone"
    course.begin(3)
    assert not course.at_end


@pytest.mark.parametrize("end", [0, 9, 10])
def test_shorter_stream_is_another_and_is_read_from_its_beginning(course: Course, end: int) -> None:
    assert course.begin(end) == 0
    assert course.lost == REMADE
    assert judge(course, 0, 1) == [NEW, NEW], "all of it, whatever was read of the other one"


def test_longer_stream_is_another_where_the_check_says_so(course: Course) -> None:
    assert course.begin(20) == 10
    assert course.judge(10, check_of(10) + 1) is FOREIGN
    assert course.lost == REMADE
    assert course.last is None
    assert course.begin(21) == 0
    assert judge(course, 0, *range(1, 12)) == [NEW] * 12


def test_other_stream_that_vanishes_before_it_is_read_is_followed_by_the_next_one(course: Course) -> None:
    course.begin(3)
    assert course.begin(2) == 0
    assert judge(course, 0) == [NEW]
    assert course.lost == REMADE


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.lists(st.integers(0, 30)), st.integers(0, 5))
def test_every_message_is_new_once_and_in_order_however_often_it_is_interrupted(
    steps: list[int], lives: list[int], chunk: int
) -> None:
    """Each life has so many deliveries, the last ones all of them, and begins up to a chunk too early."""
    stream = [sum(steps[: at + 1]) for at in range(len(steps))]
    course = Course(window=10**6)
    read: list[int] = []
    for most in [*lives, *[len(stream)] * (len(stream) + 1)]:
        start = course.begin(stream[-1] + 1)
        coming = [number for number in stream if number >= start - chunk]
        for number in coming[:most]:
            verdict = course.judge(number, check_of(number))
            assert verdict is not FOREIGN
            if verdict is DOUBTFUL:
                break
            if verdict is NEW:
                read.append(number)
    assert read == stream
    assert course.lost is None
