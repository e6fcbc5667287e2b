"""The live connections of a subscription, as an array of the descriptors of their sockets.

A flush reads this array and nothing else of a connection. With 1000 clients, the transport and the protocol of the next
client are not in the processor's caches, so reading them takes longer than the system call. In the paced benchmark
(`make bench`), a flush takes 1.4 times as long as a bare loop in C if it reads them, and 1.1 to 1.2 times if it does
not.

A flush writes past the transport. This is correct only while the transport holds no bytes and owns the descriptor. A
congested or closing connection must therefore not be in the set. For a connection with TLS, the set holds the method of
the transport that encrypts and sends. It does not hold the descriptor of such a connection, because a write to the
descriptor would not be encrypted.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from bridge.broadcast.socket_writes import IoSubmitWriter, try_write_all

_log = structlog.get_logger("bridge.broadcast")

MIN_BATCHED_SOCKETS = 64
"""From this number of sockets on, one system call for many writes is faster than one call for each socket."""


class Slot(Protocol):
    """A connection in a live set: its socket, and its place in the set."""

    @property
    def descriptor(self) -> int | None:
        """The descriptor of the socket, or None with TLS."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """With TLS, encrypts and sends frames. The transport holds the bytes that the socket does not take."""

    slot: int
    """The index of the connection in its live set, or -1 if it is in no set. Only `LiveSet` changes this attribute."""


P = TypeVar("P", bound=Slot)


class LiveSet(Generic[P]):
    """A set of connections, in no particular order."""

    __slots__ = ("connections", "descriptors", "via_transport", "writes")

    def __init__(self) -> None:
        self.connections: list[P] = []
        """The connections with a descriptor. Other classes must not change any attribute of the set."""
        # An array, because a list would refer to an object for each number, and each object would be a cache miss (2 %
        # of the paced fan-out).
        self.descriptors = array("i")
        self.via_transport: list[P] = []
        """The connections with TLS."""
        self.writes: list[Callable[[bytes], None]] = []
        """The method `write` of each connection in `via_transport`, in the same order."""

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
        """Sends frames to the connections with TLS. Returns the connections on which this raised, with their errors.

        If a transport can't send all frames at once, its connection leaves the set during this call.
        """
        failed: list[tuple[P, Exception]] = []
        for connection, write in zip(tuple(self.via_transport), tuple(self.writes), strict=True):
            try:
                write(frames)
            except Exception as error:  # an error of one connection must not affect the others
                failed.append((connection, error))
        return failed


class BroadcastWriter:
    """Writes the same bytes to the sockets of live sets."""

    def __init__(self) -> None:
        self._write_batched: Callable[[array[int], bytes], list[tuple[int, int]]] | None = None

    def write(self, lives: Sequence[LiveSet[P]], frames: bytes) -> list[tuple[P, int]]:
        """Writes to every socket.

        Returns each connection whose socket took only a part, and the size of this part.
        """
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
        # Connections are looked up only here. A lookup during the writes would take time for each connection and
        # update.
        connections = [connection for live in lives for connection in live.connections]
        slots = {descriptor: slot for slot, descriptor in enumerate(descriptors)}
        return [(connections[slots[descriptor]], taken) for descriptor, taken in short]


def _batched_writes() -> "Callable[[array[int], bytes], list[tuple[int, int]]]":
    """Returns the fastest way to write to many sockets on this system."""
    try:
        return IoSubmitWriter().write
    except OSError as error:
        _log.info("io_submit is not available; each write is a system call", error=str(error))
        return try_write_all
