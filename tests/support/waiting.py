"""Functions that wait for a condition, up to a time limit."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import ParamSpec

Parameters = ParamSpec("Parameters")

LIMIT_S = 20.0
"""The default time limit of `eventually`. A long limit costs
nothing, because only a failing test waits until the limit."""


async def eventually(what: str, holds: Callable[[], object | Awaitable[object]], limit_s: float = LIMIT_S) -> None:
    """Waits until `holds` returns a true value, and returns that value.

    Raises AssertionError with the text `what` if `holds` returns no true value within the time limit.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while True:
        result = holds()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return
        if loop.time() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        await asyncio.sleep(0.01)


def no_task_left(
    test: Callable[Parameters, Coroutine[None, None, None]],
) -> Callable[Parameters, Coroutine[None, None, None]]:
    """Wraps a test, so that the test fails if it leaves a task running."""

    @functools.wraps(test)
    async def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        before = asyncio.all_tasks()
        await test(*args, **kwargs)
        # The check waits, because aiormq closes a lost connection in a separate task, which ends by itself.
        await eventually("every task has ended", lambda: asyncio.all_tasks() <= before)

    return checked
