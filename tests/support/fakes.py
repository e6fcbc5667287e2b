"""Fakes for unit tests: a loop that the test turns, a clock, a subscriber, a transport, a delivery.

None of the fakes sleeps. Only `ManualClock` needs a running event loop. `SocketSubscriber` has a
real socket.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from pamqp.header import ContentHeader

from bridge.amqp.consume.session import Delivery
from bridge.amqp.rejects.publisher import RejectPublisher
from bridge.amqp.wire.properties import MessageProperties
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import close_frame, text_frame
from bridge.broadcast.framing import Form
from bridge.broadcast.hub import FLUSH_BYTES, Hub
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.subscriber import State
from bridge.broadcast.update_log import UpdateLog
from bridge.contract import envelope
from bridge.contract.filters import After, SubscribeRequest
from bridge.loop_turn import TURN_S, LoopTurn
from bridge.metrics import Metrics
from bridge.server.transport.tcp import PeerName

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from bridge.broadcast.hub import FlushListener, Trace
    from bridge.broadcast.live_set import TlsSocket
    from bridge.broadcast.subscriber import Subscription
    from bridge.contract.pipeline import Rejected
    from bridge.contract.update_id import UpdateId


class Turns:
    """Replaces the event loop's `call_soon`. The test runs each turn of the loop."""

    def __init__(self) -> None:
        self.scheduled: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self.timers: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        self.scheduled.append((callback, arguments))

    def call_later(self, _: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    def end_timers(self) -> None:
        """Runs the timers that are set, but not the timers that these timers set."""
        timers, self.timers = self.timers, []
        for callback in timers:
            callback()

    def turn(self) -> int:
        """Runs the calls that are already scheduled, but not the calls that these calls schedule.

        Returns the number of calls.
        """
        due = len(self.scheduled)
        for _ in range(due):
            callback, arguments = self.scheduled.popleft()
            callback(*arguments)
        return due

    def settle(self) -> None:
        """Turns the loop until no call is scheduled."""
        for _ in range(10_000):
            if not self.turn():
                return
        raise AssertionError("the loop always has scheduled calls")


def call_now(_: float, callback: Callable[[], None]) -> None:
    """Replaces the event loop's `call_later` with no delay. The windows of a `JoinStorm` then end at once."""
    callback()


def ignore(*_: object) -> None:
    """Does nothing. A test passes this function as a callback that it does not need."""


class FakeTurn(LoopTurn):
    """A turn that ends after `steps` questions, and each later turn after one. If `steps` is None, no turn ends."""

    def __init__(self, call_soon: Callable[..., object]) -> None:
        super().__init__(call_soon)
        self.steps: int | None = None

    def begin(self) -> None:
        """Does not measure the turn, because the test runs each turn."""

    def is_over(self, limit_s: float = TURN_S) -> bool:
        if self.steps is None:
            return False
        self.steps = max(0, self.steps - 1)
        return not self.steps


class Hours:
    """Replaces the event loop's `time` and `call_at` with a clock that the test moves."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self._due: list[tuple[float, asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        # A handle needs a loop only to report its cancellation.
        handle = asyncio.TimerHandle(when_s, callback, (), cast("asyncio.AbstractEventLoop", _NoLoop()))
        self._due.append((when_s, handle))
        return handle

    @property
    def pending(self) -> int:
        """The number of running timers."""
        return sum(1 for _, handle in self._due if not handle.cancelled())

    def pass_by(self, seconds: float) -> None:
        """Moves the clock, and runs the timers that are due."""
        self.now_s += seconds
        for when_s, handle in tuple(self._due):
            if when_s <= self.now_s:
                self._due.remove((when_s, handle))
                if not handle.cancelled():
                    handle._run()


class _NoLoop:
    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass


class FakeSubscriber:
    """A fake of a connection with TLS, as the hub sees it. The fake accepts writes until the test sets `full`."""

    subscription: Subscription

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.descriptor: int | None = None
        self.slot = -1
        self.state = State.NEW
        self.peer = "a client"
        self.cursor = self.offset = 0
        self.congested = False
        self.sent_at = 0.0
        self.full = False
        """True if the next write does not fit."""
        self.leaves = False
        """If true, the next write is dropped, and the connection leaves the hub."""
        self.fault: Exception | None = None
        """The error that a write raises."""
        self.writes: list[bytes] = []
        self.ended_frames = 0
        """The number of calls of `frame_ended`."""
        self.finishes = False
        """True while the connection is closing, but must still get the rest of a frame."""
        self.was_reset = False
        self.closed: CloseReason | None = None
        self.details: dict[str, object] = {}

    @property
    def received(self) -> bytes:
        return b"".join(self.writes)

    @property
    def tls_socket(self) -> TlsSocket:
        return self

    def fileno(self) -> int:
        return -1

    def encrypt(self, data: bytes) -> bytes:
        """A flush calls this method, instead of `send`, for a live connection with TLS.

        The fake sends the data itself, so there are no records to write.
        """
        self.send(data)
        if self.congested:
            self.hub.congested(self)
        return b""

    def keep(self, records: bytes, taken: int) -> None:
        raise AssertionError("the fake returns no records")

    def send(self, *frames: bytes | memoryview) -> int:
        assert self.closed is None or self.finishes, "a closed connection gets only the rest of a frame"
        if self.fault is not None:
            raise self.fault
        if self.leaves:
            self.hub.leave(self)
            return 0
        self.writes.append(b"".join(frames))
        if self.full and not self.congested:
            self.congested = True
            if self.state is State.LIVE:
                self.hub.congested(self)
        return -1 if self.congested else len(self.writes[-1])

    def close(self, reason: CloseReason, **details: object) -> None:
        assert self.closed is None, "a connection is closed once"
        self.closed = reason
        self.details = details
        self.finishes = self.offset > 0
        self.hub.closing(self)
        if not self.offset:
            self.closing_frame()

    def closing_frame(self) -> None:
        """Called when the close frame is sent, which comes after all other data."""

    def frame_ended(self) -> None:
        assert not self.offset
        self.ended_frames += 1
        if self.finishes:
            self.finishes = False
            self.closing_frame()

    def reset(self) -> None:
        assert self.finishes, "a connection is reset only in the middle of a frame"
        self.finishes = False
        self.was_reset = True

    def drain(self, *, full: bool = False) -> None:
        """Empties the transport. With `full`, the next write fills the transport again."""
        self.full = full
        self.congested = False
        self.hub.drained(self)


class SocketSubscriber(FakeSubscriber):
    """A connection with a descriptor: a real socket with a small buffer, and a transport.

    If the hub wrongly bypasses a transport that still holds bytes, the client reads bytes in the wrong order.
    """

    def __init__(self, hub: Hub, call_soon: Callable[..., object], room_bytes: int | None = None) -> None:
        """`room_bytes` is the buffer size that the socket requests. The kernel may choose another size.

        If `room_bytes` is None, the socket keeps the default buffer.
        """
        super().__init__(hub)
        self._call_soon = call_soon
        self._near, self._far = socket.socketpair()
        for end in (self._near, self._far):
            end.setblocking(False)
        if room_bytes is not None:
            self._near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room_bytes)
        self.descriptor = self._near.fileno()
        self.held = b""
        """The bytes that the transport holds, because the socket has not taken them yet."""
        self.gone = False
        """True after the connection has left the hub because its client is gone."""
        self._read = bytearray()

    @property
    def received(self) -> bytes:
        """The bytes that the client has read."""
        return bytes(self._read)

    def read(self, max_bytes: int = 2**24) -> bytes:
        """Reads the client's end of the connection until no bytes are left, and returns the bytes."""
        read = bytearray()
        while len(read) < max_bytes:
            try:
                piece = self._far.recv(max_bytes - len(read))
            except BlockingIOError:
                break
            if not piece:
                break
            read += piece
        self._read += read
        return bytes(read)

    def vanish(self) -> None:
        """Closes the client's socket without a close frame."""
        self._far.close()

    @property
    def vanished(self) -> bool:
        return self._far.fileno() < 0

    def end(self) -> None:
        """Closes both sockets. The next new socket gets the same descriptor."""
        self._near.close()
        self._far.close()

    def send(self, *frames: bytes | memoryview) -> int:
        assert not self.held, "bytes that the transport does not take stay in the log"
        if super().send(*frames) == 0:
            return 0
        if not self.write(self.writes[-1]):
            return 0
        return -1 if self.congested else len(self.writes[-1])

    def write(self, data: bytes) -> bool:
        """Writes through the transport, after the bytes that it still holds. Returns False if the transport fails."""
        self.held += data
        works = self._push()
        if self.held and not self.congested:
            self.congested = True
            self.hub.congested(self)
        return works

    def closing_frame(self) -> None:
        assert self.closed is not None
        self.write(close_frame(self.closed.code, self.closed.phrase))

    def reset(self) -> None:
        super().reset()
        self.held = b""
        self._lost()

    def drain(self, *, full: bool = False) -> None:
        """Writes as many of the held bytes as the socket takes. `full` has no effect."""
        self._push()
        if not self.held:
            super().drain()

    def _push(self) -> bool:
        try:
            self.held = self.held[os.write(self._near.fileno(), self.held) :]
        except BlockingIOError:
            pass
        except OSError:
            self.held = b""
            self._call_soon(self._lost)
            return False
        return True

    def _lost(self) -> None:
        self.gone = True
        self.hub.leave(self)


class FakeTransport(asyncio.Transport):
    """Records writes. With `full`, the fake reports a full buffer after a write.

    Like a real transport, the fake schedules `connection_lost` with `call_soon`. By default, its socket is closed and
    takes nothing, so all bytes go through the transport.
    """

    def __init__(
        self,
        call_soon: Callable[..., object],
        *,
        peername: tuple[str, int] = ("127.0.0.1", 54321),
        encrypted: bool = False,
        sock: socket.socket | None = None,
    ) -> None:
        if sock is None:
            sock = socket.socket()
            sock.close()
        super().__init__(
            {"peername": PeerName(*peername), "socket": sock} | ({"sslcontext": object()} if encrypted else {})
        )
        self._call_soon = call_soon
        self._protocol: asyncio.BaseProtocol | None = None
        self._paused = False
        self.full = False
        self.written: list[bytes] = []
        self.ended: list[str] = []
        """The calls that ended the transport (eof, close, abort), in order."""
        self.reading = True
        self.waiting_bytes = 0
        """The number of bytes that the kernel has not taken yet."""
        self.takes_nothing = False
        """True if the socket takes no bytes, so that all writes wait."""
        self.begin_error: OSError | None = None

    def close_at_once(self) -> None:
        self.abort()

    def begin(self) -> None:
        if self.begin_error is not None:
            raise self.begin_error
        self.get_protocol().connection_made(self)

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert "eof" not in self.ended, "nothing may be written after the end of our side"
        self.written.append(bytes(data))
        if self.takes_nothing:
            self.waiting_bytes += len(data)
        if self.full and not self._paused:
            self._paused = True
            self.get_protocol().pause_writing()

    def fileno(self) -> int:
        return -1

    def encrypt(self, data: bytes) -> bytes:
        """Writes the data itself, so there are no records to write."""
        self.write(data)
        return b""

    def keep(self, records: bytes, taken: int) -> None:
        raise AssertionError("the fake returns no records")

    def drain(self, *, full: bool = False) -> None:
        """Lets the client read everything. With `full`, the next write fills the transport again."""
        assert self._paused
        self._paused = False
        self.full = full
        self.get_protocol().resume_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.is_closing()
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended.append("eof")

    def close(self) -> None:
        self._end("close")

    def abort(self) -> None:
        self._end("abort")

    def is_closing(self) -> bool:
        return "close" in self.ended or "abort" in self.ended

    def _end(self, how: str) -> None:
        if not self.is_closing():
            self._call_soon(self.get_protocol().connection_lost, None)
        self.ended.append(how)


class FakeDelivery(Delivery):
    """A delivery without a channel. The delivery counts how often it is settled."""

    def __init__(
        self,
        body: bytes,
        *,
        exchange: str = "killmails",
        redelivered: bool = False,
        message_type: str | None = None,
        content_encoding: str | None = None,
        update_id: UpdateId | None = None,
    ) -> None:
        self.tag = 1
        self.id = update_id
        self.body = body
        self.properties = MessageProperties(ContentHeader(body_size=len(body)).marshal())
        self.properties.type, self.properties.encoding = message_type, content_encoding
        self.exchange = exchange
        self.routing_key = ""
        self.redelivered = redelivered
        self.received_s = time.monotonic()
        self.settled = 0
        self.lost = False
        """True after the test has ended the channel of the delivery."""

    @property
    def current(self) -> bool:
        return not self.lost

    def settle(self) -> None:
        self.settled += 1


class FakeFlowControl:
    """Records the reports of a reject publisher and of a hub."""

    def __init__(self) -> None:
        self.full: list[bool] = []
        """True if the publisher is full, and False if it is not."""
        self.behind: list[bool] = []
        """True if too many updates wait, and False if they are sent."""

    def set_behind(self, behind: bool) -> None:
        self.behind.append(behind)

    def set_full(self, full: bool) -> None:
        self.full.append(full)


class FakeRejects(RejectPublisher):
    """Records rejected deliveries without settling them."""

    def __init__(self) -> None:
        self.taken: list[tuple[Delivery, Rejected]] = []

    def reject(self, delivery: Delivery, rejected: Rejected) -> None:
        self.taken.append((delivery, rejected))


STEP_S = 0.5


class ManualClock:
    """The clock of the running event loop, which a test moves.

    Timers fire when the test moves the clock past their time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now_s)

    async def settle(self) -> None:
        """Runs the due calls of the event loop, and the calls that these calls schedule. The clock does not move."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Moves the clock in steps of STEP_S, and runs the timers that are due after each step."""
        end_s = self.now_s + seconds
        while (left_s := end_s - self.now_s) > STEP_S:
            await self.stall(STEP_S)
        await self.stall(left_s)

    async def stall(self, seconds: float) -> None:
        """Moves the clock in one step, as if the event loop had stalled.

        Timers that are set later count from the new time.
        """
        self.now_s += seconds
        await self.settle()


def deliver(transport: FakeTransport, data: bytes) -> None:
    """Delivers bytes as the event loop does: in reads no larger than the protocol's buffer."""
    while data:
        assert transport.reading, "a paused transport delivers nothing"
        protocol = transport.get_protocol()
        assert isinstance(protocol, asyncio.BufferedProtocol)
        buffer = cast("memoryview", protocol.get_buffer(-1))
        piece, data = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(piece)] = piece
        protocol.buffer_updated(len(piece))


