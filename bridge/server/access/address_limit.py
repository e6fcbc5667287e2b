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
        self._names: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def take(self, address: str) -> str | None:
        """Takes a place for a client; None where its address has none left, not even to be refused.

        Returns the address, as one string for all clients that have it: each keeps it for as long as it is there.
        """
        count = self._counts.get(address, 0)
        if count >= self._limit + RESERVE and not _is_loopback(address):
            return None
        self._counts[address] = count + 1
        return self._names.setdefault(address, address)

    def leave(self, address: str) -> None:
        """Gives back a place that was taken."""
        if self._counts[address] == 1:
            del self._counts[address], self._names[address]
        else:
            self._counts[address] -= 1

    def is_crowded(self, address: str) -> bool:
        """Whether more clients of the address are there than are served."""
        return self._counts[address] > self._limit and not _is_loopback(address)


def _is_loopback(address: str) -> bool:
    # The kernel writes an address in one way only, so this needs no parser.
    return address.startswith("127.") or address == "::1"
