"""Tests that a requested cancellation is distinguished from a CancelledError that only a library raises."""

from __future__ import annotations

import asyncio

import pytest

from bridge.amqp.cancellation import CancellationGuard


async def test_cancellation_that_only_a_library_raises_is_not_requested() -> None:
    guard = CancellationGuard()
    with pytest.raises(asyncio.CancelledError):
        raise asyncio.CancelledError
    assert not guard.requested


@pytest.mark.parametrize("earlier", [0, 1])
async def test_cancellation_of_the_task_is_requested_and_earlier_ones_do_not_count(earlier: int) -> None:
    requested: list[bool] = []

    async def wait() -> None:
        for _ in range(earlier):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()
        guard = CancellationGuard()
        requested.append(guard.requested)
        try:
            await asyncio.Event().wait()
        finally:
            requested.append(guard.requested)

    task = asyncio.create_task(wait())
    for _ in range(earlier):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert requested == [False]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert requested == [False, True]
