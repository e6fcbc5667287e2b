"""The status of a connection to the broker, with a clock that a test sets."""

from __future__ import annotations

import pytest

from bridge.amqp import status
from bridge.amqp.status import Gap, State, Status
from bridge.timing import DEFAULT

ANSWER_VALID_S = DEFAULT.answer_valid_s


class Time:
    """The time of the monotonic clock, which a test sets."""

    def __init__(self) -> None:
        self.now_s = 500.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 1_697_962_000.0 + self.now_s - 500.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(status, "time", clock)
    return clock


@pytest.fixture
def since(clock: Time) -> Status:
    """A `Status` that was just created."""
    return Status(since_s=clock.now_s)


def test_new_status_is_connecting_and_proves_nothing(since: Status) -> None:
    assert (since.state, since.ever_connected, since.is_fresh, since.attempts) == (State.CONNECTING, False, False, 0)
    assert since.report() == {
        "state": "connecting",
        "for_s": 0.0,
        "attempts": 0,
        "last_error": None,
        "last_error_at": None,
    }


def test_status_begins_when_it_is_created() -> None:
    assert Status().report()["for_s"] == 0.0


def test_change_is_dated(since: Status, clock: Time) -> None:
    clock.now_s += 10
    since.enter(State.LOST, "no route to host")
    clock.now_s += 2.54
    assert since.report() == {
        "state": "lost",
        "for_s": 2.5,
        "attempts": 0,
        "last_error": "no route to host",
        "last_error_at": "2023-10-22T08:06:50.000Z",
    }


def test_past_error_is_reported_with_its_time(since: Status, clock: Time) -> None:
    since.enter(State.LOST, "no route to host")
    clock.now_s += 60
    since.enter(State.WORKING)
    assert (since.report()["last_error"], since.report()["last_error_at"]) == (
        "no route to host",
        "2023-10-22T08:06:40.000Z",
    )
    since.enter(State.LOST, "the same again")
    assert since.report()["last_error_at"] == "2023-10-22T08:07:40.000Z"


def test_same_state_again_only_changes_the_error(since: Status, clock: Time) -> None:
    since.enter(State.LOST, "first")
    clock.now_s += 5
    since.enter(State.LOST, "second")
    assert (since.report()["for_s"], since.error) == (5.0, "second")


def test_working_forgets_the_attempts_and_keeps_the_last_error(since: Status) -> None:
    since.attempts = 7
    since.enter(State.LOST, "connection refused")
    since.enter(State.WORKING)
    assert (since.ever_connected, since.attempts, since.error) == (True, 0, "connection refused")


def test_ever_connected_stays_true(since: Status) -> None:
    since.enter(State.WORKING)
    since.enter(State.LOST, "gone")
    assert since.ever_connected


@pytest.mark.parametrize(("age_s", "is_fresh"), [(0.0, True), (ANSWER_VALID_S, True), (ANSWER_VALID_S + 0.1, False)])
def test_answer_proves_the_connection_for_a_limited_time(
    since: Status, clock: Time, age_s: float, *, is_fresh: bool
) -> None:
    since.enter(State.WORKING)
    clock.now_s += age_s
    assert since.is_fresh is is_fresh


def test_new_answer_proves_the_connection_again(since: Status, clock: Time) -> None:
    since.enter(State.WORKING)
    clock.now_s += 2 * ANSWER_VALID_S
    since.touch(clock.now_s)
    assert since.is_fresh


def test_answer_proves_nothing_about_the_time_since_its_request(since: Status, clock: Time) -> None:
    """After being frozen, the bridge reads answers that the broker sent long ago."""
    since.enter(State.WORKING)
    requested_s = clock.now_s
    clock.now_s += 2 * ANSWER_VALID_S
    since.touch(requested_s)
    assert not since.is_fresh
    since.touch(clock.now_s)
    since.touch(requested_s)
    assert since.last_answered_s == clock.now_s, "a late answer does not set the time back"


def test_gap_is_reported_in_rfc3339() -> None:
    gap = Gap(1_697_962_000.0, 1_697_962_003.25, "Connection refused")
    assert gap.report() == {
        "since": "2023-10-22T08:06:40.000Z",
        "until": "2023-10-22T08:06:43.250Z",
        "reason": "Connection refused",
    }
