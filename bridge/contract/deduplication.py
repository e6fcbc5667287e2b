"""Deduplication: a bounded window of the identities of sent updates."""

from collections import deque

from bridge.contract.catalog import Identity


class DuplicateWindow:
    """Remembers the newest identities, so that each update is sent once.

    Several fetchers may publish the same kill, and a broker redelivers events after a lost connection.
    """

    def __init__(self, size: int) -> None:
        """`size` is the number of identities; with 0, the window remembers nothing."""
        # An OrderedDict, because removing the first key of a dict gets slower with each removal.
        self._order: deque[Identity] = deque()
        self._known: set[Identity] = set()
        self._size = size

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._known

    def add(self, identity: Identity) -> bool:
        """Adds an identity. Returns False if the window already contains it."""
        if identity in self._known:
            return False
        if self._size == 0:
            return True
        if len(self._order) == self._size:
            self._known.remove(self._order.popleft())
        self._order.append(identity)
        self._known.add(identity)
        return True

    def remove_newest(self) -> None:
        """Undoes the last successful `add`, because its update was not broadcast."""
        if self._order:
            self._known.remove(self._order.pop())
