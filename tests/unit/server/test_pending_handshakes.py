"""Tests when handshakes time out, with a clock that the tests move."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from bridge.server.pending_handshakes import PERIODS, PendingHandshakes
from tests.support.fakes import STEP_S, ManualClock

PERIOD_S = 2 * STEP_S
"""A whole number of the clock's steps, so that each period ends at a step."""
TIMEOUT_S = PERIODS * PERIOD_S


class Handshake:
    """A handshake that records when its timeout was reported."""

    def __init__(self, pending: PendingHandshakes[Handshake], clock: ManualClock, log: list[Handshake]) -> None:
        self.pending = pending
        self.clock = clock
        self.log = log
        self.began_s = clock.now_s
        self.timed_out: list[float] = []
        """The time from the beginning of the handshake to each call of `on_timeout`, in seconds."""
        self.removes = True
        """Whether the handshake is removed when it times out."""

    def on_timeout(self) -> None:
        self.timed_out.append(self.clock.now_s - self.began_s)
        self.log.append(self)
        if self.removes:
            self.pending.remove(self)


class Harness:
    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.timers: list[asyncio.TimerHandle] = []
        self.pending: PendingHandshakes[Handshake] = PendingHandshakes(self._call_later, TIMEOUT_S)
        self.log: list[Handshake] = []
        """The handshakes that timed out, in order."""

    def _call_later(self, delay_s: float, callback: object) -> asyncio.TimerHandle:
        assert callable(callback)
        assert delay_s == PERIOD_S
        timer = asyncio.get_running_loop().call_later(delay_s, callback)
        self.timers.append(timer)
        return timer

    @property
    def has_timer(self) -> bool:
        return any(timer.when() > self.clock.now_s for timer in self.timers)

    def begin(self) -> Handshake:
        """Adds a handshake whose request does not arrive at once."""
        handshake = Handshake(self.pending, self.clock, self.log)
        self.pending.add(handshake)
        self.pending.start_timer()
        return handshake


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    return ManualClock(monkeypatch)


@pytest.fixture
async def harness(clock: ManualClock) -> Harness:
    return Harness(clock)


# The timeout


async def test_lone_handshake_times_out_after_the_timeout_exactly(harness: Harness) -> None:
    handshake = harness.begin()
    await harness.clock.advance(TIMEOUT_S - STEP_S)
    assert handshake.timed_out == []
    await harness.clock.advance(STEP_S)
    assert handshake.timed_out == [TIMEOUT_S]
    assert len(harness.timers) == PERIODS


@pytest.mark.parametrize("steps", range(1, 5))
async def test_later_handshake_times_out_up_to_one_period_later(harness: Harness, steps: int) -> None:
    first = harness.begin()
    await harness.clock.advance(steps * STEP_S)
    second = harness.begin()
    await harness.clock.advance(TIMEOUT_S - STEP_S)
    assert second.timed_out == []
    await harness.clock.advance(STEP_S + PERIOD_S)
    assert first.timed_out == [TIMEOUT_S]
    [after_s] = second.timed_out
    assert TIMEOUT_S <= after_s <= TIMEOUT_S + PERIOD_S
    assert (first.began_s + after_s + steps * STEP_S - first.began_s) % PERIOD_S == 0


async def test_no_handshake_times_out_early_or_more_than_one_period_late(harness: Harness) -> None:
    begun = []
    for _ in range(60):
        begun.append(harness.begin())
        await harness.clock.advance(STEP_S)
    await harness.clock.advance(TIMEOUT_S + PERIOD_S)
    assert harness.log == begun
    for handshake in begun:
        [after_s] = handshake.timed_out
        assert TIMEOUT_S <= after_s <= TIMEOUT_S + PERIOD_S


async def test_handshakes_time_out_in_the_order_in_which_they_began(harness: Harness) -> None:
    begun = [harness.begin() for _ in range(5)]
    await harness.clock.advance(PERIOD_S)
    begun += [harness.begin() for _ in range(5)]
    await harness.clock.advance(TIMEOUT_S)
    assert harness.log == begun[:5]
    await harness.clock.advance(PERIOD_S)
    assert harness.log == begun
    assert len(harness.pending) == 0


async def test_handshake_that_is_not_removed_is_reported_in_each_period(harness: Harness) -> None:
    handshake = harness.begin()
    handshake.removes = False
    await harness.clock.advance(TIMEOUT_S + 2 * PERIOD_S)
    assert handshake.timed_out == [TIMEOUT_S, TIMEOUT_S + PERIOD_S, TIMEOUT_S + 2 * PERIOD_S]
    harness.pending.remove(handshake)
    await harness.clock.advance(2 * PERIOD_S)
    assert len(handshake.timed_out) == 3


async def test_removed_handshake_does_not_time_out(harness: Harness) -> None:
    removed, other = harness.begin(), harness.begin()
    await harness.clock.advance(TIMEOUT_S - STEP_S)
    harness.pending.remove(removed)
    await harness.clock.advance(2 * PERIOD_S)
    assert harness.log == [other]


