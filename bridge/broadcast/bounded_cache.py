"""The newest of what was worked out for positions of the log: whoever comes by next finds it done.

Pure. Bounded in bytes; but the newest stays, however large, since many come by the same update.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")

RECENT_BYTES = 2**19
"""Of the data of updates, and of frames with ids: so much of each."""


class Recent(Generic[V]):
    """Some values by position."""

    __slots__ = ("_max_bytes", "_size_bytes", "_values")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        # Not a dict: one that is always emptied from the front gets slower with every key that was there before.
        self._values: OrderedDict[int, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, position: int) -> V | None:
        """The value; None where it is not there any more."""
        found = self._values.get(position)
        return None if found is None else found[0]

    def put(self, position: int, value: V, size_bytes: int) -> None:
        """Adds one that is not there."""
        self._values[position] = (value, size_bytes)
        self._size_bytes += size_bytes
        while self._size_bytes > self._max_bytes and len(self._values) > 1:
            _, (_, gone_bytes) = self._values.popitem(last=False)
            self._size_bytes -= gone_bytes
