"""Tests what a connection writes in each state. The test fills, drains and ends the connection's transport."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from websockets.frames import Frame, Opcode

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import PING, close_frame, pong_frame, text_frame
from bridge.server.access.read_limiter import (
    CLIENT_BUDGET_BYTES,
    FRAME_COST_BYTES,
    PERIOD_S,
    READ_BUFFER,
    THROTTLED_READ_BYTES,
    TOTAL_BUDGET_BYTES,
    ReadLimiter,
)
from bridge.server.connection.client_connection import ClientConnection, Clock, ConnectionContext
from bridge.server.listeners.sockets import SEND_BUFFER_BYTES
from bridge.server.websocket.connection import MAX_PONGS_DUE, WebSocketConnection
from tests.support.fakes import FakeTransport, Hours, Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UPDATE = text_frame(b"update")
HALF_A_TEXT = Frame(Opcode.TEXT, b"x" * 100).serialize(mask=True)[:50]


class OneClient(Scene):
    """A hub with one client, whose connection uses a transport that the test controls."""

    def __init__(
        self,
        *,
        peername: tuple[str, int] = ("127.0.0.1", 54321),
        encrypted: bool = False,
        line: socket.socket | None = None,
    ) -> None:
        super().__init__()
        self.clock = Clock(1000.0)
        self.hours = Hours()
        self.read_limiter = ReadLimiter(self.hours.time, self.hours.call_at, lambda _: None)
        self.transport = FakeTransport(self.turns.call_soon, peername=peername, encrypted=encrypted, sock=line)
        self.closed: list[tuple[CloseReason, dict[str, object]]] = []
        self.lost: list[ClientConnection] = []
        self.connection = WebSocketConnection(
            self.transport,
            "127.0.0.1",
            ConnectionContext(
                self.hub,
                self.clock,
                self.read_limiter,
                lambda: 0,
                120.0,
                lambda _, reason, details: self.closed.append((reason, details)),
                self.lost.append,
            ),
        )
        self.hub.join(self.connection)

    @property
    def written(self) -> bytes:
        return b"".join(self.transport.written)

    def says(self, opcode: Opcode, payload: bytes = b"", *, mask: bool = True) -> None:
        """Sends a frame as the client."""
        self.receives(Frame(opcode, payload).serialize(mask=mask))

    def receives(self, data: bytes) -> None:
        """Delivers bytes to the connection, as the event loop does."""
        for at in range(0, len(data), len(READ_BUFFER)):
            piece = data[at : at + len(READ_BUFFER)]
            buffer = self.connection.get_buffer(-1)
            buffer[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))

    def congest(self) -> None:
        self.transport.full = True
        assert self.connection.send(UPDATE) == -1
        self.transport.written.clear()


@pytest.fixture
def scene() -> OneClient:
    return OneClient()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The connection's socket and the client's socket."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


# Sending


def test_connection_takes_over_its_transport(scene: OneClient) -> None:
    assert scene.transport.get_protocol() is scene.connection


def test_send_returns_the_bytes_written(scene: OneClient) -> None:
    assert scene.connection.send(UPDATE) == len(UPDATE)
    assert scene.transport.written == [UPDATE]


def test_send_returns_minus_one_if_not_all_of_it_fits(scene: OneClient) -> None:
    scene.transport.full = True
    assert scene.connection.send(UPDATE) == -1
    assert scene.transport.written == [UPDATE]
    assert scene.connection.congested


def test_send_returns_minus_one_behind_enqueued_data(scene: OneClient) -> None:
    scene.congest()
    assert scene.connection.send(UPDATE) == -1
    assert scene.transport.written == [UPDATE]


def test_send_returns_zero_after_closing(scene: OneClient) -> None:
    scene.connection.close(CloseReason.STOPPING)
    scene.transport.written.clear()
    assert scene.connection.send(UPDATE) == 0
    assert scene.transport.written == []


def test_send_returns_zero_when_the_transport_fails(scene: OneClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.transport, "write", lambda _: scene.transport.abort())
    assert scene.connection.send(UPDATE) == 0


def test_send_returns_zero_when_the_connection_is_lost(scene: OneClient) -> None:
    scene.connection.connection_lost(None)
    assert scene.connection.send(UPDATE) == 0
    assert scene.transport.written == []


def test_connection_has_the_descriptor_of_its_socket(ends: tuple[socket.socket, socket.socket]) -> None:
    connection = OneClient(line=ends[0]).connection
    assert connection.descriptor == ends[0].fileno() >= 0


def test_encrypted_connection_has_no_descriptor_past_its_transport() -> None:
    assert OneClient(encrypted=True).connection.descriptor is None


def test_published_updates_go_past_the_transport(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    scene = OneClient(line=near)
    scene.publish(b"update")
    assert far.recv(1000) == UPDATE
    assert scene.transport.written == []


def test_published_updates_of_an_encrypted_connection_are_written_by_its_transport(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    scene = OneClient(line=near, encrypted=True)
    scene.publish(b"update")
    assert scene.transport.written == [UPDATE]
    with pytest.raises(BlockingIOError):
        far.recv(1000)


def test_published_updates_that_the_socket_does_not_take_reach_the_transport(scene: OneClient) -> None:
    scene.publish(b"update")
    assert scene.transport.written == [UPDATE]


@pytest.mark.parametrize("what", ["ping", "pong"])
def test_nothing_goes_past_a_transport_that_a_ping_or_pong_has_filled(
    ends: tuple[socket.socket, socket.socket], what: str
) -> None:
    near, far = ends
    scene = OneClient(line=near)
    scene.transport.full = True
    if what == "ping":
        scene.connection.ping()
    else:
        scene.says(Opcode.PING)
    assert scene.hub.lagging == 1
    scene.publish(b"update")
    with pytest.raises(BlockingIOError):
        far.recv(1000)
    scene.transport.drain()
    scene.turns.turn()
    assert far.recv(1000) == UPDATE
    assert scene.hub.lagging == 0


@pytest.mark.parametrize("end", ["own close", "close of the client", "loss"])
def test_nothing_goes_past_the_transport_after_the_end(ends: tuple[socket.socket, socket.socket], end: str) -> None:
    near, far = ends
    scene = OneClient(line=near)
    match end:
        case "own close":
            scene.connection.close(CloseReason.IDLE)
        case "close of the client":
            scene.says(Opcode.CLOSE)
        case _:
            scene.connection.connection_lost(None)
    scene.publish(b"late")
    scene.turns.settle()
    with pytest.raises(BlockingIOError):
        far.recv(1000)


@pytest.mark.parametrize("encrypted", [False, True])
def test_congested_connection_catches_up_when_its_transport_drains(*, encrypted: bool) -> None:
    scene = OneClient(encrypted=encrypted)
    scene.transport.full = True
    for payload in (b"1", b"2", b"3"):
        scene.publish(payload)
        scene.turns.settle()
    assert scene.written == text_frame(b"1")
    assert scene.hub.lagging == 1
    scene.transport.drain()
    scene.turns.turn()
    assert not scene.connection.congested
    scene.turns.settle()
    assert scene.written == b"".join(map(text_frame, [b"1", b"2", b"3"]))
    assert scene.hub.lagging == 0


def within_a_frame(ends: tuple[socket.socket, socket.socket]) -> tuple[OneClient, bytes]:
    """Returns a scene in which the client has not read a large update yet, and the frame of this update."""
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    scene = OneClient(line=ends[0])
    scene.transport.full = True
    payload = b"x" * 100_000
    scene.publish(payload)
    assert scene.connection.offset > 0
    assert scene.connection.congested
    return scene, text_frame(payload)


def finish(scene: OneClient, far: socket.socket) -> bytes:
    """Reads all data that the connection sends to the client, and returns this data."""
    read = bytearray()
    written = 0
    while True:
        with suppress(BlockingIOError):
            while data := far.recv(2**20):
                read += data
        read += b"".join(scene.transport.written[written:])
        written = len(scene.transport.written)
        if not scene.connection.congested:
            return bytes(read)
        scene.transport.drain(full=False)
        scene.turns.settle()


@pytest.mark.parametrize("what", ["ping", "pong"])
def test_control_frame_waits_for_the_end_of_a_frame_that_is_sent_in_parts(
    ends: tuple[socket.socket, socket.socket], what: str
) -> None:
    scene, frame = within_a_frame(ends)
    if what == "ping":
        scene.connection.ping()
    else:
        scene.says(Opcode.PING, b"old")
        scene.says(Opcode.PING, b"new")
    assert finish(scene, ends[1]) == frame + (PING if what == "ping" else pong_frame(b"new"))


@pytest.mark.parametrize("how", ["own", "client", "violation", "own, then client"])
def test_close_frame_waits_for_the_end_of_a_frame_that_is_sent_in_parts(
    ends: tuple[socket.socket, socket.socket], how: str
) -> None:
    scene, frame = within_a_frame(ends)
    ended: list[str] = []
    if how.startswith("own"):
        scene.connection.close(CloseReason.IDLE)
        close = close_frame(4009, CloseReason.IDLE.phrase)
    if how.endswith("client"):
        scene.says(Opcode.CLOSE, b"\x03\xe8")
        close, ended = (close if how.startswith("own") else close_frame(1000)), ["close"]
    if how == "violation":
        scene.receives(Frame(Opcode.TEXT, b"").serialize(mask=False))
        close, ended = close_frame(1002, CloseReason.PROTOCOL_ERROR.phrase), ["eof"]
    scene.connection.ping()
    scene.says(Opcode.PING)
    assert scene.transport.ended == []
    assert finish(scene, ends[1]) == frame + close
    assert scene.transport.ended == ended


def test_connection_in_the_middle_of_a_frame_that_the_log_has_dropped_is_reset(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    scene, _ = within_a_frame(ends)
    written = len(scene.transport.written)
    scene.publish(b"y" * 2**20)
    assert [reason for reason, _ in scene.closed] == [CloseReason.TOO_SLOW]
    assert scene.transport.ended == ["abort"]
    assert struct.unpack("ii", ends[0].getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)) == (1, 0)
    assert len(scene.transport.written) == written, "a close frame would become a part of the update"


@pytest.mark.parametrize("how", ["drained", "dropped"])
def test_connection_that_is_lost_in_the_middle_of_a_frame_is_sent_nothing_more(
    ends: tuple[socket.socket, socket.socket], how: str
) -> None:
    scene, _ = within_a_frame(ends)
    scene.connection.close(CloseReason.IDLE)
    scene.connection.connection_lost(None)
    written = len(scene.transport.written)
    if how == "drained":
        scene.connection.resume_writing()
    else:
        scene.publish(b"y" * 2**20)
    scene.turns.settle()
    scene.connection.frame_ended()
    scene.connection.reset()
    assert len(scene.transport.written) == written
    assert scene.transport.ended == []


# Pings


def test_ping_of_a_client_is_answered_with_its_payload(scene: OneClient) -> None:
    scene.says(Opcode.PING, b"hello")
    assert scene.transport.written == [pong_frame(b"hello")]


def test_each_ping_is_answered_while_the_transport_takes_it(scene: OneClient) -> None:
    for payload in (b"1", b"2"):
        scene.says(Opcode.PING, payload)
    assert scene.transport.written == [pong_frame(b"1"), pong_frame(b"2")]


def test_only_the_newest_ping_of_a_congested_client_is_answered_once_it_drains(scene: OneClient) -> None:
    scene.congest()
    for payload in (b"1", b"2", b"3"):
        scene.says(Opcode.PING, payload)
    assert scene.transport.written == []
    scene.transport.drain()
    scene.turns.turn()
    assert scene.transport.written == [pong_frame(b"3")]
    scene.says(Opcode.PING, b"4")
    scene.congest()
    scene.transport.drain()
    scene.turns.turn()
    assert scene.transport.written == []


def test_pong_that_fills_the_transport_again_goes_before_the_updates(scene: OneClient) -> None:
    scene.transport.full = True
    scene.publish(b"1")
    scene.publish(b"2")
    scene.says(Opcode.PING, b"ping")
    scene.transport.written.clear()
    scene.transport.drain(full=True)
    scene.turns.turn()
    assert scene.transport.written == [pong_frame(b"ping")]
    scene.transport.drain()
    scene.turns.turn()
    assert scene.transport.written == [pong_frame(b"ping"), text_frame(b"2")]


def test_own_ping_is_written_and_noted(scene: OneClient) -> None:
    scene.clock.now_s = 1030.0
    scene.connection.ping()
    assert scene.transport.written == [PING]
    assert scene.connection.pinged_at == 1030.0


def test_congested_client_is_pinged_too(scene: OneClient) -> None:
    scene.congest()
    scene.connection.ping()
    assert scene.transport.written == [PING]


# Data from the client


@pytest.mark.parametrize("size", [0, 1, 125, 126, 60_000])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY, Opcode.PONG])
def test_message_of_a_client_is_ignored(scene: OneClient, opcode: Opcode, size: int) -> None:
    scene.says(opcode, b"x" * (min(size, 125) if opcode is Opcode.PONG else size))
    assert scene.transport.written == []
    assert scene.transport.ended == []
    assert scene.closed == []
    assert scene.connection._frame_reader is None


def test_message_larger_than_the_buffer_is_ignored_piece_by_piece(scene: OneClient) -> None:
    message = Frame(Opcode.BINARY, b"x" * (3 * len(READ_BUFFER))).serialize(mask=True)
    scene.receives(message)
    assert scene.connection._frame_reader is None
    scene.says(Opcode.PING, b"after")
    assert scene.transport.written == [pong_frame(b"after")]


# Tests of how the read limiter charges pongs and close frames


def spent(scene: OneClient) -> int:
    """Returns the number of bytes that the limiter has charged to the client."""
    assert scene.read_limiter._total_used_bytes == sum(scene.read_limiter._used_bytes.values())
    return scene.read_limiter._used_bytes.get(scene.connection, 0)


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 125])
def test_pong_that_answers_a_ping_is_not_charged_and_the_next_one_is(scene: OneClient, payload: bytes) -> None:
    pong = Frame(Opcode.PONG, payload).serialize(mask=True)
    cost = len(pong) + 2 * FRAME_COST_BYTES
    for asked in range(1, 4):
        scene.connection.ping()
        scene.receives(pong)
        assert spent(scene) == (asked - 1) * cost
        scene.receives(pong)
        assert spent(scene) == asked * cost


def test_pong_of_a_client_that_was_not_pinged_counts(scene: OneClient) -> None:
    scene.says(Opcode.PONG)
    assert spent(scene) == 6 + 2 * FRAME_COST_BYTES


def test_each_of_several_pings_may_be_answered_late(scene: OneClient) -> None:
    pong = Frame(Opcode.PONG, b"").serialize(mask=True)
    for _ in range(3):
        scene.connection.ping()
    scene.receives(pong * 3)
    assert spent(scene) == 0
    scene.receives(pong)
    assert spent(scene) == len(pong) + 2 * FRAME_COST_BYTES


def test_unanswered_pings_allow_only_a_few_pongs_without_a_charge(scene: OneClient) -> None:
    for _ in range(10 * MAX_PONGS_DUE):
        scene.connection.ping()
    pong = Frame(Opcode.PONG, b"").serialize(mask=True)
    scene.receives(pong * (MAX_PONGS_DUE + 3))
    assert spent(scene) == 3 * len(pong) + 4 * FRAME_COST_BYTES


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.TEXT])
def test_data_that_arrives_with_the_pong_is_charged(scene: OneClient, opcode: Opcode) -> None:
    other = Frame(opcode, b"hello").serialize(mask=True)
    scene.connection.ping()
    scene.receives(other + Frame(Opcode.PONG, b"x" * 40).serialize(mask=True))
    assert spent(scene) == len(other) + 2 * FRAME_COST_BYTES


def test_frame_that_is_not_a_pong_is_charged_after_a_ping(scene: OneClient) -> None:
    scene.connection.ping()
    scene.says(Opcode.TEXT, b"hello")
    assert spent(scene) == 11 + 2 * FRAME_COST_BYTES
    # The client has not sent its pong yet, so its next pong costs nothing.
    scene.says(Opcode.PONG)
    assert spent(scene) == 11 + 2 * FRAME_COST_BYTES


def test_all_reads_of_a_pong_but_the_last_are_charged(scene: OneClient) -> None:
    pong = Frame(Opcode.PONG, b"x" * 20).serialize(mask=True)
    scene.connection.ping()
    scene.receives(pong[:10])
    assert spent(scene) == 10 + 2 * FRAME_COST_BYTES
    scene.receives(pong[10:])
    assert spent(scene) == 10 + 2 * FRAME_COST_BYTES


def test_clients_that_answer_the_pings_of_the_bridge_are_not_throttled(scene: OneClient) -> None:
    # If pongs were charged, the 1,013th pong would exceed the limit that all clients share in a period.
    others = [OneClient() for _ in range(1100)]
    for each in others:
        each.connection._context = replace(each.connection._context, read_limiter=scene.read_limiter)
        each.connection.ping()
        each.says(Opcode.PONG)
        assert each.transport.reading
    scene.connection.ping()
    scene.read_limiter.consume(others[0].connection, TOTAL_BUDGET_BYTES + 1, 0)
    # Even while other clients flood the bridge, a client is not throttled for its pong.
    scene.says(Opcode.PONG)
    assert scene.transport.reading
    assert len(scene.read_limiter) == 1


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe8" + b"x" * 123])
@pytest.mark.parametrize("own", [False, True])
def test_close_frame_is_not_charged(scene: OneClient, payload: bytes, *, own: bool) -> None:
    if own:
        scene.connection.close(CloseReason.STOPPING)
    scene.says(Opcode.CLOSE, payload)
    assert spent(scene) == 0
    assert scene.transport.ended == ["close"]


def test_pong_and_close_frame_in_one_read_are_not_charged(scene: OneClient) -> None:
    scene.connection.ping()
    scene.receives(Frame(Opcode.PONG, b"").serialize(mask=True) + Frame(Opcode.CLOSE, b"").serialize(mask=True))
    assert spent(scene) == 0


def test_data_that_arrives_with_a_close_frame_is_charged(scene: OneClient) -> None:
    other = Frame(Opcode.TEXT, b"hello").serialize(mask=True)
    close = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
    scene.receives(other + close + b"after")
    assert spent(scene) == len(other) + len(b"after") + 2 * FRAME_COST_BYTES


def test_data_after_a_close_frame_is_charged(ends: tuple[socket.socket, socket.socket]) -> None:
    scene, _ = within_a_frame(ends)
    close = Frame(Opcode.CLOSE, b"").serialize(mask=True)
    # The transport stays open, because the bridge has not sent the rest of a frame.
    scene.receives(close)
    assert spent(scene) == 0
    scene.receives(close)
    assert spent(scene) == len(close) + FRAME_COST_BYTES


def test_all_reads_of_a_close_frame_but_the_last_are_charged(scene: OneClient) -> None:
    close = Frame(Opcode.CLOSE, b"\x03\xe8going away").serialize(mask=True)
    scene.receives(close[:10])
    scene.receives(close[10:])
    assert spent(scene) == 10 + 2 * FRAME_COST_BYTES


def test_clients_that_leave_at_once_are_not_throttled(scene: OneClient) -> None:
    # If close frames were charged, the 1,009th close frame would exceed the limit that all clients share in a period.
    for _ in range(1100):
        each = OneClient()
        each.connection._context = replace(each.connection._context, read_limiter=scene.read_limiter)
        each.connection.close(CloseReason.STOPPING)
        each.says(Opcode.CLOSE, b"\x03\xe9")
        assert each.transport.reading
    assert len(scene.read_limiter) == 0


def test_throttled_client_is_not_read_until_it_may_send_more(scene: OneClient) -> None:
    ping = Frame(Opcode.PING, b"").serialize(mask=True)
    most = (CLIENT_BUDGET_BYTES - FRAME_COST_BYTES) // (len(ping) + FRAME_COST_BYTES)
    scene.receives(ping * most)
    assert scene.transport.reading
    scene.receives(ping)
    assert not scene.transport.reading
    # The throttled connection answers all pings that it has already read.
    assert b"".join(scene.transport.written) == pong_frame(b"") * (most + 1)
    scene.hours.pass_by(PERIOD_S)
    assert scene.transport.reading


def test_throttled_client_that_fills_the_buffer_is_read_again_once_its_debt_is_paid(scene: OneClient) -> None:
    scene.receives(Frame(Opcode.TEXT, b"").serialize(mask=True) * (len(READ_BUFFER) // 6 + 1))
    assert not scene.transport.reading
    scene.turns.settle()
    assert not scene.transport.reading
    passed = 0
    while not scene.transport.reading:
        scene.hours.pass_by(PERIOD_S)
        passed += 1
    # In each period, the client pays off a part of its debt.
    assert passed == (len(READ_BUFFER) * (6 + FRAME_COST_BYTES) // 6 + FRAME_COST_BYTES) // CLIENT_BUDGET_BYTES


def test_read_is_small_while_all_clients_together_exceed_the_limit(scene: OneClient) -> None:
    assert scene.connection.get_buffer(-1) is READ_BUFFER
    others = OneClient()
    scene.read_limiter.consume(others.connection, TOTAL_BUDGET_BYTES + 1, 0)
    assert len(scene.connection.get_buffer(-1)) == THROTTLED_READ_BYTES
    pong = Frame(Opcode.PONG, b"").serialize(mask=True)
    scene.connection.get_buffer(-1)[: len(pong)] = pong
    scene.clock.now_s = 1042.0
    scene.connection.buffer_updated(len(pong))
    assert scene.connection.last_received_at == 1042.0
    assert not scene.transport.reading


@pytest.mark.parametrize("lost", [False, True])
def test_throttled_client_that_is_gone_is_not_read_again(scene: OneClient, *, lost: bool) -> None:
    scene.connection.received(Frame(Opcode.BINARY, b"x" * CLIENT_BUDGET_BYTES).serialize(mask=True))
    assert not scene.transport.reading
    if lost:
        scene.connection.connection_lost(None)
        assert len(scene.read_limiter) == 0
    else:
        scene.connection.abort()
    scene.hours.pass_by(10 * PERIOD_S)
    assert not scene.transport.reading


def test_connection_whose_tls_is_over_has_no_socket_and_needs_none() -> None:
    scene = OneClient(encrypted=True)
    scene.congest()
    scene.transport._extra["socket"] = None  # type: ignore[attr-defined]  # the result of get_extra_info after the end
    scene.connection.close_if_eof()
    scene.connection.close(CloseReason.TOO_SLOW)
    assert [reason for reason, _ in scene.closed] == [CloseReason.TOO_SLOW]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux reports the state of a connection")
@pytest.mark.parametrize("how", ["stays", "ends", "resets"])
def test_throttled_client_is_polled(how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as far:
        near, _ = listener.accept()
        with near:
            scene = OneClient(line=near)
            if how == "ends":
                far.shutdown(socket.SHUT_WR)
            elif how == "resets":
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                far.close()
            scene.connection.close_if_eof()
            assert scene.transport.ended == ([] if how == "stays" else ["abort"])


def test_pings_in_one_read_are_answered_in_one_write(scene: OneClient) -> None:
    scene.receives(b"".join(Frame(Opcode.PING, payload).serialize(mask=True) for payload in (b"a", b"b", b"c")))
    assert scene.transport.written == [pong_frame(b"a") + pong_frame(b"b") + pong_frame(b"c")]


def test_bytes_that_arrived_with_the_handshake_are_handled(scene: OneClient) -> None:
    scene.connection.received(Frame(Opcode.PING, b"early").serialize(mask=True))
    assert scene.transport.written == [pong_frame(b"early")]


def test_parser_is_kept_only_while_a_frame_is_incomplete(scene: OneClient) -> None:
    message = Frame(Opcode.PING, b"hello").serialize(mask=True)
    scene.receives(message[:3])
    assert scene.connection._frame_reader is not None
    scene.receives(message[3:])
    assert scene.connection._frame_reader is None
    assert scene.transport.written == [pong_frame(b"hello")]


def test_any_bytes_are_a_sign_of_life(scene: OneClient) -> None:
    assert scene.connection.last_received_at == 1000.0
    scene.clock.now_s = 1042.0
    scene.receives(HALF_A_TEXT)
    assert scene.connection.last_received_at == 1042.0


def test_sent_data_is_not_a_sign_of_life(scene: OneClient) -> None:
    scene.clock.now_s = 1042.0
    scene.connection.send(UPDATE)
    scene.connection.ping()
    assert scene.connection.last_received_at == 1000.0


# Ends


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"", b"\x88\x00"),
        (b"\x03\xe8", b"\x88\x02\x03\xe8"),
        (b"\x03\xe9going away", b"\x88\x02\x03\xe9"),
        (b"\x0f\xa0", b"\x88\x02\x0f\xa0"),
    ],
)
def test_close_of_a_client_is_answered_with_its_code_and_the_transport_closed(
    scene: OneClient, payload: bytes, answer: bytes
) -> None:
    scene.says(Opcode.CLOSE, payload)
    assert scene.transport.written == [answer]
    assert scene.transport.ended == ["close"]
    assert scene.closed == [], "a client that leaves is not evicted"
    assert len(scene.hub) == 0


def test_own_close_is_written_reported_and_left_open_for_the_answer(scene: OneClient) -> None:
    scene.clock.now_s = 1001.0
    scene.connection.close(CloseReason.TOO_SLOW, updates_behind=7)
    assert scene.transport.written == [close_frame(4008, CloseReason.TOO_SLOW.phrase)]
    assert scene.closed == [(CloseReason.TOO_SLOW, {"updates_behind": 7})]
    assert scene.transport.ended == []
    assert scene.connection.closed_at == 1001.0
    assert len(scene.hub) == 0


@pytest.mark.parametrize("full", [True, False])
def test_send_buffer_grows_for_the_close_frame_of_a_client_that_does_not_read(
    ends: tuple[socket.socket, socket.socket], full: bool
) -> None:
    near, _ = ends
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    room = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    scene = OneClient(line=near)
    if full:
        scene.congest()
    scene.connection.close(CloseReason.TOO_SLOW)
    assert scene.transport.written == [close_frame(4008, CloseReason.TOO_SLOW.phrase)]
    assert (near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > room) is full


def test_close_frame_that_fills_the_transport_makes_room_for_itself(ends: tuple[socket.socket, socket.socket]) -> None:
    near, _ = ends
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    room = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    scene = OneClient(line=near)
    scene.transport.full = True
    scene.connection.close(CloseReason.IDLE)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > room


def test_connection_whose_socket_is_gone_is_closed_all_the_same(scene: OneClient) -> None:
    scene.congest()
    scene.connection.close(CloseReason.TOO_SLOW)
    assert [reason for reason, _ in scene.closed] == [CloseReason.TOO_SLOW]


def test_answer_to_the_own_close_closes_the_transport_and_is_not_answered(scene: OneClient) -> None:
    scene.connection.close(CloseReason.STOPPING)
    scene.transport.written.clear()
    scene.says(Opcode.CLOSE, b"\x03\xe9")
    assert scene.transport.written == []
    assert scene.transport.ended == ["close"]


def test_connection_is_closed_once(scene: OneClient) -> None:
    scene.connection.close(CloseReason.STOPPING)
    scene.connection.close(CloseReason.IDLE)
    assert scene.closed == [(CloseReason.STOPPING, {})]
    assert len(scene.transport.written) == 1


@pytest.mark.parametrize(
    ("violation", "reason"),
    [
        (Frame(Opcode.TEXT, b"not masked").serialize(mask=False), CloseReason.PROTOCOL_ERROR),
        (b"\xc1\x80\x00\x00\x00\x00", CloseReason.PROTOCOL_ERROR),
        (Frame(Opcode.CLOSE, b"\x03").serialize(mask=True), CloseReason.PROTOCOL_ERROR),
        (Frame(Opcode.TEXT, b"\xff").serialize(mask=True), CloseReason.INVALID_UTF8),
    ],
    ids=["not masked", "reserved bit", "one byte of a code", "not UTF-8"],
)
def test_violation_is_answered_with_a_close_and_the_end_of_our_side(
    scene: OneClient, violation: bytes, reason: CloseReason
) -> None:
    scene.receives(violation)
    assert scene.transport.written == [close_frame(reason.code, reason.phrase)]
    assert scene.transport.ended == ["eof"]
    assert [reason_ for reason_, _ in scene.closed] == [reason]
    assert scene.closed[0][1]["violation"]
    assert len(scene.hub) == 0


def test_data_after_a_violation_is_not_read(scene: OneClient) -> None:
    scene.receives(Frame(Opcode.TEXT, b"").serialize(mask=False))
    scene.transport.written.clear()
    scene.says(Opcode.PING)
    scene.says(Opcode.CLOSE)
    assert scene.transport.written == []


def test_violation_after_the_own_close_changes_nothing(scene: OneClient) -> None:
    scene.connection.close(CloseReason.IDLE)
    scene.transport.written.clear()
    scene.receives(Frame(Opcode.TEXT, b"").serialize(mask=False))
    assert scene.transport.written == []
    assert scene.transport.ended == []
    assert [reason for reason, _ in scene.closed] == [CloseReason.IDLE]


def test_nothing_is_written_after_the_own_close(scene: OneClient) -> None:
    scene.connection.close(CloseReason.STOPPING)
    scene.transport.written.clear()
    scene.says(Opcode.PING, b"late")
    scene.connection.ping()
    scene.publish(b"late")
    scene.turns.settle()
    assert scene.transport.written == []


def test_ping_that_waited_is_not_answered_after_the_own_close(scene: OneClient) -> None:
    scene.congest()
    scene.says(Opcode.PING, b"waits")
    scene.connection.close(CloseReason.STOPPING)
    scene.transport.written.clear()
    scene.transport.drain()
    scene.turns.turn()
    assert scene.transport.written == []


def test_abort_ends_the_transport_at_once(scene: OneClient) -> None:
    scene.congest()
    scene.connection.abort()
    assert scene.transport.ended == ["abort"]
    scene.turns.settle()
    assert scene.lost == [scene.connection]


def test_end_of_a_client_leaves_the_end_to_the_transport(scene: OneClient) -> None:
    eof_received: Callable[[], object] = scene.connection.eof_received
    # A transport stays open if `eof_received` returns a true value.
    assert not eof_received()
    assert scene.transport.written == []


def test_lost_connection_is_reported_and_forgets_its_transport(scene: OneClient) -> None:
    scene.receives(HALF_A_TEXT)
    scene.transport.abort()
    scene.turns.settle()
    assert scene.lost == [scene.connection]
    assert len(scene.hub) == 0
    assert scene.connection._transport is None
    assert scene.connection._frame_reader is None
    assert scene.connection.peer == "gone"


@pytest.mark.parametrize(
    "late",
    [
        Frame(Opcode.PING, b"late").serialize(mask=True),
        Frame(Opcode.CLOSE, b"").serialize(mask=True),
        Frame(Opcode.TEXT, b"").serialize(mask=False),
    ],
    ids=["ping", "close", "violation"],
)
def test_lost_connection_ignores_all_calls(scene: OneClient, late: bytes) -> None:
    scene.connection.connection_lost(ConnectionResetError())
    scene.connection.ping()
    scene.connection.close(CloseReason.STOPPING)
    scene.connection.abort()
    scene.receives(late)
    assert scene.transport.written == []
    assert scene.transport.ended == []
    assert scene.closed == []


@pytest.mark.parametrize(
    ("peername", "peer"),
    [
        (("127.0.0.1", 54321), "127.0.0.1 port 54321"),
        (("::1", 54321), "::1 port 54321"),
    ],
)
def test_peer_is_the_address_and_port_of_the_client(peername: tuple[str, int], peer: str) -> None:
    assert OneClient(peername=peername).connection.peer == peer


def test_peer_of_a_connection_that_has_ended_is_gone(scene: OneClient) -> None:
    scene.connection.connection_lost(None)
    assert scene.connection.peer == "gone"


def test_idle_connection_has_no_dict() -> None:
    assert not hasattr(OneClient().connection, "__dict__")
