"""The base of a client's connection after its request: it sends the hub's messages, throttles the client, and closes.

A WebSocket connection and an event stream differ in what they read from the client, in how they show that they are
alive, and in the last bytes that they send.

An idle connection consists only of a `ClientConnection` object and its transport. All connections share one read
buffer.
"""

import asyncio
import socket
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, cast

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.hub import Hub
from bridge.broadcast.live_set import TlsSocket
from bridge.broadcast.subscriber import State, Subscription
from bridge.contract.filters import SubscribeRequest
from bridge.metrics import Transport
from bridge.server.access.read_limiter import READ_BUFFER, ReadLimiter
from bridge.server.listeners.sockets import SEND_BUFFER_BYTES
from bridge.server.transport import tcp

CLOSING_BUFFER_BYTES = 4 * SEND_BUFFER_BYTES
"""The size of the kernel's send buffer for a closing client that does not read. The buffer has room for the rest of an
update of up to 80 KB, and for the last bytes. If the update is larger than 80 KB, the client may not get the last
bytes."""


class Clock:
    """The time of the event loop at the last tick.

    All connections share one `Clock` object, so that they need no float of their own, which saves memory.
    """

    __slots__ = ("now_s",)

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """The collaborators that all connections of a server share.

    Each connection needs only one reference to its `ConnectionContext`.
    """

    hub: Hub
    clock: Clock
    read_limiter: ReadLimiter
    now_ms: Callable[[], int]
    """Returns the time in Unix milliseconds."""
    idle_timeout_s: float
    on_close: "Callable[[ClientConnection, CloseReason, dict[str, object]], None]"
    """Called when the bridge closes a connection, with the reason and with details for the log."""
    on_lost: "Callable[[ClientConnection], None]"
    """Called when a connection has ended and its socket is closed."""


