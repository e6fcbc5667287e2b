"""Failed attempts to publish are repeated one at a time.

As soon as one attempt is confirmed, the other attempts follow quickly.
"""

import asyncio

import pytest

from bridge.amqp.rejects.retry_queue import RetryQueue
from bridge.backoff import Backoff
from tests.support.waiting import eventually

MANY = 1000

NEVER_S = 3600.0

NO_PAUSE = Backoff(first_s=0, longest_s=0)


class Pauses:
    """Replaces the pauses that all attempts share, and counts these pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.length_s = 0.0

        def pause_s(backoff: Backoff) -> float:
            if backoff is NO_PAUSE:
                return 0.0
            self.count += 1
            return self.length_s

        monkeypatch.setattr(Backoff, "pause_s", pause_s)


async def turns() -> None:
    """Runs the loop until all calls that need no time have run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_attempts_are_made_one_by_one_until_one_is_confirmed_and_then_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses, retries = Pauses(monkeypatch), RetryQueue()
    attempts, trouble = 0, True

    async def try_again() -> None:
        nonlocal attempts
        while True:
            await retries.wait(NO_PAUSE)
            attempts += 1
            await asyncio.sleep(0)
            if not trouble:
                break
            retries.failed()
        retries.confirmed()

    tasks = [asyncio.create_task(try_again()) for _ in range(MANY)]
    await eventually("there are some attempts", lambda: attempts >= 10)
    # There was a pause before each attempt to publish, and the pause before the next attempt has already begun.
    assert attempts <= pauses.count <= attempts + 2
    trouble, before = False, pauses.count
    await asyncio.gather(*tasks)
    assert pauses.count - before <= 20


async def test_confirmed_attempt_releases_two_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses, retries = Pauses(monkeypatch), RetryQueue()
    pauses.length_s = NEVER_S
    # If no attempt is waiting, a confirm has no effect.
    retries.confirmed()
    waiting = [asyncio.create_task(retries.wait(NO_PAUSE)) for _ in range(5)]
    await turns()
    assert sum(task.done() for task in waiting) == 0
    retries.confirmed()
    await turns()
    assert sum(task.done() for task in waiting) == 2
    retries.confirmed()
    retries.failed()
    await turns()
    # The confirmed attempt released the first waiting attempt at once. Because of the failed attempt, no other attempt
    # was released.
    assert sum(task.done() for task in waiting) == 3
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
