"""A client's connection after its handshake: the frames that it gets, the frames that it sends, and its end.

An idle connection is only this object and its transport. All connections share one read buffer, and a frame reader
exists only while a frame is incomplete.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import PING, close_frame, pong_frame
from bridge.broadcast.hub import Hub
from bridge.broadcast.subscriber import Subscription
from bridge.server.access.read_limiter import READ_BUFFER, ReadLimiter
from bridge.server.listeners.sockets import SEND_BUFFER_BYTES
from bridge.server.transport import tcp_info
from bridge.server.websocket.reader import Close, Inbound, Ping, Violation

LAST_BUFFER_BYTES = 4 * SEND_BUFFER_BYTES
"""What the kernel may hold of a client that does not read and is being closed: room for the rest of an update of up to
80 KB, and for the close frame. With a longer one the client may find the end of the connection without its reason."""

RESET = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which a close resets the connection."""

MAX_PONGS_DUE = 4
"""The most pongs that a client may send without a charge, one for each unanswered ping. Without this limit, a client
could collect free pongs for a flood."""

REASONS = {1002: CloseReason.PROTOCOL_ERROR, 1007: CloseReason.INVALID_UTF8}


class Clock:
    """The loop's time as of the last tick: one float that all connections share, instead of one for each."""

    __slots__ = ("now_s",)

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s