async def test_handshake_that_times_out_may_remove_and_add_others(harness: Harness) -> None:
    first, second = harness.begin(), harness.begin()
    added: list[Handshake] = []

    class Replaced(Handshake):
        def on_timeout(self) -> None:
            super().on_timeout()
            added.append(harness.begin())

    third = Replaced(harness.pending, harness.clock, harness.log)
    harness.pending.add(third)
    await harness.clock.advance(TIMEOUT_S + PERIOD_S)
    assert harness.log == [first, second, third]
    await harness.clock.advance(TIMEOUT_S)
    assert harness.log == [first, second, third, *added]
    assert len(added) == 1
    assert TIMEOUT_S <= added[0].timed_out[0] <= TIMEOUT_S + PERIOD_S


# Slow turns of the event loop


async def test_slow_turn_counts_as_one_period(harness: Harness) -> None:
    """A turn that takes longer than the timeout must not refuse the clients that connected during the turn."""
    handshake = harness.begin()
    await harness.clock.stall(3 * TIMEOUT_S)
    assert handshake.timed_out == []
    await harness.clock.advance((PERIODS - 1) * PERIOD_S - STEP_S)
    assert handshake.timed_out == []
    await harness.clock.advance(STEP_S)
    assert handshake.timed_out == [3 * TIMEOUT_S + (PERIODS - 1) * PERIOD_S]


async def test_handshake_times_out_after_periods_turns_even_if_each_turn_is_slow(harness: Harness) -> None:
    handshake = harness.begin()
    for _ in range(PERIODS - 1):
        await harness.clock.stall(TIMEOUT_S)
    assert handshake.timed_out == []
    await harness.clock.stall(TIMEOUT_S)
    assert len(handshake.timed_out) == 1


# The timer


async def test_all_handshakes_share_one_timer(harness: Harness) -> None:
    for _ in range(100):
        harness.begin()
    assert len(harness.timers) == 1
    await harness.clock.advance(PERIOD_S)
    assert len(harness.timers) == 2


async def test_handshake_that_is_removed_at_once_needs_no_timer(harness: Harness) -> None:
    handshake = Handshake(harness.pending, harness.clock, harness.log)
    harness.pending.add(handshake)
    harness.pending.remove(handshake)
    harness.pending.start_timer()
    assert harness.timers == []


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "timed out"])
async def test_timer_stops_when_no_handshake_is_pending(harness: Harness, *, removed: bool) -> None:
    handshake = harness.begin()
    if removed:
        harness.pending.remove(handshake)
    await harness.clock.advance(TIMEOUT_S)
    assert not harness.has_timer
    count = len(harness.timers)
    assert count == (1 if removed else PERIODS)
    await harness.clock.advance(2 * TIMEOUT_S)
    assert len(harness.timers) == count
    # The next handshake starts the timer again, and is a lone one.
    lone = harness.begin()
    await harness.clock.advance(TIMEOUT_S)
    assert lone.timed_out == [TIMEOUT_S]


async def test_handshake_that_begins_while_a_timer_without_handshakes_runs_does_not_time_out_early(
    harness: Harness,
) -> None:
    harness.pending.remove(harness.begin())
    await harness.clock.advance(PERIOD_S - STEP_S)
    handshake = harness.begin()
    assert len(harness.timers) == 1
    await harness.clock.advance(TIMEOUT_S)
    assert handshake.timed_out == []
    await harness.clock.advance(STEP_S)
    assert handshake.timed_out == [TIMEOUT_S + STEP_S]


async def test_handshake_of_which_the_timeout_fails_does_not_keep_the_others_pending(harness: Harness) -> None:
    class Failing(Handshake):
        def on_timeout(self) -> None:
            super().on_timeout()
            raise RuntimeError("a bug")

    failing = Failing(harness.pending, harness.clock, harness.log)
    harness.pending.add(failing)
    other = harness.begin()
    with capture_logs() as logged:
        await harness.clock.advance(TIMEOUT_S + PERIOD_S)
    assert [line["event"] for line in logged] == ["timeout of a handshake failed"]
    assert harness.log == [failing, other]


# The collection


async def test_pending_handshakes_are_in_the_order_in_which_they_began(harness: Harness) -> None:
    pending = harness.pending
    assert (len(pending), list(pending), pending.oldest) == (0, [], None)
    first, second, third = (harness.begin() for _ in range(3))
    assert (len(pending), list(pending), pending.oldest) == (3, [first, second, third], first)
    assert second in pending
    pending.remove(second)
    assert second not in pending
    assert (len(pending), list(pending), pending.oldest) == (2, [first, third], first)
    pending.remove(first)
    assert pending.oldest is third
    pending.remove(third)
    assert pending.oldest is None


async def test_removal_of_an_unknown_handshake_is_an_error(harness: Harness) -> None:
    handshake = harness.begin()
    harness.pending.remove(handshake)
    with pytest.raises(KeyError):
        harness.pending.remove(handshake)


async def test_handshakes_may_be_removed_during_an_iteration(harness: Harness) -> None:
    begun = [harness.begin() for _ in range(4)]
    seen = []
    for handshake in harness.pending:
        harness.pending.remove(handshake)
        seen.append(handshake)
    assert seen == begun
    assert len(harness.pending) == 0
