"""Items that expire after a period, with one timer for all of them.

A timer for each item would take more memory and time than the item itself. All items with the same period expire in the
order in which they were added, so no item is searched.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Generic, TypeVar

CHECK_S = 0.1
"""The time between two checks, in seconds. An item expires at most this late."""

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls a function with each item that expires. There are only a few different periods."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], object],
        time: Callable[[], float],
        on_expired: Callable[[T], None],
    ) -> None:
        """`call_later` and `time` are methods of the event loop. An item is removed before `on_expired` is called."""
        self._call_later = call_later
        self._time = time
        self._on_expired = on_expired
        # A plain dict has to skip all removed entries whenever it looks for its first entry.
        self._due_s: dict[float, OrderedDict[T, float]] = {}
        """For each period, the items with the times when they expire, in seconds."""
        self._is_scheduled = False

    def __len__(self) -> int:
        return sum(map(len, self._due_s.values()))

    def __iter__(self) -> Iterator[T]:
        """Iterates over a copy."""
        return iter(tuple(chain.from_iterable(self._due_s.values())))

    def add(self, item: T, period_s: float) -> None:
        """Adds an item that expires after `period_s` seconds."""
        self._due_s.setdefault(period_s, OrderedDict())[item] = self._time() + period_s
        self._schedule()

    def discard(self, item: T, period_s: float) -> None:
        """Removes an item that was added with this period, if it is still there."""
        items = self._due_s.get(period_s)
        if items is not None:
            items.pop(item, None)
            if not items:
                # The period may never occur again.
                del self._due_s[period_s]

    def _schedule(self) -> None:
        if self._due_s and not self._is_scheduled:
            self._is_scheduled = True
            self._call_later(CHECK_S, self._check)

    def _check(self) -> None:
        self._is_scheduled = False
        now_s = self._time()
        for period_s, items in tuple(self._due_s.items()):
            while items and items[item := next(iter(items))] <= now_s:
                self.discard(item, period_s)
                self._on_expired(item)
        self._schedule()
