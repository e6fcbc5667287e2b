"""Pauses before the sessions that follow the same failure again and again."""

import asyncio

import pytest

from bridge.amqp.consume.restart_delay import Repeats
from tests.support.virtual_time import VirtualTime


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


async def waited_s(repeats: Repeats, stopping: asyncio.Event) -> float:
    loop = asyncio.get_running_loop()
    before_s = loop.time()
    waited = await repeats.wait(stopping)
    assert waited or loop.time() == before_s
    return loop.time() - before_s


async def test_only_repeated_failures_are_waited_for_and_longer_each_time() -> None:
    repeats, stopping = Repeats(30.0), asyncio.Event()
    assert await waited_s(repeats, stopping) == 0
    assert repeats.note("here")
    assert await waited_s(repeats, stopping) == 0
    assert not repeats.note("here")
    assert 0.5 <= await waited_s(repeats, stopping) <= 1
    assert await waited_s(repeats, stopping) == 0, "another loss has nothing to do with it"
    assert not repeats.note("here")
    assert 1 <= await waited_s(repeats, stopping) <= 2
    assert repeats.note("there")
    assert repeats.count == 1
    assert not repeats.note("there")
    assert 0.5 <= await waited_s(repeats, stopping) <= 1


async def test_pause_has_a_bound() -> None:
    repeats, stopping = Repeats(30.0), asyncio.Event()
    for _ in range(12):
        repeats.note()
    for _ in range(8):
        repeats.note()
        pause_s = await waited_s(repeats, stopping)
    assert 15 <= pause_s <= 30


async def test_what_is_over_is_counted_anew() -> None:
    repeats = Repeats(30.0)
    repeats.note()
    repeats.note()
    assert repeats.count == 2
    repeats.reset()
    assert repeats.count == 0
    assert repeats.note()
    assert repeats.count == 1


async def test_bridge_that_stops_does_not_wait() -> None:
    repeats, stopping = Repeats(30.0), asyncio.Event()
    repeats.note()
    repeats.note()
    stopping.set()
    assert await waited_s(repeats, stopping) == 0
