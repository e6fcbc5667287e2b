"""The live connections of a subscription, stored as an array of their socket descriptors.

A flush reads only the array of descriptors, not the connections. With 1000 clients, a client's transport and protocol
are not in the processor's caches when a flush reaches that client, so reading these objects takes longer than the
system call. In the paced benchmark (`make bench`), a flush that reads transports and protocols takes 1.4 times as long
as a bare loop in C. A flush that reads only the array takes 1.1 to 1.2 times as long as a bare loop in C.

A flush writes directly to the sockets, without using the transports. Bypassing the transport is correct only while the
transport holds no bytes and owns the descriptor. A congested or closing connection must therefore not be in a live set.
For a connection with TLS, the live set holds the transport, which encrypts the frames. A flush encrypts them for
hundreds of connections, and then writes the records of all these connections at once.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from bridge.broadcast.socket_writes import BATCH_SOCKETS, IoSubmitWriter, try_write_all, try_write_each

_log = structlog.get_logger("bridge.broadcast")

MIN_BATCHED_SOCKETS = 64
"""The minimum number of sockets for which one system call for all writes is faster than one call for each socket."""

ENCRYPTED_BYTES = 2**19
"""The maximum size of the frames that are encrypted before their records are written, for all connections together.

With frames of 700 bytes, encrypting for hundreds of connections before the writes takes a tenth less time than for 64
connections. With frames of 16 KiB, larger sizes are not faster, because the records no longer fit into the processor's
caches.
"""


class TlsSocket(Protocol):
    """The transport of a connection with TLS."""

    def fileno(self) -> int:
        """Returns the descriptor of the socket."""

    def encrypt(self, data: bytes) -> bytes:
        """Returns the records to write to the socket, or nothing if the transport can't send now.

        Before any other method of the transport is called, the caller must write the records to the socket. If the
        socket does not take all of them, the caller must pass them to `keep`.
        """

    def keep(self, records: bytes, taken: int) -> None:
        """Holds records from `encrypt`, of which the socket took only `taken` bytes, until the socket has room."""


class Slot(Protocol):
    """A connection in a live set, with its socket and its place in the set."""

    @property
    def descriptor(self) -> int | None:
        """The descriptor of the connection's socket, or None if the connection uses TLS."""

    @property
    def tls_socket(self) -> TlsSocket:
        """The transport that encrypts. This property is used only if the connection uses TLS."""

    slot: int
    """The index of the connection in its live set, or -1 if the connection is in no live set.

    Only `LiveSet` changes this attribute.
    """


P = TypeVar("P", bound=Slot)


class LiveSet(Generic[P]):
    """A set of connections, in no particular order."""

    __slots__ = ("connections", "descriptors", "tls_connections", "tls_sockets")

    def __init__(self) -> None:
        self.connections: list[P] = []
        """The connections without TLS, each of which has a descriptor.

        Other classes must not change any attribute of the set.
        """
        # The descriptors are in an array rather than a list. A list would refer to a separate object for each
        # descriptor, and each read of such an object would be a cache miss. These cache misses would take 2 % of the
        # time in the paced benchmark.
        self.descriptors = array("i")
        self.tls_connections: list[P] = []
        """The connections with TLS."""
        self.tls_sockets: list[TlsSocket] = []
        """The transport of each connection in `tls_connections`, in the same order."""

    def __len__(self) -> int:
        return len(self.connections) + len(self.tls_connections)

    def __contains__(self, connection: P) -> bool:
        return connection.slot >= 0

    def __iter__(self) -> Iterator[P]:
        """Iterates over a copy, so that the caller can discard connections during the iteration."""
        return iter((*self.connections, *self.tls_connections))

    def add(self, connection: P) -> None:
        """Adds a connection that is not in the set."""
        descriptor = connection.descriptor
        if descriptor is None:
            tls_socket = connection.tls_socket
            connection.slot = len(self.tls_connections)
            self.tls_connections.append(connection)
            self.tls_sockets.append(tls_socket)
        else:
            connection.slot = len(self.connections)
            self.connections.append(connection)
            self.descriptors.append(descriptor)

    def discard(self, connection: P) -> None:
        """Removes a connection if the connection is in the set."""
        slot = connection.slot
        if slot < 0:
            return
        connection.slot = -1
        # The last connection moves to the slot that is now free, and no other connection moves.
        if slot < len(self.connections) and self.connections[slot] is connection:
            last, descriptor = self.connections.pop(), self.descriptors.pop()
            if last is not connection:
                self.connections[slot], self.descriptors[slot] = last, descriptor
        else:
            last, tls_socket = self.tls_connections.pop(), self.tls_sockets.pop()
            if last is not connection:
                self.tls_connections[slot], self.tls_sockets[slot] = last, tls_socket
        if last is not connection:
            last.slot = slot


