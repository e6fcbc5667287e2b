"""Tests that the window of identities remembers the newest identities, and forgets the oldest identities first."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract.deduplication import DuplicateWindow


def test_new_window_is_empty() -> None:
    window = DuplicateWindow(2)
    assert ("killmail", 1) not in window
    assert len(window) == 0


def test_added_identity_is_known() -> None:
    window = DuplicateWindow(2)
    assert window.add(("killmail", 1))
    assert ("killmail", 1) in window
    assert not window.add(("killmail", 1))


def test_removed_newest_identity_can_be_added_again() -> None:
    window = DuplicateWindow(2)
    window.add(("killmail", 1))
    window.add(("killmail", 2))
    window.remove_newest()
    assert ("killmail", 1) in window
    assert window.add(("killmail", 2))


def test_empty_window_has_no_identity_to_remove() -> None:
    window = DuplicateWindow(0)
    assert window.add(("killmail", 1))
    window.remove_newest()
    assert len(window) == 0


@pytest.mark.parametrize("other", [("event", 1), ("killmail", 2), ("killmail", "1")])
def test_other_type_or_value_is_another_identity(other: tuple[str, str | float]) -> None:
    window = DuplicateWindow(2)
    window.add(("killmail", 1))
    assert other not in window


def test_full_window_forgets_nothing() -> None:
    window = DuplicateWindow(3)
    for number in range(3):
        window.add(("killmail", number))
    assert all(("killmail", number) in window for number in range(3))


def test_one_more_identity_removes_the_oldest() -> None:
    window = DuplicateWindow(3)
    for number in range(4):
        window.add(("killmail", number))
    assert ("killmail", 0) not in window
    assert all(("killmail", number) in window for number in (1, 2, 3))
    assert len(window) == 3


def test_window_of_size_0_remembers_nothing() -> None:
    window = DuplicateWindow(0)
    window.add(("killmail", 1))
    assert ("killmail", 1) not in window
    assert len(window) == 0


@given(size=st.integers(0, 5), values=st.lists(st.integers(0, 9)))
def test_window_contains_the_newest_identities(size: int, values: list[int]) -> None:
    window, newest = DuplicateWindow(size), deque[int](maxlen=size)
    for value in values:
        if window.add(("killmail", value)):
            assert value not in newest
            newest.append(value)
        assert {value for value in range(10) if ("killmail", value) in window} == set(newest)
        assert len(window) == len(newest) <= size
