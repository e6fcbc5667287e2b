"""Waiting for the thing itself, with a limit."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import ParamSpec

Parameters = ParamSpec("Parameters")

LIMIT_S = 20.0
"""Generous: a test that waits this long fails, and says what for."""


async def eventually(what: str, holds: Callable[[], object | Awaitable[object]], limit_s: float = LIMIT_S) -> None:
    """Returns as soon as `holds` gives something true; raises AssertionError, naming `what`, when it never does."""
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
    """A test that fails where a task goes on after its end that did not run at its start."""

    @functools.wraps(test)
    async def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        before = asyncio.all_tasks()
        await test(*args, **kwargs)
        # Not at once: aiormq closes a lost connection in a task of its own, which ends by itself.
        await eventually("every task has ended", lambda: asyncio.all_tasks() <= before)

    return checked