class BroadcastWriter:
    """Writes the same frames to the sockets of live sets."""

    def __init__(self) -> None:
        self._batched: _BatchedWrites | None = None

    def write(self, lives: Sequence[LiveSet[P]], frames: bytes) -> list[tuple[P, int]]:
        """Writes the frames to every socket of the live sets.

        Returns each connection whose socket took only a part of the frames, and the size of this part in bytes.
        """
        descriptors = lives[0].descriptors if len(lives) == 1 else array("i")
        if len(lives) > 1:
            for live in lives:
                descriptors += live.descriptors
        if len(descriptors) < MIN_BATCHED_SOCKETS:
            short = try_write_all(descriptors, frames)
        else:
            short = self._batched_writes().write(descriptors, frames)
        if not short:
            return []
        # Connections are looked up only for partial writes. A lookup during the writes would cost time for each
        # connection at each update.
        connections = [connection for live in lives for connection in live.connections]
        slots = {descriptor: slot for slot, descriptor in enumerate(descriptors)}
        return [(connections[slots[descriptor]], taken) for descriptor, taken in short]

    def encrypt(self, live: LiveSet[P], frames: bytes) -> list[tuple[P, Exception]]:
        """Encrypts the frames for all connections with TLS of a live set, and writes them to the sockets.

        Returns the connections that raised an error, with the errors. If a socket does not take all bytes, its
        connection leaves the set during the call.
        """
        failed: list[tuple[P, Exception]] = []
        # The lists are copied, because a connection that leaves the set changes them.
        connections, tls_sockets = tuple(live.tls_connections), tuple(live.tls_sockets)
        step = encrypted_connections(frames)
        for start in range(0, len(connections), step):
            batch = slice(start, start + step)
            self._encrypt(connections[batch], tls_sockets[batch], frames, failed)
        return failed

    def _encrypt(
        self,
        connections: Sequence[P],
        tls_sockets: Sequence[TlsSocket],
        frames: bytes,
        failed: list[tuple[P, Exception]],
    ) -> None:
        records: list[bytes] = []
        for connection, tls_socket in zip(connections, tls_sockets, strict=True):
            try:
                records.append(tls_socket.encrypt(frames))
            except Exception as error:  # an error in one connection must not affect the others
                records.append(b"")
                failed.append((connection, error))
        if not all(records):
            sending = [(each, record) for each, record in zip(tls_sockets, records, strict=True) if record]
            tls_sockets, records = [each for each, _ in sending], [record for _, record in sending]
        descriptors = array("i", [tls_socket.fileno() for tls_socket in tls_sockets])
        if len(descriptors) < MIN_BATCHED_SOCKETS:
            short = try_write_each(descriptors, records)
        else:
            short = self._batched_writes().write_each(descriptors, records)
        for index, taken in short:
            tls_sockets[index].keep(records[index], taken)

    def _batched_writes(self) -> "_BatchedWrites":
        """Returns the fastest way to write to many sockets on this system."""
        if self._batched is None:
            try:
                self._batched = IoSubmitWriter()
            except OSError as error:
                _log.info("io_submit is not available; each write is a system call", error=str(error))
                self._batched = _SingleWrites()
        return self._batched


def encrypted_connections(frames: bytes) -> int:
    """Returns for how many connections the frames are encrypted before the records are written."""
    return max(1, min(BATCH_SOCKETS, ENCRYPTED_BYTES // max(1, len(frames))))


class _BatchedWrites(Protocol):
    def write(self, descriptors: "array[int]", frames: bytes) -> list[tuple[int, int]]:
        """See `IoSubmitWriter.write`."""

    def write_each(self, descriptors: "array[int]", records: Sequence[bytes]) -> list[tuple[int, int]]:
        """See `IoSubmitWriter.write_each`."""


class _SingleWrites:
    """Writes with one system call for each socket."""

    write = staticmethod(try_write_all)
    write_each = staticmethod(try_write_each)
