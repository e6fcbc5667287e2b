"""Tests that timeouts for the broker expire in time, unless the bridge's own event loop is slow."""

import asyncio

import pytest

from bridge.amqp import timeouts
from bridge.amqp.timeouts import TICKS, lag_tolerant_timeout, rpc_timeout
from tests.support.virtual_time import VirtualTime


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


async def test_request_beyond_its_limit_is_a_lost_connection(clock: VirtualTime) -> None:
    with pytest.raises(ConnectionError, match=r"the broker does not answer within 2\.5 s"):
        async with rpc_timeout(2.5):
            await asyncio.sleep(2.6)
    async with rpc_timeout(2.5):
        await asyncio.sleep(2.4)


async def test_slow_turns_of_the_loop_hardly_count(clock: VirtualTime) -> None:
    """With a limit of 20 s, twenty turns of the event loop that take 10 s each use up only a fifth of the limit."""
    async with lag_tolerant_timeout(20.0):
        for _ in range(20):
            clock.now_s += 10.0
            await asyncio.sleep(0)


async def test_timeout_expires_after_its_number_of_turns_however_slow_they_are(clock: VirtualTime) -> None:
    turns = 0

    async def wait() -> None:
        nonlocal turns
        while True:
            turns += 1
            clock.now_s += 10.0
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        async with lag_tolerant_timeout(20.0):
            await wait()
    assert TICKS <= turns <= 2 * TICKS + 2


async def test_timeout_ends_with_the_block(clock: VirtualTime) -> None:
    async with lag_tolerant_timeout(1.0):
        pass
    await asyncio.sleep(2.0)


async def test_sleep_lasts_its_time_and_a_blocked_loop_does_not_end_it(clock: VirtualTime) -> None:
    before_s = clock.now_s
    await timeouts.lag_tolerant_sleep(3.0)
    assert clock.now_s - before_s == pytest.approx(3.0, abs=0.01)
    before_s = clock.now_s
    sleeping = asyncio.create_task(timeouts.lag_tolerant_sleep(3.0))
    await asyncio.sleep(0)
    clock.now_s += 60.0
    await sleeping
    assert clock.now_s - before_s == pytest.approx(62.0, abs=0.01)


async def test_on_expiry_is_called_at_the_limit_and_only_then(clock: VirtualTime) -> None:
    expired: list[float] = []
    async with lag_tolerant_timeout(1.0, lambda: expired.append(clock.now_s)):
        pass
    before_s = clock.now_s
    with pytest.raises(TimeoutError):
        async with lag_tolerant_timeout(1.0, lambda: expired.append(clock.now_s)):
            await asyncio.sleep(60)
    assert expired == [pytest.approx(before_s + 1.0, abs=0.02)]
