"""Tests of the pauses before sessions that follow repeated failures."""

import asyncio

import pytest

from bridge.amqp.consume.repeated_failures import RepeatedFailures
from tests.support.virtual_time import VirtualTime


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


async def waited_s(failures: RepeatedFailures, stopping: asyncio.Event) -> float:
    loop = asyncio.get_running_loop()
    before_s = loop.time()
    waited = await failures.wait(stopping)
    assert waited or loop.time() == before_s
    return loop.time() - before_s


async def test_only_repeated_failures_cause_pauses_and_they_grow() -> None:
    failures, stopping = RepeatedFailures(30.0), asyncio.Event()
    assert await waited_s(failures, stopping) == 0
    assert failures.note("here")
    assert await waited_s(failures, stopping) == 0
    assert not failures.note("here")
    assert 0.5 <= await waited_s(failures, stopping) <= 1
    assert await waited_s(failures, stopping) == 0, "another failure does not count"
    assert not failures.note("here")
    assert 1 <= await waited_s(failures, stopping) <= 2
    assert failures.note("there")
    assert failures.count == 1
    assert not failures.note("there")
    assert 0.5 <= await waited_s(failures, stopping) <= 1


async def test_pause_has_a_bound() -> None:
    failures, stopping = RepeatedFailures(30.0), asyncio.Event()
    for _ in range(12):
        failures.note()
    for _ in range(8):
        failures.note()
        pause_s = await waited_s(failures, stopping)
    assert 15 <= pause_s <= 30


async def test_reset_restarts_the_count() -> None:
    failures = RepeatedFailures(30.0)
    failures.note()
    failures.note()
    assert failures.count == 2
    failures.reset()
    assert failures.count == 0
    assert failures.note()
    assert failures.count == 1


async def test_bridge_that_stops_does_not_wait() -> None:
    failures, stopping = RepeatedFailures(30.0), asyncio.Event()
    failures.note()
    failures.note()
    stopping.set()
    assert await waited_s(failures, stopping) == 0
