"""Which updates were sent already: a bounded window of identities that forgets the oldest first."""

from collections import deque

from bridge.contract.catalog import Identity


class DuplicateWindow:
    """Several fetchers may see the same kill, and a broker redelivers after a lost connection: each is sent once."""

    def __init__(self, size: int) -> None:
        """`size` is in identities; 0 remembers nothing."""
        # A deque beside the set: taking the first key of a dict that is always emptied from the front gets slower
        # with every key that was there before it.
        self._order: deque[Identity] = deque()
        self._known: set[Identity] = set()
        self._size = size

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._known

    def add(self, identity: Identity) -> bool:
        """Adds an identity. Returns False if it is in the window already."""
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
        """Undoes the last successful `add`: its update was not broadcast."""
        if self._order:
            self._known.remove(self._order.pop())
