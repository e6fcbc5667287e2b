"""Deduplication of updates, by a window of limited size that contains the identities of sent updates."""

from collections import deque

from bridge.contract.catalog import Identity


class DuplicateWindow:
    """Remembers the identities of the newest updates, so that each update is sent only once.

    Several fetchers may publish the same killmail, and after a lost connection, the broker may deliver an event again.
    """

    def __init__(self, size: int) -> None:
        """`size` is the number of identities; with 0, the window remembers nothing."""
        # A deque holds the order of the identities, because in a dict, each removal of the first key makes the next
        # removal slower.
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
        """Undoes the last successful `add`, because the update with this identity was not broadcast."""
        if self._order:
            self._known.remove(self._order.pop())
