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
from collections.abc import Iterator, MutableSequence, Sequence
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

GROUP_SOCKETS = BATCH_SOCKETS
"""The maximum number of sockets to which a flush writes without reading the clock.

Writing a small update to these sockets takes 3 to 6 ms. Reading the clock takes 0.002 ms.
"""

GROUP_BYTES = 2**22
"""The maximum number of bytes that a flush writes without reading the clock, for all sockets of a group together.

Writing 4 MiB takes 2 to 4 ms.
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
V = TypeVar("V")


class Members(Generic[P, V]):
    """Connections of a live set, each with the value that a flush needs, in no particular order.

    A flush to many connections takes several turns of the event loop. The connections before the index `served` have
    the frames of this flush, and the others do not have them yet. Between two flushes, all connections are served.
    """

    __slots__ = ("connections", "served", "values")

    def __init__(self, values: MutableSequence[V]) -> None:
        """`values` is empty, and stores the values."""
        # Other classes must not change any attribute, except `served` during a flush.
        self.connections: list[P] = []
        self.values = values
        """The value of each connection, in the same order."""
        self.served = 0

    def add(self, connection: P, value: V) -> None:
        """Adds a connection, which counts as served."""
        last = len(self.connections)
        self.connections.append(connection)
        self.values.append(value)
        connection.slot = last
        self._swap(self.served, last)
        self.served += 1

    def discard(self, connection: P) -> bool:
        """Removes a connection. Returns whether the connection was served."""
        slot = connection.slot
        if served := slot < self.served:
            self.served -= 1
            self._swap(slot, self.served)
            slot = self.served
        self._swap(slot, len(self.connections) - 1)
        self.connections.pop()
        self.values.pop()
        connection.slot = -1
        return served

    def take(self, max_connections: int) -> slice:
        """Counts the next connections as served, at most `max_connections`. Returns their slots."""
        start = self.served
        self.served = min(len(self.connections), start + max_connections)
        return slice(start, self.served)

    @property
    def next_unserved(self) -> P | None:
        """A connection that is not served, or None if all are served."""
        return self.connections[-1] if self.served < len(self.connections) else None

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        connections, values = self.connections, self.values
        connections[one], connections[other] = connections[other], connections[one]
        values[one], values[other] = values[other], values[one]
        connections[one].slot, connections[other].slot = one, other


class LiveSet(Generic[P]):
    """A set of connections, in no particular order."""

    __slots__ = ("round_updates", "sockets", "tls_sockets")

    def __init__(self) -> None:
        # The descriptors are in an array rather than a list. A list would refer to a separate object for each
        # descriptor, and each read of such an object would be a cache miss. These cache misses would take 2 % of the
        # time in the paced benchmark.
        self.sockets: Members[P, int] = Members(array("i"))
        """The connections without TLS, each with its descriptor."""
        self.tls_sockets: Members[P, TlsSocket] = Members([])
        """The connections with TLS, each with its transport."""
        self.round_updates = 0
        """The number of updates in the current flush."""

    def __len__(self) -> int:
        return len(self.sockets.connections) + len(self.tls_sockets.connections)

    def __contains__(self, connection: P) -> bool:
        return connection.slot >= 0

    def __iter__(self) -> Iterator[P]:
        """Iterates over a copy, so that the caller can discard connections during the iteration."""
        return iter((*self.sockets.connections, *self.tls_sockets.connections))

    def add(self, connection: P) -> None:
        """Adds a connection that is not in the set."""
        descriptor = connection.descriptor
        if descriptor is None:
            self.tls_sockets.add(connection, connection.tls_socket)
        else:
            self.sockets.add(connection, descriptor)

    def discard(self, connection: P) -> bool:
        """Removes a connection if the connection is in the set.

        Returns False if the connection has not been sent the frames of the current flush.
        """
        slot = connection.slot
        if slot < 0:
            return True
        connections = self.sockets.connections
        if slot < len(connections) and connections[slot] is connection:
            return self.sockets.discard(connection)
        return self.tls_sockets.discard(connection)

    def begin_round(self, updates: int) -> None:
        """Begins a flush: no connection has been sent its frames, which contain this number of updates."""
        self.sockets.served = self.tls_sockets.served = 0
        self.round_updates = updates


class BroadcastWriter:
    """Writes the same frames to the sockets of live sets."""

    def __init__(self) -> None:
        self._batched: _BatchedWrites | None = None

    def write(self, lives: Sequence[LiveSet[P]], frames: bytes) -> Iterator[tuple[int, list[tuple[P, int]], bool]]:
        """Writes the frames to each socket of the live sets that is not served, one group of sockets after the other.

        Yields three values for each group: the number of its sockets, the partial writes, and whether another group may
        follow. A partial write is a connection and the number of bytes that its socket took. While the iterator is
        suspended, connections may be added to the live sets, or discarded.
        """
        max_sockets = group_sockets(frames)
        room = max_sockets
        group: list[tuple[Members[P, int], slice]] = []
        for live in lives:
            members = live.sockets
            while members.served < len(members.connections):
                slots = members.take(room)
                group.append((members, slots))
                room -= slots.stop - slots.start
                if not room:
                    more = members.served < len(members.connections) or live is not lives[-1]
                    yield max_sockets, self._write(group, frames), more
                    group, room = [], max_sockets
        if group:
            yield max_sockets - room, self._write(group, frames), False

    def _write(self, group: Sequence[tuple[Members[P, int], slice]], frames: bytes) -> list[tuple[P, int]]:
        try:
            return self._write_group(group, frames)
        except Exception:
            # It is unknown what these sockets have taken. The caller resets all connections that are not served.
            for members, slots in group:
                members.served = slots.start
            raise

    def _write_group(self, group: Sequence[tuple[Members[P, int], slice]], frames: bytes) -> list[tuple[P, int]]:
        slices = [members.values[slots] for members, slots in group]
        descriptors: array[int] = slices[0]  # type: ignore[assignment]  # `sockets` has its values in an array
        for more in slices[1:]:
            descriptors.extend(more)
        if len(descriptors) < MIN_BATCHED_SOCKETS:
            short = try_write_all(descriptors, frames)
        else:
            short = self._batched_writes().write(descriptors, frames)
        if not short:
            return []
        # Connections are looked up only for partial writes. A lookup during the writes would cost time for each
        # connection at each update.
        connections = [connection for members, slots in group for connection in members.connections[slots]]
        found = {descriptor: at for at, descriptor in enumerate(descriptors)}
        return [(connections[found[descriptor]], taken) for descriptor, taken in short]

    def encrypt(self, live: LiveSet[P], frames: bytes) -> tuple[int, list[tuple[P, Exception]]]:
        """Encrypts the frames for the next group of connections with TLS, and writes them to the sockets.

        Returns the number of connections in the group, and those that raised an error, with the errors. If a socket
        does not take all bytes, its connection leaves the set during the call.
        """
        failed: list[tuple[P, Exception]] = []
        members = live.tls_sockets
        slots = members.take(encrypted_connections(frames))
        # The slices are copies, because a connection that leaves the set changes the lists.
        connections = members.connections[slots]
        try:
            self._encrypt(connections, members.values[slots], frames, failed)
        except Exception:
            # Connections that left the set during the call were in this group, so the group still begins here.
            members.served = slots.start
            raise
        return len(connections), failed

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


def group_sockets(frames: bytes) -> int:
    """Returns the maximum number of sockets in a group: a flush writes to a group without reading the clock."""
    return max(1, min(GROUP_SOCKETS, GROUP_BYTES // max(1, len(frames))))


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