class ClientConnection(asyncio.BufferedProtocol):
    """Sends what the hub sends, and closes between two messages."""

    __slots__ = (
        "_context",
        "_pending_close",
        "_transport",
        "address",
        "close_code",
        "closed_at",
        "congested",
        "cursor",
        "descriptor",
        "offset",
        "opened_at",
        "pinged_at",
        "sent_at",
        "slot",
        "state",
        "subscription",
    )

    transport_label: ClassVar[Transport]
    """The value of the label `transport` in metrics."""

    subscription: Subscription
    last_received_at: float
    """The time when the client last sent something, in seconds."""

    def __init__(self, transport: asyncio.Transport, address: str, context: ConnectionContext) -> None:
        """`address` is the IP address of the client."""
        self._context = context
        self._transport: asyncio.Transport | None = transport
        """The connection's transport, or None after the connection has ended."""
        self._pending_close: tuple[bytes, Callable[[], None]] | None = None
        """The last bytes, which wait until the current frame is complete, and the function to call after the last bytes
        are sent."""
        self.address = address
        self.cursor = 0
        self.offset = 0
        self.slot = -1
        self.state = State.NEW
        self.congested = False
        self.opened_at = self.pinged_at = self.sent_at = context.clock.now_s
        self.closed_at: float | None = None
        """The time when the connection began to close, in seconds."""
        self.close_code: int | None = None
        """The close code from the side that began to close the connection, or None if it sent no code."""
        self.descriptor: int | None = None
        """The socket's descriptor.

        The descriptor is None if data must go through the transport, or after the connection has ended.
        """
        transport.set_protocol(self)
        if transport.get_extra_info("sslcontext") is None:
            self.descriptor = transport.get_extra_info("socket").fileno()

    @property
    def tls_socket(self) -> TlsSocket:
        """The transport. With TLS, the transport encrypts the frames that a flush writes to the socket."""
        return cast("TlsSocket", self._transport)

    @property
    def peer(self) -> str:
        """The client's address and port, for logs."""
        return "gone" if self._transport is None else self._transport.get_extra_info("peername").text

    @property
    def acknowledged_bytes(self) -> int | None:
        """How many bytes the client's kernel has acknowledged, or None if the bridge's kernel does not report this."""
        stream = self._transport.get_extra_info("socket") if self._transport is not None else None
        with suppress(OSError):
            return None if stream is None else tcp.acknowledged_bytes(stream)
        return None

    @abstractmethod
    def join(self, request: SubscribeRequest) -> None:
        """Joins the hub. A connection that closes at once need not join."""

    # Sending

    def send(self, *frames: bytes | memoryview) -> int:
        """Writes frames through the transport.

        Returns the number of bytes written, -1 if some bytes are enqueued, or 0 if bytes are dropped, because the
        connection is closing or its transport has failed.
        """
        if self._transport is None or (self.closed_at is not None and self._pending_close is None):
            return 0
        for part in frames:
            # The frames are written separately, because `writelines` would copy all frames into one buffer.
            self._transport.write(part)
        if self._transport.is_closing():
            return 0
        return -1 if self.congested else sum(map(len, frames))

    @property
    @abstractmethod
    def last_active_at(self) -> float:
        """The time since which the connection counts as silent, in seconds."""

    @abstractmethod
    def ping(self) -> None:
        """Sends a few bytes that keep the connection alive, or does nothing if the connection is closing."""

    def frame_ended(self) -> None:
        """Sends the last bytes if they were held back until a partly sent frame was complete."""
        if self._transport is not None and self._pending_close is not None:
            (last, after), self._pending_close = self._pending_close, None
            self._send_last(self._transport, last, after)

    def pause_writing(self) -> None:
        self.congested = True
        self._context.hub.congested(self)

    def resume_writing(self) -> None:
        self.congested = False
        self._context.hub.drained(self)

    # Closing

    @abstractmethod
    def close(self, reason: CloseReason, **details: object) -> None:
        """Begins to close the connection. `Keepalive` limits how long the client may take to end its side.

        If the client has received only a part of a frame, and the update log has dropped this frame, no last bytes can
        follow. The connection is then reset instead.
        """

    def abort(self) -> None:
        """Ends the connection at once, and drops the data that its transport holds."""
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """Ends the connection at once with a TCP reset. The kernel discards all data that is not sent yet."""
        if self._transport is not None:
            self._pending_close = None
            tcp.reset_on_close(self._transport.get_extra_info("socket"))
            self._transport.abort()

    def _close(self, reason: CloseReason, details: dict[str, object], last: bytes, after: Callable[[], None]) -> None:
        """Reports the reason, sends the last bytes and calls `after`, unless the connection is closing already."""
        if self.closed_at is None and self._transport is not None:
            self.close_code = reason.code
            self._context.on_close(self, reason, details)
            self._begin_close(self._transport, last, after)

    def _begin_close(self, transport: asyncio.Transport, last: bytes, after: Callable[[], None]) -> None:
        """Sends the last bytes as soon as the current frame is complete, and then calls `after`."""
        self.closed_at = self._context.clock.now_s
        if self.offset:
            # `_pending_close` is set first, because the hub may complete the frame or reset the connection at once.
            self._pending_close = last, after
            self._context.hub.closing(self)
        else:
            self._context.hub.closing(self)
            self._send_last(transport, last, after)

    def _send_last(self, transport: asyncio.Transport, last: bytes, after: Callable[[], None]) -> None:
        transport.write(last)
        # A TLS connection that has just ended has no socket.
        if self.congested and (stream := transport.get_extra_info("socket")) is not None:
            # The kernel stores the last bytes after the data that the client has not read. The kernel sends the last
            # bytes to the client even after the bridge has ended.
            with suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CLOSING_BUFFER_BYTES)
        after()

    def _end_this_side(self) -> None:
        """Ends only the bridge's side of the TCP connection.

        If the socket were closed with unread bytes, the kernel would reset the connection, and the client might never
        receive the last bytes.
        """
        if self._transport is not None:
            self._transport.write_eof()

    # Reading

    @abstractmethod
    def received(self, data: memoryview | bytes) -> None:
        """Handles bytes from the client, and throttles the client if it sends too much."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._context.read_limiter.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received(READ_BUFFER[:nbytes])

    def resume_reading(self) -> None:
        """Starts reading from the client again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close_if_eof(self) -> None:
        """Ends the connection if the client has ended its side.

        While a connection is throttled, it is not notified of EOF.
        """
        stream = self._transport.get_extra_info("socket") if self._transport is not None else None
        with suppress(OSError):
            if stream is not None and tcp.has_ended(stream):
                self.abort()

    def eof_received(self) -> None:
        """Returns None, so that the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._context.hub.leave(self)
            self._context.read_limiter.forget(self)
        finally:
            try:
                self._context.on_lost(self)
            finally:
                # Transport and protocol refer to each other. With references in both directions, only the garbage
                # collector could free transport and protocol.
                self._transport = self._pending_close = self.descriptor = None
