"""Decides when failed attempts are repeated.

While all attempts fail, the queue repeats them one at a time; after a success, all waiting attempts follow soon.

The number of waiting attempts affects neither how soon the bridge notices the end of an outage nor the load on the
broker during the outage. This module itself publishes nothing.
"""

import asyncio
from contextlib import suppress

from bridge.backoff import Backoff

MAX_PAUSE_S = 1.0
"""The longest pause between two attempts while no attempt succeeds."""

MAX_OWN_PAUSE_S = 0.6
"""The longest pause before a failed attempt joins the queue.

Without this pause, an attempt that keeps failing would be repeated each time another attempt succeeds.
"""


class RetryQueue:
    """A queue of failed attempts to publish. Requires a running event loop."""

    def __init__(self) -> None:
        self._pauses = Backoff(longest_s=MAX_PAUSE_S)
        self._first = asyncio.Lock()
        """The attempt that holds this lock is the first in the queue."""
        self._waiting = 0
        self._tokens = 0
        """The number of waiting attempts that may be repeated without a pause."""
        self._has_tokens = asyncio.Event()

    async def wait(self, own: Backoff) -> None:
        """Waits until a failed attempt may be repeated.

        `own` is the backoff of only this attempt, with pauses of at most MAX_OWN_PAUSE_S.
        """
        await asyncio.sleep(own.pause_s())
        self._waiting += 1
        try:
            async with self._first:
                if not self._tokens:
                    self._has_tokens.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._pauses.pause_s()):
                            await self._has_tokens.wait()
                self._tokens = max(0, self._tokens - 1)
        finally:
            self._waiting -= 1

    def confirmed(self) -> None:
        """Records a success. After each success, two waiting attempts may be repeated without a pause."""
        self._pauses.reset()
        self._tokens = min(self._tokens + 2, self._waiting)
        self._has_tokens.set()

    def failed(self) -> None:
        """Records a failure. After a failure, the waiting attempts are repeated one at a time."""
        self._tokens = 0
