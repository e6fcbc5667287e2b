"""The live connections of a subscription, as an array of the descriptors of their sockets.

A flush reads this array and nothing else of a connection. With 1000 clients, their transports and protocols are no
longer in the processor's caches when the kernel returns from the client before: reading them costs more than the system
call (`make bench`, paced: 1.4 times a bare loop in C with them, 1.1 to 1.2 times without).

A flush writes past the transport. This is right only while the transport holds no bytes, and while the descriptor is
its own: a congested or closing connection must not be in the set. For a connection with TLS, the set holds the method
of its transport that encrypts and sends. It holds no descriptor: a write to it would send bytes unencrypted.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from bridge.broadcast.socket_writes import IoSubmitWriter, try_write_all

_log = structlog.get_logger("bridge.broadcast")

MIN_BATCHED_SOCKETS = 64
"""The number of sockets from which on one system call for many writes is faster than a call for each."""


class Slot(Protocol):
    """A connection in a live set: its socket, and its place in the set."""

    @property
    def descriptor(self) -> int | None:
        """The descriptor of the socket; None with TLS."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """With TLS: encrypts frames and sends them. Holds what the socket does not take, and reports it."""

    slot: int
    """The index of the connection in the set; -1 if it is in none. Set by `LiveSet` alone."""


P = TypeVar("P", bound=Slot)


class LiveSet(Generic[P]):
    """A set of connections, in no particular order."""

    __slots__ = ("connections", "descriptors", "via_transport", "writes")

    def __init__(self) -> None:
        self.connections: list[P] = []
        """The connections with a descriptor. Read-only for others, as all attributes."""
        # Not a list: its numbers would be objects among those of the connections, and each one a cache miss (2 % of the
        # paced fan-out).
        self.descriptors = array("i")
        self.via_transport: list[P] = []
        """The connections with TLS."""
        self.writes: list[Callable[[bytes], None]] = []
        """The method `write` of each of these connections, in the same order."""

    def __len__(self) -> int:
        return len(self.connections) + len(self.via_transport)

    def __contains__(self, connection: P) -> bool:
        return connection.slot >= 0

    def __iter__(self) -> Iterator[P]:
        """Iterates over a copy: the caller may discard connections."""
        return iter((*self.connections, *self.via_transport))

    def add(self, connection: P) -> None:
        """Adds a connection that is not in the set."""
        descriptor = connection.descriptor
        if descriptor is None:
            write = connection.write
            connection.slot = len(self.via_transport)
            self.via_transport.append(connection)
            self.writes.append(write)
        else:
            connection.slot = len(self.connections)
            self.connections.append(connection)
            self.descriptors.append(descriptor)

    def discard(self, connection: P) -> None:
        """Removes a connection, if it is in the set."""
        slot = connection.slot
        if slot < 0:
            return
        connection.slot = -1
        # The last connection moves to the free slot, and no other connection moves.
        if slot < len(self.connections) and self.connections[slot] is connection:
            last, descriptor = self.connections.pop(), self.descriptors.pop()
            if last is not connection:
                self.connections[slot], self.descriptors[slot] = last, descriptor
        else:
            last, write = self.via_transport.pop(), self.writes.pop()
            if last is not connection:
                self.via_transport[slot], self.writes[slot] = last, write
        if last is not connection:
            last.slot = slot

    def encrypt(self, frames: bytes) -> list[tuple[P, Exception]]:
        """Sends frames to the connections with TLS. Returns those whose transport raised.

        A connection whose transport holds a part of the frames leaves the set meanwhile.
        """
        failed: list[tuple[P, Exception]] = []
        for connection, write in zip(tuple(self.via_transport), tuple(self.writes), strict=True):
            try:
                write(frames)
            except Exception as error:  # of one connection: it must not affect the others
                failed.append((connection, error))
        return failed


class BroadcastWriter:
    """Writes the same bytes to the sockets of live sets."""

    def __init__(self) -> None:
        self._write_batched: Callable[[array[int], bytes], list[tuple[int, int]]] | None = None

    def write(self, lives: Sequence[LiveSet[P]], frames: bytes) -> list[tuple[P, int]]:
        """Writes to every socket. Returns the connections whose sockets took only a part, each with its bytes."""
        descriptors = lives[0].descriptors if len(lives) == 1 else array("i")
        if len(lives) > 1:
            for live in lives:
                descriptors += live.descriptors
        if len(descriptors) < MIN_BATCHED_SOCKETS:
            short = try_write_all(descriptors, frames)
        else:
            if self._write_batched is None:
                self._write_batched = _batched_writes()
            short = self._write_batched(descriptors, frames)
        if not short:
            return []
        # The connections are looked up here alone. To count along would cost time for each connection and update.
        connections = [connection for live in lives for connection in live.connections]
        slots = {descriptor: slot for slot, descriptor in enumerate(descriptors)}
        return [(connections[slots[descriptor]], taken) for descriptor, taken in short]


def _batched_writes() -> "Callable[[array[int], bytes], list[tuple[int, int]]]":
    """Returns the fastest way to write to many sockets on this system."""
    try:
        return IoSubmitWriter().write
    except OSError as error:
        _log.info("this system does not take many writes at once: each is a call of its own", error=str(error))
        return try_write_all
