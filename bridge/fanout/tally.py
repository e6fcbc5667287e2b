"""How many places the clients of each address have: no host of the network may take all that there are.

Pure: addresses as the kernel writes them, and numbers.
"""

RESERVE = 16
"""Clients of one address beyond its limit that are told so. Any more are dropped without a word."""


class Tally:
    """Counts a client from when it is accepted until its socket is closed.

    Loopback has no limit of its own: those clients are this host's, or a proxy's, in which everybody has one address.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is how many clients of one address are served."""
        self._limit = limit
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def take(self, address: str) -> bool:
        """Takes a place for a client; False where its address has none left, not even to be refused."""
        if _is_loopback(address):
            return True
        count = self._counts.get(address, 0)
        if count >= self._limit + RESERVE:
            return False
        self._counts[address] = count + 1
        return True

    def leave(self, address: str) -> None:
        """Gives back a place that was taken."""
        if _is_loopback(address):
            return
        if self._counts[address] == 1:
            del self._counts[address]
        else:
            self._counts[address] -= 1

    def is_crowded(self, address: str) -> bool:
        """Whether more clients of the address are there than are served."""
        return self._counts.get(address, 0) > self._limit


def _is_loopback(address: str) -> bool:
    # The kernel writes an address in one way only, so this needs no parser.
    return address.startswith("127.") or address == "::1"
