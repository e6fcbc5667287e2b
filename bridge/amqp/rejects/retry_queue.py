"""Who may try again, and when: one of many after another while nothing works, and soon all of them when it does.

The end of a trouble is seen as soon with one message that is held as with thousands, and the broker is not asked more
often for it. This file must never know what is tried.
"""

import asyncio
from contextlib import suppress

from bridge.backoff import Backoff

LONGEST_S = 1.0
"""Between two attempts of anybody while none is confirmed."""

LONGEST_OWN_S = 0.6
"""Before one that has failed gets in line: one that fails where others do not must not try with each of theirs."""


class RetryQueue:
    """A line in which those wait who have failed. Made inside a running event loop."""

    def __init__(self) -> None:
        self._pauses = Backoff(longest_s=LONGEST_S)
        self._first = asyncio.Lock()
        """Held by the first in line."""
        self._waiting = 0
        self._credit = 0
        """How many may try at once."""
        self._credited = asyncio.Event()

    async def wait(self, own: Backoff) -> None:
        """Returns when whoever has failed may try again; `own` is its own backoff, LONGEST_OWN_S at most."""
        await asyncio.sleep(own.pause_s())
        self._waiting += 1
        try:
            async with self._first:
                if not self._credit:
                    self._credited.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._pauses.pause_s()):
                            await self._credited.wait()
                self._credit = max(0, self._credit - 1)
        finally:
            self._waiting -= 1

    def confirmed(self) -> None:
        """An attempt was a success: two others may follow at once, and twice as many them."""
        self._pauses.reset()
        self._credit = min(self._credit + 2, self._waiting)
        self._credited.set()

    def failed(self) -> None:
        """An attempt failed: it goes on one by one."""
        self._credit = 0
