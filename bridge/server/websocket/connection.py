"""A WebSocket connection: it sends frames, handles frames from the client, and closes with a close frame.

A frame reader exists only while a frame is incomplete.
"""

import asyncio

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import PING, close_frame, pong_frame
from bridge.broadcast.framing import Form
from bridge.contract.filters import SubscribeRequest
from bridge.metrics import Transport
from bridge.server.connection.client_connection import ClientConnection, ConnectionContext
from bridge.server.websocket.reader import Close, FrameReader, Ping, ProtocolViolation

MAX_PONGS_DUE = 4
"""For each unanswered ping, the read limiter lets a client send one pong without charge, up to this number of pongs.

Without a maximum, a client could leave many pings unanswered, and then flood the bridge with free pongs.
"""

REASONS = {1002: CloseReason.PROTOCOL_ERROR, 1007: CloseReason.INVALID_UTF8}


class WebSocketConnection(ClientConnection):
    """Sends the hub's frames, answers pings and close frames, and ignores all other frames of the client."""

    __slots__ = ("_frame_reader", "_ping_is_due", "_pong", "_pongs_due", "last_received_at")

    transport_label = Transport.WEBSOCKET

    def __init__(self, transport: asyncio.Transport, address: str, context: ConnectionContext) -> None:
        """`address` is the IP address of the client."""
        self._frame_reader: FrameReader | None = None
        """The reader of an incomplete frame, or None if no frame is incomplete."""
        self._pong: bytes | None = None
        """The payload of the client's newest ping that has no pong yet.

        Pings before the client's newest ping need no pong (RFC 6455, section 5.5.3).
        """
        self._ping_is_due = False
        """Whether a ping waits until the current frame is complete."""
        self._pongs_due = 0
        """The number of the bridge's pings that the client has not answered.

        For each unanswered ping, the read limiter lets one pong of the client pass without charge.
        """
        self.last_received_at = context.clock.now_s
        super().__init__(transport, address, context)

    def join(self, request: SubscribeRequest) -> None:
        """Joins the hub. Updates have ids if the client asked for them."""
        self._context.hub.join(self, request, Form.TEXT if request.after is None else Form.TEXT_WITH_ID)

    @property
    def last_active_at(self) -> float:
        """The time when the client last sent something, or the time of a later ping, in seconds."""
        received_at, pinged_at = self.last_received_at, self.pinged_at
        return max(pinged_at, received_at)

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
        super().frame_ended()
        if self._transport is not None and self.closed_at is None:
            if self._ping_is_due:
                self._ping_is_due = False
                self._write_ping(self._transport)
            self._send_pending_pong()

    def resume_writing(self) -> None:
        self.congested = False
        self._send_pending_pong()
        self._context.hub.drained(self)

    def close(self, reason: CloseReason, **details: object) -> None:
        """Starts the closing handshake. `Keepalive` limits how long the client may take to answer the close frame.

        If the client has received only a part of a frame, and the update log has dropped this frame, no close frame can
        follow. If no close frame can be sent, the connection is reset instead.
        """
        self._close(reason, details, close_frame(reason.code, reason.phrase), _await_answer)

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
        """Closes without a closing handshake, because the client broke the protocol (RFC 6455, section 7.1.7)."""
        self._close(reason, {"violation": detail}, close_frame(reason.code, reason.phrase), self._end_this_side)

    def _closed_by_client(self, code: int | None) -> None:
        # The server closes the TCP connection before the client does (RFC 6455, section 7.1.1).
        if self._transport is None:
            return
        if self.closed_at is None:
            self.close_code = code
            self._begin_close(self._transport, close_frame(code), self._transport.close)
        elif self._pending_close is not None:
            self._pending_close = self._pending_close[0], self._transport.close
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._frame_reader = None
        super().connection_lost(exc)


def _await_answer() -> None:
    """Does nothing, because the bridge keeps the connection open after a close frame until the client answers."""
