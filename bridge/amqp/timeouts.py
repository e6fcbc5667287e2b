"""How long the bridge waits for the broker: only time in which its own loop turned counts.

With 20,000 clients on a third of a core, a turn of the loop takes 1 s. What the broker answers meanwhile is read late,
and that is not the broker's fault.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TICKS = 100
"""A limit is so many turns of the loop at least: each counts for no more than a hundredth of it."""


def no_reply_error(limit_s: float) -> ConnectionError:
    """What is said of a broker that answers nothing."""
    return ConnectionError(f"the broker does not answer within {limit_s:g} s")


@asynccontextmanager
async def patient(limit_s: float, on_expiry: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
    """Like `asyncio.timeout`, but each turn of the loop counts for a hundredth of the limit at most.

    `on_expiry` is called when the limit is reached. Raises TimeoutError.
    """
    async with asyncio.timeout(None) as timeout:
        countdown = _Countdown(limit_s / TICKS, timeout, on_expiry)
        try:
            yield
        finally:
            countdown.cancel()


class _Countdown:
    """Lets a timeout expire after TICKS ticks, of which a turn of the loop has one at most."""

    def __init__(self, tick_s: float, timeout: asyncio.Timeout, on_expiry: Callable[[], object]) -> None:
        self._left = TICKS
        self._tick_s = tick_s
        self._timeout = timeout
        self._on_expiry = on_expiry
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(tick_s, self._tick)

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._handle = self._loop.call_later(self._tick_s, self._tick)
        else:
            self._timeout.reschedule(self._loop.time())
            self._on_expiry()

    def cancel(self) -> None:
        self._handle.cancel()


async def sleep(limit_s: float) -> None:
    """Like `asyncio.sleep`, but time in which the loop does not turn counts for a third of it at most."""
    for _ in range(3):  # and not for a hundredth: there may be thousands who sleep
        await asyncio.sleep(limit_s / 3)


@asynccontextmanager
async def rpc_timeout(limit_s: float) -> AsyncIterator[None]:
    """For requests to the broker. Raises ConnectionError if they take longer than `limit_s` together."""
    try:
        async with patient(limit_s):
            yield
    except TimeoutError as error:
        raise no_reply_error(limit_s) from error
