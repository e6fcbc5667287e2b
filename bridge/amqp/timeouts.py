"""Timeouts for the broker's answers. These timeouts hardly count the time in which the bridge's event loop is busy.

With 20,000 clients on a third of a processor core, a turn of the loop takes 1 s. If the broker's answer arrives during
a long turn of the loop, the bridge reads the answer late. A plain timeout would blame the broker for a delay in the
bridge.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TICKS = 100
"""The number of ticks of a timeout.

Each tick takes at least one turn of the loop. Even a very long turn therefore counts for at most a hundredth of the
timeout.
"""


@asynccontextmanager
async def rpc_timeout(limit_s: float) -> AsyncIterator[None]:
    """Limits the time that requests to the broker may take.

    Raises ConnectionError if the requests together take longer than `limit_s`.
    """
    try:
        async with lag_tolerant_timeout(limit_s):
            yield
    except TimeoutError as error:
        raise no_reply_error(limit_s) from error


def no_reply_error(limit_s: float) -> ConnectionError:
    """Returns the error to raise if the broker answers no request."""
    return ConnectionError(f"the broker does not answer within {limit_s:g} s")


@asynccontextmanager
async def lag_tolerant_timeout(limit_s: float, on_expiry: Callable[[], object] | None = None) -> AsyncIterator[None]:
    """Sets a limit like `asyncio.timeout`, but counts a long turn of the loop as at most a hundredth of the limit.

    `on_expiry` is called when the limit is reached. Raises TimeoutError.
    """
    async with asyncio.timeout(None) as timeout:
        countdown = _Countdown(limit_s / TICKS, timeout, on_expiry)
        try:
            yield
        finally:
            countdown.cancel()


async def lag_tolerant_sleep(delay_s: float) -> None:
    """Sleeps like `asyncio.sleep`, but counts a long turn of the event loop as at most a third of the delay."""
    for _ in range(3):  # three ticks instead of a hundred, because thousands of tasks may sleep at the same time
        await asyncio.sleep(delay_s / 3)


class _Countdown:
    """Ends a timeout after TICKS ticks. At most one tick runs in each turn of the loop."""

    def __init__(self, tick_s: float, timeout: asyncio.Timeout, on_expiry: Callable[[], object] | None) -> None:
        self._ticks_left = TICKS
        self._tick_s = tick_s
        self._timeout = timeout
        self._on_expiry = on_expiry
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(tick_s, self._tick)

    def _tick(self) -> None:
        self._ticks_left -= 1
        if self._ticks_left:
            self._handle = self._loop.call_later(self._tick_s, self._tick)
            return
        self._timeout.reschedule(self._loop.time())
        if self._on_expiry is not None:
            self._on_expiry()

    def cancel(self) -> None:
        self._handle.cancel()
