"""A client's connection after the handshake: it sends frames, handles frames from the client, and closes.

An idle connection consists only of a `Connection` object and its transport. All connections share one read buffer, and
a frame reader exists only while a frame is incomplete.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import PING, close_frame, pong_frame
from bridge.broadcast.hub import Hub
from bridge.broadcast.live_set import TlsSocket
from bridge.broadcast.subscriber import State, Subscription
from bridge.server.access.read_limiter import READ_BUFFER, ReadLimiter
from bridge.server.listeners.sockets import SEND_BUFFER_BYTES
from bridge.server.transport import tcp
from bridge.server.websocket.reader import Close, FrameReader, Ping, ProtocolViolation

CLOSING_BUFFER_BYTES = 4 * SEND_BUFFER_BYTES
"""The size of the kernel's send buffer for a closing client that does not read. The buffer has room for the rest of an
update of up to 80 KB, and for the close frame. If the update is larger than 80 KB, the client may not get the close
frame."""

MAX_PONGS_DUE = 4
"""For each unanswered ping, the read limiter lets a client send one pong without charge, up to this number of pongs.

Without a maximum, a client could leave many pings unanswered, and then flood the bridge with free pongs.
"""

REASONS = {1002: CloseReason.PROTOCOL_ERROR, 1007: CloseReason.INVALID_UTF8}


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
    on_close: "Callable[[Connection, CloseReason, dict[str, object]], None]"
    """Called when the bridge closes a connection, with the reason and with details for the log."""
    on_lost: "Callable[[Connection], None]"
    """Called when a connection has ended and its socket is closed."""


class Connection(asyncio.BufferedProtocol):
    """Sends the hub's frames, answers pings and close frames, and ignores all other frames of the client."""

    __slots__ = (
        "_context",
        "_frame_reader",
        "_pending_close",
        "_ping_is_due",
        "_pong",
        "_pongs_due",
        "_transport",
        "address",
        "close_code",
        "closed_at",
        "congested",
        "cursor",
        "descriptor",
        "last_received_at",
        "offset",
        "opened_at",
        "pinged_at",
        "slot",
        "state",
        "subscription",
    )

    subscription: Subscription

    def __init__(self, transport: asyncio.Transport, address: str, context: ConnectionContext) -> None:
        """`address` is the IP address of the client."""
        self._context = context
        self._transport: asyncio.Transport | None = transport
        """The connection's transport, or None after the connection has ended."""
        self._frame_reader: FrameReader | None = None
        """The reader of an incomplete frame, or None if no frame is incomplete."""
        self._pong: bytes | None = None
        """The payload of the client's newest ping that has no pong yet.

        Pings before the client's newest ping need no pong (RFC 6455, section 5.5.3).
        """
        self._ping_is_due = False
        """Whether a ping waits until the current frame is complete."""
        self._pending_close: tuple[bytes, Callable[[], None]] | None = None
        """The close frame that waits until the current frame is complete, and the function to call after the close
        frame is sent."""
        self._pongs_due = 0
        """The number of the bridge's pings that the client has not answered.

        For each unanswered ping, the read limiter lets one pong of the client pass without charge.
        """
        self.address = address
        self.cursor = 0
        self.offset = 0
        self.slot = -1
        self.state = State.NEW
        self.congested = False
        self.opened_at = self.last_received_at = self.pinged_at = context.clock.now_s
        self.closed_at: float | None = None
        """The time when the closing handshake began, in seconds."""
        self.close_code: int | None = None
        """The close code from the side that began the closing handshake, or None if it sent no code."""
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

    def ping(self) -> None:
        """Sends a ping. A ping has only two bytes, so the transport can hold a ping until a slow client reads."""
        if self._transport is None or self.closed_at is not None:
            return
        self.pinged_at = self._context.clock.now_s
        if self.offset:
            self._ping_is_due = True
        else:
            self._write_ping(self._transport)

    def _write_ping(self, transport: asyncio.Transport) -> None:
        self._pongs_due = min(self._pongs_due + 1, MAX_PONGS_DUE)
        transport.write(PING)

    def frame_ended(self) -> None:
        """Sends the control frames that were held back until a partly sent frame was complete."""
        if self._transport is None:
            return
        if self._pending_close is not None:
            (frame, after), self._pending_close = self._pending_close, None
            self._send_close_frame(frame, after)
        elif self.closed_at is None:
            if self._ping_is_due:
                self._ping_is_due = False
                self._write_ping(self._transport)
            self._send_pending_pong()

    def close(self, reason: CloseReason, **details: object) -> None:
        """Starts the closing handshake. `Keepalive` limits how long the client may take to answer the close frame.

        If the client has received only a part of a frame, and the update log has dropped this frame, no close frame can
        follow. If no close frame can be sent, the connection is reset instead.
        """
        self._close(reason, details, _await_answer)

    def _close(self, reason: CloseReason, details: dict[str, object], after: Callable[[], None]) -> None:
        if self.closed_at is None and self._transport is not None:
            self.close_code = reason.code
            self._context.on_close(self, reason, details)
            self._begin_close(close_frame(reason.code, reason.phrase), after)

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

    def _begin_close(self, frame: bytes, after: Callable[[], None]) -> None:
        """Sends a close frame as soon as the current frame is complete, and then calls `after`."""
        self.closed_at = self._context.clock.now_s
        if self.offset:
            # `_pending_close` is set first, because the hub may complete the frame or reset the connection at once.
            self._pending_close = frame, after
            self._context.hub.closing(self)
        else:
            self._context.hub.closing(self)
            self._send_close_frame(frame, after)

    def _send_close_frame(self, frame: bytes, after: Callable[[], None]) -> None:
        assert self._transport is not None
        self._transport.write(frame)
        # A TLS connection that has just ended has no socket.
        if self.congested and (stream := self._transport.get_extra_info("socket")) is not None:
            # The kernel stores the close frame after the data that the client has not read. The kernel sends the close
            # frame to the client even after the bridge has ended.
            with suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CLOSING_BUFFER_BYTES)
        after()

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

    def received(self, data: memoryview | bytes) -> None:
        """Handles bytes from the client, and throttles the client if it sends too much."""
        self.last_received_at = self._context.clock.now_s
        reader = self._frame_reader or FrameReader()
        if found := reader.feed(data):
            self._send_pongs([each.payload for each in found if isinstance(each, Ping)])
            # A violation or a close frame is always the last item of `found`.
            match found[-1]:
                case ProtocolViolation(code, detail):
                    self._fail(REASONS[code], detail)
                case Close(code):
                    self._closed_by_client(code)
        self._frame_reader = None if reader.idle else reader
        if self._transport is not None and not self._charge(len(data), reader):
            # A closing client is throttled too, because it could otherwise use the whole processor.
            self._transport.pause_reading()

    def _charge(self, read_bytes: int, reader: FrameReader) -> bool:
        """Charges the client for received data, except for pongs that answer pings of the bridge, and a close frame.

        If such a frame arrives in several reads, the client is charged for all reads except the last.
        """
        frames = reader.frames
        if answers := min(reader.pongs, self._pongs_due):
            self._pongs_due -= answers
            frames -= answers
            read_bytes -= reader.pong_bytes * answers // reader.pongs
        if reader.close_bytes:
            # A close frame is the last frame of its connection. If it counted, all clients that a stopping bridge
            # closes would together exceed the limit.
            frames -= 1
            read_bytes -= reader.close_bytes
        if frames <= 0 and read_bytes <= 0:
            return True
        return self._context.read_limiter.consume(self, max(0, read_bytes), max(0, frames))

    def _send_pongs(self, pings: list[bytes]) -> None:
        """Sends all pongs in one write, because a write takes ten times as long as reading a ping."""
        if not pings or self._transport is None or self.closed_at is not None:
            return
        if self.congested or self.offset:
            self._pong = pings[-1]
        else:
            self._transport.write(b"".join(map(pong_frame, pings)))

    def _send_pending_pong(self) -> None:
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self._send_pongs([payload])

    def _fail(self, reason: CloseReason, detail: str) -> None:
        self._close(reason, {"violation": detail}, self._end_this_side)

    def _end_this_side(self) -> None:
        """Ends TCP without a closing handshake, because the client broke the protocol (RFC 6455, section 7.1.7).

        Only the bridge's side of the TCP connection ends. If the socket were closed with unread bytes, the kernel would
        reset the connection, and the client might never receive the close frame.
        """
        if self._transport is not None:
            self._transport.write_eof()

    def _closed_by_client(self, code: int | None) -> None:
        # The server closes the TCP connection before the client does (RFC 6455, section 7.1.1).
        if self._transport is None:
            return
        if self.closed_at is None:
            self.close_code = code
            self._begin_close(close_frame(code), self._transport.close)
        elif self._pending_close is not None:
            self._pending_close = self._pending_close[0], self._transport.close
        else:
            self._transport.close()

    def eof_received(self) -> None:
        """Returns None, so that the transport closes itself."""

    def pause_writing(self) -> None:
        self.congested = True
        self._context.hub.congested(self)

    def resume_writing(self) -> None:
        self.congested = False
        self._send_pending_pong()
        self._context.hub.drained(self)

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
                self._transport = self.descriptor = None
                self._frame_reader = self._pending_close = None


def _await_answer() -> None:
    """Does nothing, because the bridge keeps the connection open after a close frame until the client answers."""
