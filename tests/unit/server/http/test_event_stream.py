"""Tests of the bytes of an event stream in each state. The test fills, drains and ends the stream's transport."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson
import pytest

from bridge.broadcast.close_reasons import CAPACITY_REASONS, CloseReason
from bridge.broadcast.frames import event_block
from bridge.broadcast.subscriber import State
from bridge.contract import envelope
from bridge.contract.filters import EVERYTHING, FROM_NOW_ON, After, SubscribeRequest, UpdateFilter
from bridge.contract.update_id import UpdateId
from bridge.server.access.read_limiter import CLIENT_BUDGET_BYTES, PERIOD_S, READ_BUFFER, ReadLimiter
from bridge.server.connection.client_connection import ClientConnection, Clock, ConnectionContext
from bridge.server.http.event_stream import COMMENT, EventStream, event_stream_head
from bridge.server.listeners.sockets import SEND_BUFFER_BYTES
from bridge.server.websocket.connection import WebSocketConnection
from tests.support.fakes import NOW_MS, TAG, FakeTransport, Hours, Scene, deliver, update

if TYPE_CHECKING:
    from collections.abc import Iterator

RETRY = b"retry: 3000\n"
IDLE_TIMEOUT_S = 120.0
LIMITS = CAPACITY_REASONS
SILENT_REASONS = (CloseReason.INTERNAL, CloseReason.TOO_SLOW, CloseReason.IDLE)


@pytest.fixture(autouse=True)
def retry_ms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Makes the retry time known. Returns a list, to which the bounds of each retry time are added."""
    bounds: list[tuple[int, int]] = []

    def randint(low: int, high: int) -> int:
        bounds.append((low, high))
        return 3000

    monkeypatch.setattr(random, "randint", randint)
    return bounds


class OneStream(Scene):
    """A hub with one event stream, which uses a transport that the test controls. The stream has not joined the hub."""

    def __init__(self, *, line: socket.socket | None = None, encrypted: bool = False, replaying: bool = False) -> None:
        super().__init__(replaying=replaying)
        self.clock = Clock(1000.0)
        self.hours = Hours()
        self.read_limiter = ReadLimiter(self.hours.time, self.hours.call_at, lambda _: None)
        self.transport = FakeTransport(self.turns.call_soon, encrypted=encrypted, sock=line)
        self.closed: list[tuple[CloseReason, dict[str, object]]] = []
        self.lost: list[ClientConnection] = []
        self.context = ConnectionContext(
            self.hub,
            self.clock,
            self.read_limiter,
            lambda: NOW_MS,
            IDLE_TIMEOUT_S,
            lambda _, reason, details: self.closed.append((reason, details)),
            self.lost.append,
        )
        self.stream = EventStream(self.transport, "127.0.0.1", self.context)

    def open(self, request: SubscribeRequest = EVERYTHING) -> OneStream:
        """Joins the hub, and gets everything until the stream is live."""
        self.stream.join(request)
        self.turns.settle()
        return self

    @property
    def written(self) -> bytes:
        return b"".join(self.transport.written)

    def congest(self) -> None:
        """Fills the transport with a part of an update."""
        self.transport.full = True
        self.publish("a")
        self.turns.settle()
        assert self.stream.congested
        self.transport.written.clear()

    def lose(self, error: OSError | None = None) -> None:
        self.stream.connection_lost(error)


@pytest.fixture
def scene() -> OneStream:
    return OneStream()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The stream's socket and the client's socket."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


