"""Tests of the module that recognizes storms of clients that join."""

from __future__ import annotations

import pytest

from bridge.broadcast.join_storm import MAX_JOINS, MAX_WINDOWS, WINDOW_S, JoinStorm
from tests.support.fakes import Turns


class Door:
    """A JoinStorm whose windows the test ends."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.ends = 0
        self.storm = JoinStorm(self.turns.call_later, self._count_end)

    def _count_end(self) -> None:
        assert not self.storm.is_on
        self.ends += 1

    def join(self, connections: int) -> int:
        """Lets connections join. Returns how many of them must be held."""
        return sum(self.storm.on_join() for _ in range(connections))

    def begin_storm(self) -> None:
        assert self.join(MAX_JOINS + 1) == 1


@pytest.fixture
def door() -> Door:
    return Door()


def test_few_connections_in_each_window_are_no_storm(door: Door) -> None:
    for _ in range(2 * MAX_WINDOWS):
        assert not door.join(MAX_JOINS)
        door.turns.end_timers()
    assert not door.storm.is_on
    assert door.ends == 0


def test_storm_begins_with_the_first_connection_above_the_maximum(door: Door) -> None:
    assert not door.join(MAX_JOINS)
    assert not door.storm.is_on
    assert door.join(10) == 10
    assert door.storm.is_on


def test_window_has_its_duration(door: Door) -> None:
    delays: list[float] = []
    storm = JoinStorm(lambda delay_s, _: delays.append(delay_s), pytest.fail)
    storm.on_join()
    storm.on_join()
    assert delays == [WINDOW_S]


def test_no_timer_is_set_while_no_connection_joins(door: Door) -> None:
    door.join(1)
    door.turns.end_timers()
    assert not door.turns.timers


def test_all_connections_of_a_storm_are_held(door: Door) -> None:
    door.begin_storm()
    door.turns.end_timers()
    assert door.join(1) == 1


def test_storm_ends_with_the_first_window_in_which_few_connections_join(door: Door) -> None:
    door.begin_storm()
    for _ in range(3):
        door.turns.end_timers()
        assert door.storm.is_on
        door.join(MAX_JOINS + 1)
    door.turns.end_timers()
    door.join(MAX_JOINS)
    assert door.ends == 0
    door.turns.end_timers()
    assert door.ends == 1
    assert not door.join(MAX_JOINS)


def test_long_storm_ends_after_the_maximum_duration(door: Door) -> None:
    door.begin_storm()
    for _ in range(MAX_WINDOWS - 1):
        door.turns.end_timers()
        door.join(MAX_JOINS + 1)
    assert door.ends == 0
    door.turns.end_timers()
    assert door.ends == 1


def test_another_storm_follows_a_long_storm(door: Door) -> None:
    for storms in range(1, 3):
        door.begin_storm()
        for _ in range(MAX_WINDOWS - 1):
            door.turns.end_timers()
            door.join(MAX_JOINS + 1)
        door.turns.end_timers()
        assert door.ends == storms


def test_another_storm_may_begin_in_the_window_in_which_a_storm_is_ended(door: Door) -> None:
    door.begin_storm()
    door.storm.end()
    assert door.ends == 1
    assert door.join(1) == 1


def test_end_without_a_storm_does_nothing(door: Door) -> None:
    door.storm.end()
    door.join(1)
    door.storm.end()
    assert door.ends == 0
