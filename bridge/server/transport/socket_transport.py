"""The base of the bridge's transports: an asyncio transport over an accepted socket that a `Poller` watches.

A transport writes to the socket at once, and holds only the bytes that the socket did not take. It reads once whenever
the poller reports its socket, so that no client can keep the event loop busy.
"""

import asyncio
import socket
from abc import abstractmethod
from contextlib import suppress
from typing import Any

from bridge.server.transport.poller import READ, WRITE, Poller
from bridge.server.transport.tcp import PeerName

NOTHING = memoryview(b"")


class SocketTransport(asyncio.Transport):
    """The server's side of a connection over an accepted socket.

    The protocol is an `asyncio.BufferedProtocol`. The write buffer limit is 0, so the protocol is paused as soon as the
    socket does not take all data.
    """

    __slots__ = (
        "_client_ended",
        "_closing",
        "_ends",
        "_events",
        "_lost",
        "_peername",
        "_poller",
        "_protocol",
        "_socket",
        "_unsent",
    )

    def __init__(
        self, poller: Poller, client: socket.socket, peername: PeerName, protocol: asyncio.BufferedProtocol
    ) -> None:
        """Takes over the socket. Call `begin` to start reading."""
        self._poller = poller
        self._socket = client
        self._peername = peername
        self._protocol: asyncio.BufferedProtocol | None = protocol
        self._events = 0
        """The events that the poller watches the socket for."""
        self._unsent = NOTHING
        """Bytes that the socket has not accepted yet."""
        self._ends = False
        """Whether the bridge's side ends as soon as the socket has taken all data. Nothing can be written any more."""
        self._client_ended = False
        self._closing = False
        self._lost = False
        """Whether the socket is closed, or about to be."""
        client.setblocking(False)

    @abstractmethod
    def begin(self) -> None:
        """Starts reading. Raises OSError if the kernel can't watch another socket; the caller then closes the socket.

        The client's bytes that have already arrived are handled at once.
        """

    # The interface of asyncio's transports

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns the value for the name `socket` or `peername`, as asyncio does.

        Callers may use the returned socket only to read or set its options.
        """
        match name:
            case "socket":
                return self._socket
            case "peername":
                return self._peername
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.BufferedProtocol)
        self._protocol = protocol
        if self._unsent:
            # The earlier protocol was paused, for example because the socket did not take the whole response.
            protocol.pause_writing()

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def can_write_eof(self) -> bool:
        return True

    # Reading

    def is_reading(self) -> bool:
        return bool(self._events & READ)

    def pause_reading(self) -> None:
        self._watch(self._events & ~READ)

    def resume_reading(self) -> None:
        if not self._client_ended and not self._lost:
            self._watch(self._events | READ)

    def on_ready(self, events: int) -> None:
        """Called by the poller when the socket is ready."""
        try:
            if events & ~WRITE and self._events & READ:
                self._on_readable()
            if events & ~READ and self._events & WRITE:
                self._on_writable()
        except Exception as error:  # an error of one connection must not affect other connections
            self._fail(error)

    @abstractmethod
    def _on_readable(self) -> None:
        """Reads once."""

    def _end_by_client(self) -> None:
        """Called at the end of the client's data. The bridge still sends the bytes that the transport holds."""
        self._client_ended = True
        assert self._protocol is not None
        self._protocol.eof_received()
        if self._unsent:
            self._closing = self._ends = True
            self.pause_reading()
        else:
            self._close_socket(None)

    def _fail(self, error: Exception) -> None:
        """Closes the socket after an error of the protocol, which is a fault of the bridge."""
        message = "the protocol of a connection raised an exception"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error, "transport": self})
        self._close_socket(None)

    # Writing

    def _send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends the bytes, and holds the part that the socket does not take."""
        if self._unsent:
            self._unsent = memoryview(b"".join((self._unsent, data)))
            return
        try:
            taken = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as error:
            self._close_socket(error)
            return
        if taken < len(data):
            # The unsent rest is copied, because a view would keep the whole of a large frame or response in memory.
            self._hold(bytes(memoryview(data)[taken:]))

    def _hold(self, data: bytes) -> None:
        self._unsent = memoryview(data)
        self._watch(self._events | WRITE)
        assert self._protocol is not None
        self._protocol.pause_writing()

    def _on_writable(self) -> None:
        try:
            taken = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close_socket(error)
            return
        self._unsent = self._unsent[taken:]
        if self._unsent:
            return
        self._unsent = NOTHING
        self._watch(self._events & ~WRITE)
        if self._ends:
            self._end()
        else:
            assert self._protocol is not None
            self._protocol.resume_writing()

    # The end

    def write_eof(self) -> None:
        """Ends the bridge's side of the connection after all data is sent."""
        if not self._ends:
            self._ends = True
            if not self._unsent and not self._lost:
                self._end()

    def abort(self) -> None:
        """Closes the socket in a later turn, and discards all data that is not sent yet."""
        self._close_socket(None)

    def close_at_once(self) -> None:
        """Closes the socket, like `abort`, but in this turn, so that its descriptor is free.

        Must not be called while the hub may still write to the descriptor.
        """
        self._close_socket(None)
        self._socket.close()

    @abstractmethod
    def _end(self) -> None:
        """Called when the bridge's side must end, and all data is sent."""

    def _shut_down(self) -> None:
        with suppress(OSError):  # the client has reset the connection
            self._socket.shutdown(socket.SHUT_WR)

    def _close_socket(self, error: OSError | None) -> None:
        """Stops reading and writing. The poller then calls the protocol, and closes the socket.

        The socket stays open until the protocol has been called, because the hub writes to descriptors. The kernel may
        give the number of a closed descriptor to the next client.
        """
        if self._lost:
            return
        self._lost = self._closing = self._ends = True
        self._unsent = NOTHING
        self._watch(0)
        self._poller.call_soon(self._finish, error)

    def _finish(self, error: OSError | None) -> None:
        # The protocol refers to this transport. If the transport kept its reference to the protocol, only the garbage
        # collector could free both.
        protocol, self._protocol = self._protocol, None
        try:
            if protocol is not None:
                protocol.connection_lost(error)
        finally:
            self._socket.close()

    def _begin_watching(self) -> None:
        """Starts to watch the socket. Raises OSError if the kernel can't watch another socket."""
        self._poller.watch(self._socket.fileno(), self, 0, READ)
        self._events = READ

    def _watch(self, events: int) -> None:
        """Changes the events that the socket is watched for. Closes the socket if the kernel can't watch it again."""
        if events != self._events:
            try:
                self._poller.watch(self._socket.fileno(), self, self._events, events)
            except OSError as error:
                self._close_socket(error)
            else:
                self._events = events