class Connection(asyncio.BufferedProtocol):
    """Sends what the hub gives it, answers pings and closes, and ignores everything else a client says."""

    __slots__ = (
        "_hub",
        "_inbound",
        "_on_close",
        "_on_lost",
        "_pending_close",
        "_ping_is_due",
        "_pong",
        "_pongs_due",
        "_read_limiter",
        "_transport",
        "address",
        "clock",
        "closed_at",
        "congested",
        "cursor",
        "last_received_at",
        "offset",
        "opened_at",
        "pinged_at",
        "slot",
        "view",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        hub: Hub,
        clock: Clock,
        read_limiter: ReadLimiter,
        address: str,
        on_close: "Callable[[Connection, CloseReason, dict[str, object]], None]",
        on_lost: "Callable[[Connection], None]",
    ) -> None:
        """`address` is the client's; `on_close` is told why the bridge closes the connection, `on_lost` when nothing is
        left of it."""
        self._transport: asyncio.Transport | None = transport
        self._hub = hub
        self._read_limiter = read_limiter
        self._inbound: Inbound | None = None
        self._pong: bytes | None = None
        """The newest ping's payload, while it can't be answered: the ones before need no answer (RFC 6455, 5.5.3)."""
        self._ping_is_due = False
        """True while a ping waits until the current frame is complete."""
        self._pending_close: tuple[bytes, Callable[[], None]] | None = None
        """The close frame that waits until the current frame is complete, and the function to call after it."""
        self._pongs_due = 0
        """Pings of the bridge without an answer. The limit does not charge this many pongs."""
        self._on_close = on_close
        self._on_lost = on_lost
        self.clock = clock
        self.address = address
        self.cursor = 0
        self.offset = 0
        self.slot = -1
        self.view: Subscription | None = None
        self.congested = False
        self.opened_at = self.last_received_at = self.pinged_at = clock.now_s
        self.closed_at: float | None = None
        """When the closing handshake began."""
        transport.set_protocol(self)
        if transport.get_extra_info("sslcontext") is None:
            # Without a write buffer, the transport writes to the socket at once, and pauses the protocol if the socket
            # does not take all bytes. `TlsTransport` always behaves like this.
            transport.set_write_buffer_limits(high=0, low=0)

    @property
    def descriptor(self) -> int | None:
        """Of the socket; None where nothing may be written past the transport. Asked for again: it costs no memory."""
        transport = self._transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            return None
        descriptor: int = transport.get_extra_info("socket").fileno()
        return descriptor

    @property
    def write(self) -> Callable[[bytes], None]:
        """With TLS: encrypts frames and sends them. See `Place`."""
        assert self._transport is not None
        return self._transport.write

    @property
    def peer(self) -> str:
        """The client's address and port, for logs."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{name[0]} port {name[1]}" if name else "gone"

    @property
    def acknowledged_bytes(self) -> int | None:
        """How many bytes the client's kernel has acknowledged. None if our kernel does not report this."""
        stream = self._transport.get_extra_info("socket") if self._transport is not None else None
        with suppress(OSError):
            return None if stream is None else tcp_info.acknowledged_bytes(stream)
        return None

    def send(self, *frames: bytes | memoryview) -> int:
        """Sends through the transport: bytes written, -1 if some of them wait in it, 0 if they are dropped."""
        if self._transport is None or (self.closed_at is not None and self._pending_close is None):
            return 0
        for part in frames:
            # Not writelines, which copies them into one.
            self._transport.write(part)
        return -1 if self.congested else sum(map(len, frames))

    def ping(self) -> None:
        """Sends a ping. It has only two bytes, so the transport may hold it until a slow client reads."""
        if self._transport is None or self.closed_at is not None:
            return
        self.pinged_at = self.clock.now_s
        if self.offset:
            self._ping_is_due = True
        else:
            self._write_ping(self._transport)

    def _write_ping(self, transport: asyncio.Transport) -> None:
        self._pongs_due = min(self._pongs_due + 1, MAX_PONGS_DUE)
        transport.write(PING)

    def frame_ended(self) -> None:
        """Sends the control frames that waited until a frame sent in parts is complete."""
        if self._transport is None:
            return
        if self._pending_close is not None:
            (frame, then), self._pending_close = self._pending_close, None
            self._send_close_frame(frame, then)
        elif self.closed_at is None:
            if self._ping_is_due:
                self._ping_is_due = False
                self._write_ping(self._transport)
            self._answer_late()

    def close(self, reason: CloseReason, **details: object) -> None:
        """Starts the closing handshake. `Keepalive` limits how long the client may take to answer it.

        If the client has received only a part of a frame, and the log has dropped this frame, then no close frame can
        follow. The connection is reset instead.
        """
        self._close(reason, details, _nothing)

    def _close(self, reason: CloseReason, details: dict[str, object], then: Callable[[], None]) -> None:
        if self.closed_at is None and self._transport is not None:
            self._on_close(self, reason, details)
            self._farewell(close_frame(reason.code, reason.phrase), then)

    def abort(self) -> None:
        """Ends the connection at once, whatever still waits in its transport."""
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """Ends the connection at once with a TCP reset. The kernel discards all data that is not sent yet."""
        stream = self._transport.get_extra_info("socket") if self._transport is not None else None
        with suppress(OSError):
            if stream is not None:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.abort()

    def _farewell(self, frame: bytes, then: Callable[[], None]) -> None:
        """Sends a close frame as soon as the current frame is complete, and then calls `then`."""
        self.closed_at = self.clock.now_s
        if not self.offset:
            self._hub.leave(self)
            self._send_close_frame(frame, then)
            return
        self._pending_close = frame, then
        if not self._hub.finish(self):
            self._pending_close = None
            self.reset()

    def _send_close_frame(self, frame: bytes, then: Callable[[], None]) -> None:
        assert self._transport is not None
        self._transport.write(frame)
        # TLS that is over has no socket any more, though nobody has been told yet.
        if self.congested and (stream := self._transport.get_extra_info("socket")) is not None:
            # The kernel takes it behind all that the client has not read, and the client finds it there, however late.
            with suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LAST_BUFFER_BYTES)
        then()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_limiter.buffer

    def buffer_updated(self, nbytes: int) -> None:
        filled = nbytes == len(self._read_limiter.buffer)
        if self.received(READ_BUFFER[:nbytes]) and filled and self._transport is not None:
            # There may be more, and libuv would read up to 32 times: one read a turn, or a client that sends a flood of
            # tiny frames delays all others by 0.1 to 0.4 s.
            self._transport.pause_reading()
            self._hub.schedule(self.resume_reading)

    def resume_reading(self) -> None:
        """Listens to the client again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close_if_eof(self) -> None:
        """Ends the connection at once where its client has ended it, which only a read would tell."""
        stream = self._transport.get_extra_info("socket") if self._transport is not None else None
        with suppress(OSError):
            if stream is not None and tcp_info.has_ended(stream):
                self.abort()

    def received(self, data: memoryview | bytes) -> bool:
        """Deals with a client's bytes. False where it has said too much: nothing is read of it for a while."""
        self.last_received_at = self.clock.now_s
        inbound = self._inbound or Inbound()
        if events := inbound.feed(data):
            self._answer([event.payload for event in events if isinstance(event, Ping)])
            # Nothing comes behind a violation or a close.
            match events[-1]:
                case Violation(code, sentence):
                    self._fail(REASONS[code], sentence)
                case Close(code):
                    self._closed_by_client(code)
        self._inbound = None if inbound.idle else inbound
        if self._transport is None or self._spend(len(data), inbound):
            return True
        # Whatever comes of it: also a client that is being closed can't have all of the processor.
        self._transport.pause_reading()
        return False

    def _spend(self, read_bytes: int, inbound: Inbound) -> bool:
        """Charges the limit for received data, except for pongs that answer pings of the bridge."""
        frames = inbound.frames
        if answers := min(inbound.pongs, self._pongs_due):
            self._pongs_due -= answers
            # If a pong arrives in several reads, the limit has already charged all reads but the last.
            frames = max(0, frames - answers)
            read_bytes = max(0, read_bytes - inbound.pong_bytes * answers // inbound.pongs)
            if not (frames or read_bytes):
                return True
        return self._read_limiter.consume(self, read_bytes, frames)

    def _answer(self, pings: list[bytes]) -> None:
        """In one write: each costs as much as the reading of ten pings."""
        if not pings or self._transport is None or self.closed_at is not None:
            return
        if self.congested or self.offset:
            self._pong = pings[-1]
        else:
            self._transport.write(b"".join(map(pong_frame, pings)))

    def _answer_late(self) -> None:
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self._answer([payload])

    def _fail(self, reason: CloseReason, sentence: str) -> None:
        self._close(reason, {"violation": sentence}, self._end_this_side)

    def _end_this_side(self) -> None:
        """Ends TCP without a closing handshake, because the client broke the protocol (RFC 6455, section 7.1.7).

        Only this side ends. If the socket were closed with unread bytes, the kernel would reset the connection, and the
        client might never receive the close frame.
        """
        if self._transport is not None:
            self._transport.write_eof()

    def _closed_by_client(self, code: int | None) -> None:
        # The server closes the TCP connection first (RFC 6455, section 7.1.1).
        if self._transport is None:
            return
        if self.closed_at is None:
            self._farewell(close_frame(code), self._transport.close)
        elif self._pending_close is not None:
            self._pending_close = self._pending_close[0], self._transport.close
        else:
            self._transport.close()

    def eof_received(self) -> None:
        """The transport closes itself."""

    def pause_writing(self) -> None:
        self.congested = True
        self._hub.congested(self)

    def resume_writing(self) -> None:
        self.congested = False
        self._answer_late()
        self._hub.drained(self)

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._hub.leave(self)
            self._read_limiter.forget(self)
        finally:
            # Transport and protocol refer to each other: without this they wait for the garbage collector.
            self._transport = None
            self._inbound = self._pending_close = None
            self._on_lost(self)


def _nothing() -> None:
    """The function to call after the bridge's own close frame. The connection stays open until the client answers."""
