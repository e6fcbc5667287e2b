"""The connections that have had everything: their sockets' descriptors, side by side in one list.

A pass over it touches nothing else of a connection: with 1000 clients the objects behind it, transport and protocol,
are cold by the time that the kernel comes back from the client before, and cost more than the call (`make bench`,
paced: 1.4 times a bare loop in C then, 1.1 to 1.2 without them).

Writing past a transport is right only as long as the transport holds nothing, and as long as the descriptor is its own:
a connection that is congested or closing must not be in here. For a connection with TLS, the set holds the method of
its transport that encrypts and sends. It holds no descriptor: a write to that would send bytes unencrypted.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from bridge.broadcast.socket_writes import try_write_all

_log = structlog.get_logger("bridge.broadcast")

MANY = 64
"""From so many on, writing to all of them at once is worth what it takes to ask for it."""


class Slot(Protocol):
    """Where a connection is to be found."""

    @property
    def descriptor(self) -> int | None:
        """The descriptor of the socket; None with TLS."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """With TLS: encrypts frames and sends them. Holds what the socket does not take, and reports that."""

    slot: int
    """The connection's place in the list, for `Live` alone; -1 while it is not there."""


P = TypeVar("P", bound=Slot)


class LiveSet(Generic[P]):
    """A set of connections, in no particular order."""

    __slots__ = ("connections", "descriptors", "via_transport", "writes")

    def __init__(self) -> None:
        self.connections: list[P] = []
        """Those with a descriptor, and behind them those descriptors: to be read only."""
        # Not a list: its numbers would be objects, scattered among what each connection had allocated, and each one a
        # miss of the cache (2 % of the paced fan-out).
        self.descriptors = array("i")
        self.via_transport: list[P] = []
        """The connections with TLS. Read-only for others."""
        self.writes: list[Callable[[bytes], None]] = []
        """`encrypt_and_send` of each of these connections, in the same order."""

    def __len__(self) -> int:
        return len(self.connections) + len(self.via_transport)

    def __contains__(self, connection: P) -> bool:
        return connection.slot >= 0

    def __iter__(self) -> Iterator[P]:
        """Over a copy: whoever is come by may be discarded."""
        return iter((*self.connections, *self.via_transport))

    def add(self, connection: P) -> None:
        """Adds one that is not here."""
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
        """Removes one, if it is here."""
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
        """Sends to the connections with TLS; returns those that failed.

        A connection that holds a part of the frames leaves this set meanwhile.
        """
        failed: list[tuple[P, Exception]] = []
        for connection, write in zip(tuple(self.via_transport), tuple(self.writes), strict=True):
            try:
                write(frames)
            except Exception as error:  # of one connection: all others get theirs
                failed.append((connection, error))
        return failed


class BroadcastWriter:
    """Writes the same to many: one for all that are live, whatever they asked for."""

    def __init__(self) -> None:
        self._write_many: Callable[[array[int], bytes], list[tuple[int, int]]] | None = None

    def write(self, lives: Sequence[LiveSet[P]], frames: bytes) -> list[tuple[P, int]]:
        """Writes to every socket; returns those that did not take everything, each with the bytes that it took."""
        descriptors = lives[0].descriptors if len(lives) == 1 else array("i")
        if len(lives) > 1:
            for live in lives:
                descriptors += live.descriptors
        if len(descriptors) < MANY:
            short = try_write_all(descriptors, frames)
        else:
            if self._write_many is None:
                self._write_many = _many_at_once()
            short = self._write_many(descriptors, frames)
        if not short:
            return []
        # Whose they are is asked for here alone: to count along would cost every connection of every update.
        connections = [connection for live in lives for connection in live.connections]
        slots = {descriptor: slot for slot, descriptor in enumerate(descriptors)}
        return [(connections[slots[descriptor]], taken) for descriptor, taken in short]


def _many_at_once() -> "Callable[[array[int], bytes], list[tuple[int, int]]]":
    """The fastest way to write to many sockets that there is here."""
    from bridge.broadcast.socket_writes import IoSubmitWriter  # noqa: PLC0415 - ctypes: 200 KB that a bridge with few clients never needs

    try:
        return IoSubmitWriter().write
    except OSError as error:
        _log.info("this system does not take many writes at once: each is a call of its own", error=str(error))
        return try_write_all
