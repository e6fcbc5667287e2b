"""Limits the connections of each client address, so that one host can't use the whole capacity.

The module is pure. Addresses are strings as the kernel formats them.
"""

MAX_ADDRESS_OVERFLOW = 16
"""How many connections an address may have beyond its limit.

A connection beyond the limit gets a close code. If an address has used up its limit and its overflow, its further
connections are closed without an answer.
"""


class AddressLimit:
    """Counts the connections of each address.

    A connection counts from when its socket is accepted until its socket is closed.

    Loopback addresses have no limit, because behind a local proxy all clients share one address.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the maximum number of connections of one address."""
        self._limit = limit
        self._counts: dict[str, int] = {}
        self._interned: dict[str, str] = {}
        """One shared string object for each address, which saves memory because every connection refers to its
        address."""

    def __len__(self) -> int:
        """The number of addresses that have connections."""
        return len(self._counts)

    def acquire(self, address: str) -> str | None:
        """Counts a connection. Returns the address as a shared string, or None if limit and overflow are used up."""
        count = self._counts.get(address, 0)
        if count >= self._limit + MAX_ADDRESS_OVERFLOW and not _is_loopback(address):
            return None
        self._counts[address] = count + 1
        return self._interned.setdefault(address, address)

    def release(self, address: str) -> None:
        """Subtracts a connection that `acquire` has counted."""
        if self._counts[address] == 1:
            del self._counts[address], self._interned[address]
        else:
            self._counts[address] -= 1

    def over_limit(self, address: str) -> bool:
        """Whether the address has more connections than the limit allows."""
        return self._counts[address] > self._limit and not _is_loopback(address)


def _is_loopback(address: str) -> bool:
    # The kernel always formats an address in the same way, so no parser is necessary.
    return address.startswith("127.") or address == "::1"
