"""A silent broker, with a clock that the test moves: when its connection is closed, and when it stays open."""

from __future__ import annotations

import asyncio

import aiormq
import pytest

from bridge.amqp.wire.heartbeats import make_patient
from tests.support.fakes import ManualClock

HEARTBEAT_S = 10
INTERVAL_S = HEARTBEAT_S // 2
"""The time between two checks of aiormq."""

GRACE_S = 33
"""The time without a frame after which aiormq closes a connection."""


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    return ManualClock(monkeypatch)


def opened() -> aiormq.connection.Connection:
    """Returns a connection that has just received a frame."""
    return aiormq.connection.Connection(f"amqp://localhost/?heartbeat={HEARTBEAT_S}", loop=asyncio.get_running_loop())


def test_aiormq_alone_closes_the_connection_after_a_freeze() -> None:
    """If this test fails, aiormq does this itself, and `heartbeats.py` is no longer needed."""

    async def frozen() -> bool:
        with pytest.MonkeyPatch.context() as patch:
            clock, connection = ManualClock(patch), opened()
            clock.now_s += 3600.0
            return connection.is_connection_was_stuck

    assert asyncio.run(frozen())


async def test_broker_that_sends_nothing_is_given_up_in_time(clock: ManualClock) -> None:
    connection = opened()
    make_patient(connection)
    for _ in range(GRACE_S // INTERVAL_S):
        clock.now_s += INTERVAL_S
        assert not connection.is_connection_was_stuck
    clock.now_s += INTERVAL_S
    assert connection.is_connection_was_stuck


@pytest.mark.parametrize("freeze_s", [GRACE_S + 1.0, 3600.0])
async def test_broker_that_was_frozen_with_the_bridge_has_the_whole_time_again(
    clock: ManualClock, freeze_s: float
) -> None:
    connection = opened()
    make_patient(connection)
    clock.now_s += freeze_s
    for _ in range(1 + GRACE_S // INTERVAL_S):
        assert not connection.is_connection_was_stuck
        clock.now_s += INTERVAL_S
    assert connection.is_connection_was_stuck


def test_connection_of_another_kind_is_left_alone() -> None:
    other = object()
    make_patient(other)  # type: ignore[arg-type]  # as a test's fake
    assert type(other) is object