TAG, NOW_MS = 0xABCD, 1_700_000_000_000


def update(number: int, kind: str = "a", size: int = 0) -> bytes:
    """Returns the payload of an update with this number, and with padding of `size` bytes."""
    return envelope.wrap(kind, {"n": number, "pad": "." * size}, NOW_MS)


class FakeFlushListener:
    """Records the flushed position of each call."""

    def __init__(self) -> None:
        self.positions: list[int] = []

    def on_flush(self, flushed: int) -> None:
        self.positions.append(flushed)


class FakeSource:
    """A source of updates. The source is live until the test changes `is_live`."""

    def __init__(self) -> None:
        self.is_live = True
        self.is_consuming = True


class Scene:
    """A hub with its log and clients. `close` closes the sockets of the clients."""

    def __init__(
        self,
        log_bytes: int = 2**20,
        *,
        shared: bool = False,
        replaying: bool = False,
        metrics: Metrics | None = None,
        flush_listener: FlushListener | None = None,
        trace: Trace | None = None,
        flush_bytes: int = FLUSH_BYTES,
        now_ms: Callable[[], int] = lambda: NOW_MS,
        storms: bool = False,
        heartbeat_s: float = 0.0,
    ) -> None:
        """If `shared` is true, each update already has its id, as updates from a stream do.

        With `storms`, many connections that join are a storm until `turns.end_timers` is called. With `heartbeat_s`,
        each call of `turns.end_timers` looks for due heartbeats.
        """
        self.turns = Turns()
        self.now_s = 1000.0
        """The time of the hub's clock, in seconds."""
        self.log = UpdateLog(log_bytes)
        self.index = ReplayIndex(self.log, None if shared else TAG)
        self.metrics = Metrics() if metrics is None else metrics
        self.flushes = FakeFlushListener()
        self.source = FakeSource()
        self.turn = FakeTurn(self.turns.call_soon)
        self.flow_control = FakeFlowControl()
        self.hub = Hub(
            self.index,
            self.metrics,
            self.turns.call_soon,
            self.turns.call_later if storms or heartbeat_s else call_now,
            lambda: self.now_s,
            now_ms,
            self.flushes if flush_listener is None else flush_listener,
            self.source,
            self.turn,
            self.flow_control,
            heartbeat_s=heartbeat_s,
            flush_bytes=flush_bytes,
            replaying=replaying,
            trace=trace,
        )
        self.published = 0
        self._sockets: list[SocketSubscriber] = []

    def publish(self, *updates: bytes | str, size: int = 0) -> bytes:
        """Publishes updates, flushes, and returns the frames. Bytes are published as the payload of an update.

        A str names the type of an update, which is published with the next number and with padding of `size` bytes.
        """
        payloads = []
        for each in updates:
            if isinstance(each, bytes):
                payloads.append(each)
                self.hub.publish(each)
            else:
                self.published += 1
                payloads.append(update(self.published, each, size))
                self.hub.publish(payloads[-1], (each, {}))
        self.hub.flush()
        return b"".join(map(text_frame, payloads))

    def publish_with_ids(self, *ids: UpdateId) -> None:
        """Publishes updates with these ids, and flushes."""
        for each in ids:
            self.hub.publish(update(each.sequence), ("a", {}), each)
        self.hub.flush()

    def join(
        self, after: str | None = None, wanted: Any = None, *, last: int | None = None, full: bool = False
    ) -> FakeSubscriber:
        """Adds a client without a descriptor. With `full`, the client takes only a part of the next write."""
        subscriber = FakeSubscriber(self.hub)
        subscriber.full = full
        self._join(subscriber, after, wanted, last)
        return subscriber

    def join_with_socket(
        self,
        room_bytes: int | None = None,
        *,
        after: str | None = None,
        wanted: Any = None,
        last: int | None = None,
        form: Form | None = None,
    ) -> SocketSubscriber:
        """Adds a client with a descriptor. `room_bytes` is the buffer size that its socket requests."""
        subscriber = SocketSubscriber(self.hub, self.turns.call_soon, room_bytes)
        self._sockets.append(subscriber)
        self._join(subscriber, after, wanted, last, form)
        return subscriber

    def _join(
        self, subscriber: FakeSubscriber, after: str | None, wanted: Any, last: int | None, form: Form | None = None
    ) -> None:
        request = SubscribeRequest(wanted, None if after is None else After.parse(after), last)
        self.hub.join(subscriber, request, form or (Form.TEXT if after is None else Form.TEXT_WITH_ID))

    def lagging(self, *payloads: bytes) -> FakeSubscriber:
        """Adds a client that has taken only a part of one update, and then publishes these updates."""
        subscriber = self.join(full=True)
        self.publish(b"first")
        for payload in payloads:
            self.publish(payload)
        return subscriber

    def sends(self) -> tuple[int, int, int]:
        """Returns the numbers of written, enqueued and dropped updates."""
        return self.metrics.written, self.metrics.enqueued, self.metrics.dropped

    def close(self) -> None:
        """Closes the sockets."""
        for subscriber in self._sockets:
            subscriber.end()
