"""An event stream: a response of Server-Sent Events, which the hub writes (HTML standard, section 9.2).

The body has lines that end with LF, in UTF-8 without a byte order mark. Its first line is a comment, which the bridge
sends with the head of the response, before it looks anything up. The hub sends a block for each message. `retry` is a
line of the first block, because some clients make an event from a block without data.

`EventSource` reconnects only after a response with status 200. A client that can't be served therefore gets 200, a
message of type `close`, and the end of the body. The body ends with the connection.
"""

import asyncio
import random
from math import inf

from bridge.broadcast.close_reasons import CAPACITY_REASONS, CloseReason
from bridge.broadcast.framing import Form
from bridge.broadcast.subscriber import State
from bridge.contract import envelope
from bridge.contract.filters import SubscribeRequest
from bridge.metrics import Transport
from bridge.server.connection.client_connection import ClientConnection, ConnectionContext
from bridge.server.http.response import EVENT_STREAM, Header, stream_head
from bridge.server.transport import tcp

COMMENT = b":\n"
"""A line that clients ignore. It shows clients and proxies that the connection works."""

MIN_RETRY_MS, MAX_RETRY_MS = 1000, 5000
"""The bounds of the time after which a client reconnects. The time is random, so that the clients of a bridge that
restarts do not reconnect all at once."""

FULL_RETRY_MS = 30_000
"""The time after which a client reconnects to a bridge that was full."""

_ANNOUNCED = CAPACITY_REASONS | {CloseReason.STOPPING}
"""The reasons that a client learns. After any other reason, the body just ends, and the client reconnects."""

# In Python 3.11, each access to an enum member runs Python code.
_LIVE = State.LIVE


def event_stream_head(headers: tuple[Header, ...]) -> bytes:
    """Returns the head of the response, with additional headers."""
    return stream_head(EVENT_STREAM, *headers)


class EventStream(ClientConnection):
    """Sends the hub's blocks, and ignores everything that the client sends after its request."""

    __slots__ = ()

    transport_label = Transport.SSE

    last_received_at = inf
    """The client sends nothing, so `Keepalive` never finds it idle. The kernel ends the connection to a dead client."""

    def __init__(self, transport: asyncio.Transport, address: str, context: ConnectionContext) -> None:
        """`address` is the IP address of the client. The head of the response and `COMMENT` must be sent already."""
        super().__init__(transport, address, context)
        tcp.set_user_timeout(transport.get_extra_info("socket"), context.idle_timeout_s)

    def join(self, request: SubscribeRequest) -> None:
        """Sends the first line of the first block, and joins the hub, which sends the rest of this block."""
        assert self._transport is not None
        retry_ms = random.randint(MIN_RETRY_MS, MAX_RETRY_MS)  # noqa: S311 - jitter is no secret
        self._transport.write(_retry_line(retry_ms))
        self._context.hub.join(self, request, Form.EVENT)

    @property
    def last_active_at(self) -> float:
        """The time when the bridge last sent something, in seconds."""
        sent_at = max(self.pinged_at, self.sent_at)
        return max(sent_at, self.subscription.sent_at) if self.state is _LIVE else sent_at

    def ping(self) -> None:
        """Sends a comment, unless the client has received only a part of a block or does not read."""
        if self._transport is None or self.closed_at is not None or self.offset or self.congested:
            return
        self.pinged_at = self._context.clock.now_s
        self._transport.write(COMMENT)

    def close(self, reason: CloseReason, **details: object) -> None:
        """Ends the body. If the client must learn the reason, it gets a message of type `close` first.

        If the client has received only a part of a block, the body ends after this block. If the update log has dropped
        this block, the connection is reset instead.
        """
        last = _close_block(reason, self._context.now_ms()) if reason in _ANNOUNCED else b""
        self._close(reason, details, last, self._end_this_side)

    def received(self, data: memoryview | bytes) -> None:
        """Ignores bytes from the client, and throttles the client if it sends too much."""
        if self._transport is not None and not self._context.read_limiter.consume(self, len(data), 0):
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._report_timeout(exc)
        finally:
            super().connection_lost(exc)

    def _report_timeout(self, error: Exception | None) -> None:
        if self.closed_at is not None or self._transport is None:
            return
        if tcp.has_timed_out(self._transport.get_extra_info("socket"), error):
            self.close_code = CloseReason.IDLE.code
            self._context.on_close(self, CloseReason.IDLE, {})


def _retry_line(milliseconds: int) -> bytes:
    return b"retry: %d\n" % milliseconds


def _close_block(reason: CloseReason, now_ms: int) -> bytes:
    """Returns the block of the last message. It has no id, so that the client resumes after its last update."""
    retry = _retry_line(FULL_RETRY_MS) if reason in CAPACITY_REASONS else b""
    return b"%bdata: %b\n\n" % (retry, envelope.close(reason.code, reason.phrase, now_ms))
