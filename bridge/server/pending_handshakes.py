"""The handshakes of clients that have not been upgraded, in the order in which they began.

One timer serves all handshakes. A timer for each handshake would take as long as reading a request.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

import structlog

_log = structlog.get_logger("bridge.server")

PERIODS = 10
"""A handshake times out after this number of whole periods of the timer.

The event loop reads from clients at least once in each period, so slow turns of the loop make the timeout longer. With
a single period, a turn of 5 s would time out all clients that connected during this turn. The bridge would refuse these
clients before reading their requests.
"""


class Expiring(Protocol):
    """A handshake."""

    def on_timeout(self) -> None:
        """Called in each period after the timeout, until the handshake is removed."""


H = TypeVar("H", bound=Expiring)


class PendingHandshakes(Generic[H]):
    """The handshakes, oldest first, with their timeout."""

    def __init__(
        self, call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle], timeout_s: float
    ) -> None:
        """`call_later` is a method of the event loop.

        A handshake times out after `timeout_s` seconds, or up to a tenth later.
        """
        self._call_later = call_later
        self._period_s = timeout_s / PERIODS
        self._period = 0
        """The number of the current period."""
        self._began: OrderedDict[H, int] = OrderedDict()
        """Maps each handshake to its first whole period.

        The type is OrderedDict, because a plain dict has to skip all removed entries whenever it looks for its first
        entry.
        """
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._began)

    def __contains__(self, handshake: object) -> bool:
        return handshake in self._began

    def __iter__(self) -> Iterator[H]:
        """Iterates over a copy, oldest first."""
        return iter(tuple(self._began))

    @property
    def oldest(self) -> H | None:
        """The oldest handshake, or None if there are no handshakes."""
        return next(iter(self._began), None)

    def add(self, handshake: H) -> None:
        """Adds a handshake that begins now."""
        self._began[handshake] = self._period if self._timer is None else self._period + 1

    def remove(self, handshake: H) -> None:
        """Removes a handshake. Raises KeyError if it is not pending."""
        del self._began[handshake]

    def start_timer(self) -> None:
        """Must be called if an added handshake is still pending, because its request has not arrived yet."""
        if self._timer is None and self._began:
            self._timer = self._call_later(self._period_s, self._end_period)

    def _end_period(self) -> None:
        self._timer = None
        self._period += 1
        expired = takewhile(lambda item: self._period - item[1] >= PERIODS, self._began.items())
        for handshake, _ in tuple(expired):
            try:
                handshake.on_timeout()
            except Exception:  # a failure of one handshake must not affect the timeouts of the others
                _log.exception("timeout of a handshake failed")
        self.start_timer()