@pytest.fixture
def tcp_socket() -> Iterator[socket.socket]:
    """The bridge's end of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, client:
        yield ours


def block(number: int) -> bytes:
    """Returns the block of the update with this number, if it is the update at this position."""
    payload = orjson.loads(update(number))
    update_id = str(UpdateId(number, TAG))
    return event_block(orjson.dumps(payload | {"id": update_id}), update_id)


def data_of(written: bytes) -> list[dict[str, object]]:
    """Returns the messages of a body."""
    assert b"\r" not in written
    return [orjson.loads(line[6:]) for line in written.split(b"\n") if line.startswith(b"data: ")]


# The response


def test_head_has_the_media_type_and_the_headers_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    head = event_stream_head((("Vary", "Accept, Origin"), ("Access-Control-Allow-Origin", "http://localhost")))
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    assert head.endswith(
        b"\r\nConnection: close\r\nVary: Accept, Origin\r\nAccess-Control-Allow-Origin: http://localhost\r\n\r\n"
    )
    assert b"Content-Length" not in head
    assert b"charset" not in head


def test_first_block_has_the_retry_time_the_id_and_the_resume_message(scene: OneStream) -> None:
    scene.stream.join(SubscribeRequest(None, FROM_NOW_ON))
    start = str(scene.hub.newest_id)
    resume, heartbeat = envelope.resume(True, 0, start, NOW_MS), envelope.heartbeat(start, True, NOW_MS)
    assert scene.written == RETRY + event_block(resume, start) + event_block(heartbeat, start)


def test_stream_that_asks_for_no_ids_has_ids_too(scene: OneStream) -> None:
    scene.stream.join(EVERYTHING)
    start = str(scene.hub.newest_id)
    assert scene.written.startswith(RETRY + event_block(envelope.resume(True, 0, start, NOW_MS), start))


def test_retry_time_is_random_between_one_and_five_seconds(scene: OneStream, retry_ms: list[tuple[int, int]]) -> None:
    scene.stream.join(EVERYTHING)
    assert retry_ms == [(1000, 5000)]


def test_nothing_is_sent_before_the_stream_joins(scene: OneStream) -> None:
    scene.publish("a")
    assert scene.written == b""


def test_updates_are_the_same_blocks_for_each_stream(scene: OneStream) -> None:
    scene.open()
    scene.transport.written.clear()
    scene.publish("a", "a")
    scene.turns.settle()
    assert scene.written == block(1) + block(2)


def test_stream_resumes_after_an_id(scene: OneStream) -> None:
    with_ids = scene.join("")
    scene.publish("a", "a", "a")
    scene.hub.leave(with_ids)
    after = str(UpdateId(1, TAG))
    scene.open(SubscribeRequest(None, After.parse(after)))
    resumed = event_block(envelope.resume(True, 2, after, NOW_MS), after)
    assert scene.written.startswith(RETRY + resumed + block(2) + block(3))


def test_filtered_stream_gets_only_the_updates_that_match(scene: OneStream) -> None:
    scene.open(SubscribeRequest(UpdateFilter(frozenset({"b"}), ()), None))
    scene.transport.written.clear()
    scene.publish("a", "b", "a")
    assert [message["type"] for message in data_of(scene.written)] == ["b"]


def test_stream_without_tls_has_the_descriptor_of_its_socket(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    scene = OneStream(line=near).open()
    scene.transport.written.clear()
    far.recv(1000)
    scene.publish("a")
    assert far.recv(1000) == block(1)
    assert scene.written == b""


def test_stream_with_tls_has_no_descriptor_past_its_transport() -> None:
    scene = OneStream(encrypted=True).open()
    scene.transport.written.clear()
    scene.publish("a")
    assert scene.stream.descriptor is None
    assert scene.written == block(1)


def test_stream_takes_no_more_memory_than_a_websocket_connection(scene: OneStream) -> None:
    other = WebSocketConnection(FakeTransport(scene.turns.call_soon), "127.0.0.1", scene.context)
    assert sys.getsizeof(scene.stream) <= sys.getsizeof(other)
    assert not hasattr(scene.stream, "__dict__")


# Keep-alive


def test_ping_is_a_comment(scene: OneStream) -> None:
    scene.open()
    scene.transport.written.clear()
    scene.clock.now_s += 30
    scene.stream.ping()
    assert scene.written == COMMENT == b":\n"
    assert scene.stream.last_active_at == scene.clock.now_s


def test_ping_is_sent_while_the_stream_waits_for_its_position() -> None:
    scene = OneStream(replaying=True)
    scene.stream.join(EVERYTHING)
    assert scene.stream.state is State.PENDING
    scene.stream.ping()
    assert scene.written == RETRY + COMMENT


def test_ping_does_not_delay_the_next_heartbeat(scene: OneStream) -> None:
    scene.open()
    before = scene.stream.sent_at
    scene.clock.now_s += 30
    scene.stream.ping()
    assert scene.stream.sent_at == before


def test_no_ping_is_sent_to_a_client_that_does_not_read(scene: OneStream) -> None:
    scene.open().congest()
    scene.clock.now_s += 30
    scene.stream.ping()
    assert scene.written == b""
    assert scene.stream.last_active_at < scene.clock.now_s


def test_no_ping_is_sent_in_the_middle_of_a_block(ends: tuple[socket.socket, socket.socket]) -> None:
    scene, expected = within_a_block(ends)
    scene.stream.congested = False
    scene.stream.ping()
    scene.stream.congested = True
    assert finish(scene, ends[1]) == expected


@pytest.mark.parametrize("how", ["closing", "lost"])
def test_no_ping_is_sent_after_the_end(scene: OneStream, how: str) -> None:
    scene.open()
    if how == "closing":
        scene.stream.close(CloseReason.TOO_SLOW)
    else:
        scene.lose()
    scene.transport.written.clear()
    scene.stream.ping()
    assert scene.written == b""


def test_new_stream_is_active_since_it_was_opened(scene: OneStream) -> None:
    assert scene.stream.last_active_at == scene.stream.opened_at == 1000.0


def test_live_stream_is_active_since_the_last_broadcast_to_its_subscription(scene: OneStream) -> None:
    scene.open()
    scene.now_s += 40
    scene.publish("a")
    scene.turns.settle()
    assert scene.stream.state is State.LIVE
    assert scene.stream.last_active_at == scene.now_s


def test_lagging_stream_is_not_active_because_of_a_broadcast_to_others(scene: OneStream) -> None:
    scene.open().congest()
    assert scene.stream.state is State.LAGGING
    sent_at = scene.stream.last_active_at
    scene.now_s += 40
    scene.publish("a")
    assert scene.stream.last_active_at == sent_at


def test_client_that_sends_nothing_is_never_idle(scene: OneStream) -> None:
    assert scene.stream.last_received_at > 1e12


# The end of the body


def within_a_block(ends: tuple[socket.socket, socket.socket]) -> tuple[OneStream, bytes]:
    """Returns a scene in which the client has read nothing yet, and the bytes up to the end of a large update."""
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    scene = OneStream(line=ends[0]).open()
    finish(scene, ends[1])
    scene.transport.written.clear()
    scene.transport.full = True
    payload = envelope.wrap("a", "x" * 100_000, NOW_MS)
    scene.publish(payload)
    assert scene.stream.offset > 0
    assert scene.stream.congested
    update_id = str(scene.hub.newest_id)
    return scene, event_block(payload[:-1] + envelope.ending(update_id), update_id)


def finish(scene: OneStream, far: socket.socket) -> bytes:
    """Reads all data that the stream sends to the client, and returns this data."""
    read = bytearray()
    written = 0
    while True:
        with suppress(BlockingIOError):
            while data := far.recv(2**20):
                read += data
        read += b"".join(scene.transport.written[written:])
        written = len(scene.transport.written)
        if not scene.stream.congested:
            return bytes(read)
        scene.transport.drain(full=False)
        scene.turns.settle()


def close_block(reason: CloseReason) -> bytes:
    data = b'{"type":"close","data":{"code":%d,"reason":"%b"},"timestamp":%d}'
    block = b"data: %b\n\n" % (data % (reason.code, reason.phrase.encode(), NOW_MS))
    return b"retry: 30000\n" + block if reason in LIMITS else block


@pytest.mark.parametrize("reason", [CloseReason.STOPPING, CloseReason.FULL, CloseReason.ADDRESS_LIMIT])
def test_stream_that_is_refused_gets_only_a_close_message(scene: OneStream, reason: CloseReason) -> None:
    scene.stream.close(reason, clients=7)
    assert scene.written == close_block(reason)
    assert scene.transport.ended == ["eof"]
    assert scene.closed == [(reason, {"clients": 7})]
    assert (scene.stream.state, scene.stream.close_code) == (State.CLOSING, reason.code)
    assert len(scene.hub) == 0


def test_stopping_hub_sends_a_close_message_after_the_last_update(scene: OneStream) -> None:
    scene.open()
    scene.transport.written.clear()
    scene.publish("a")
    scene.turns.settle()
    scene.hub.drain(lambda: None)
    assert scene.written == block(1) + close_block(CloseReason.STOPPING)
    assert scene.transport.ended == ["eof"]


def test_stream_that_waits_gets_a_close_message_when_the_hub_stops() -> None:
    scene = OneStream(replaying=True)
    scene.stream.join(EVERYTHING)
    scene.hub.drain(lambda: None)
    assert scene.written == RETRY + close_block(CloseReason.STOPPING)


@pytest.mark.parametrize("reason", SILENT_REASONS)
def test_evicted_stream_ends_without_a_message(scene: OneStream, reason: CloseReason) -> None:
    scene.open()
    scene.transport.written.clear()
    scene.stream.close(reason, updates_behind=3)
    assert scene.written == b""
    assert scene.transport.ended == ["eof"]
    assert scene.closed == [(reason, {"updates_behind": 3})]


def test_stream_closes_once(scene: OneStream) -> None:
    scene.open()
    scene.stream.close(CloseReason.TOO_SLOW)
    scene.stream.close(CloseReason.STOPPING)
    assert [reason for reason, _ in scene.closed] == [CloseReason.TOO_SLOW]
    assert scene.transport.ended == ["eof"]


@pytest.mark.parametrize("reason", [CloseReason.STOPPING, CloseReason.TOO_SLOW])
def test_body_ends_after_a_block_that_is_sent_in_parts(
    ends: tuple[socket.socket, socket.socket], reason: CloseReason
) -> None:
    scene, expected = within_a_block(ends)
    scene.stream.close(reason)
    assert scene.transport.ended == []
    assert finish(scene, ends[1]) == expected + (close_block(reason) if reason is CloseReason.STOPPING else b"")
    assert scene.transport.ended == ["eof"]


def test_stream_in_the_middle_of_a_block_that_the_log_has_dropped_is_reset(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    scene, _ = within_a_block(ends)
    scene.publish(envelope.wrap("a", "y" * 2**20, NOW_MS))
    assert [reason for reason, _ in scene.closed] == [CloseReason.TOO_SLOW]
    assert scene.transport.ended == ["abort"]
    assert struct.unpack("ii", ends[0].getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)) == (1, 0)


def test_close_message_to_a_client_that_does_not_read_fits_into_the_kernel(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    scene = OneStream(line=ends[0]).open()
    scene.transport.full = True
    scene.stream.ping()
    scene.stream.close(CloseReason.STOPPING)
    assert ends[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 4 * SEND_BUFFER_BYTES
    assert scene.written.endswith(close_block(CloseReason.STOPPING))


# What the client sends


def test_what_the_client_sends_is_ignored(scene: OneStream) -> None:
    scene.open()
    scene.transport.written.clear()
    deliver(scene.transport, b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))
    assert scene.written == b""
    assert scene.transport.ended == []


@pytest.mark.parametrize("closing", [False, True])
def test_client_that_sends_too_much_is_throttled_until_the_next_period(scene: OneStream, *, closing: bool) -> None:
    scene.open()
    if closing:
        scene.stream.close(CloseReason.STOPPING)
    while scene.transport.reading:
        deliver(scene.transport, b"x" * len(READ_BUFFER))
    assert len(scene.read_limiter) == 1
    scene.hours.pass_by(PERIOD_S)
    assert scene.transport.reading


def test_client_that_sends_little_is_not_throttled(scene: OneStream) -> None:
    scene.open()
    for _ in range(CLIENT_BUDGET_BYTES // (len(READ_BUFFER) + 256)):
        deliver(scene.transport, b"x" * len(READ_BUFFER))
    assert scene.transport.reading


def test_end_of_the_client_ends_the_stream(scene: OneStream) -> None:
    protocol = scene.transport.get_protocol()
    assert isinstance(protocol, asyncio.BufferedProtocol)
    assert protocol.eof_received() is None, "a transport closes itself then"


# The end of the connection


def test_lost_stream_leaves_the_hub_and_keeps_no_transport(scene: OneStream) -> None:
    scene.open()
    scene.lose()
    assert (len(scene.hub), scene.lost, scene.closed) == (0, [scene.stream], [])
    assert (scene.stream.descriptor, scene.stream.peer) == (None, "gone")
    scene.stream.received(b"late")
    scene.stream.close(CloseReason.STOPPING)
    assert scene.closed == []


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_stream_that_the_kernel_ends_because_its_client_is_dead_counts_as_idle(scene: OneStream, number: int) -> None:
    scene.open()
    scene.lose(OSError(number, "dead"))
    assert scene.closed == [(CloseReason.IDLE, {})]
    assert scene.stream.close_code == 4009


def test_stream_that_its_client_resets_is_not_idle(scene: OneStream) -> None:
    scene.open()
    scene.lose(ConnectionResetError(errno.ECONNRESET, "reset"))
    assert scene.closed == []


def test_closing_stream_with_a_dead_client_is_reported_once(scene: OneStream) -> None:
    scene.open()
    scene.stream.close(CloseReason.STOPPING)
    scene.lose(TimeoutError(errno.ETIMEDOUT, "dead"))
    assert [reason for reason, _ in scene.closed] == [CloseReason.STOPPING]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel has no TCP_USER_TIMEOUT")
def test_kernel_gets_the_idle_timeout(tcp_socket: socket.socket) -> None:
    OneStream(line=tcp_socket)
    assert tcp_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == IDLE_TIMEOUT_S * 1000
