"""Tests of the bytes of a response to a poll. The test fills, drains and ends the transport of the connection."""

from __future__ import annotations

import socket
from typing import Any

import orjson
import pytest

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.polls import PIECE_BYTES, Polls
from bridge.contract.filters import FROM_NOW_ON, After, SubscribeRequest
from bridge.server.access.read_limiter import ReadLimiter
from bridge.server.connection.client_connection import ClientConnection, Clock, ConnectionContext
from bridge.server.http.polling import PollConnection
from tests.support.fakes import NOW_MS, FakeTransport, Hours, Scene

VARY = (("Vary", "Accept, Origin"),)
ALL = SubscribeRequest(None, After.parse("0-0000abcd"))
ID_AHEAD = SubscribeRequest(None, After.parse("9-00000009"))


class OnePoll(Scene):
    """A hub with one poll, which uses a transport that the test controls. The poll has not started."""

    def __init__(
        self,
        request: SubscribeRequest = ALL,
        *,
        log_bytes: int = 2**20,
        is_head: bool = False,
        wait_s: int = 0,
        encrypted: bool = False,
        replaying: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__(log_bytes, replaying=replaying, shared=shared)
        self.clock = Clock(1000.0)
        self.hours = Hours()
        self.read_limiter = ReadLimiter(self.hours.time, self.hours.call_at, lambda _: None)
        self.transport = FakeTransport(self.turns.call_soon, encrypted=encrypted)
        self.closed: list[tuple[CloseReason, dict[str, object]]] = []
        self.lost: list[ClientConnection] = []
        self.context = ConnectionContext(
            self.hub,
            self.clock,
            self.read_limiter,
            lambda: NOW_MS,
            120.0,
            lambda _, reason, details: self.closed.append((reason, details)),
            self.lost.append,
        )
        self.polls = Polls(
            self.index,
            self.metrics,
            self.turn,
            self.turns.call_later,
            lambda: self.now_s,
            lambda: self.source.is_consuming,
            lambda: self.hub.replaying,
        )
        self.request = request
        self.poll = self.connect(self.transport, wait_s=wait_s, is_head=is_head)

    def connect(self, transport: FakeTransport, *, wait_s: int = 0, is_head: bool = False) -> PollConnection:
        return PollConnection(
            transport, "127.0.0.1", self.context, self.polls, limit=1000, wait_s=wait_s, headers=VARY, is_head=is_head
        )

    def start(self) -> None:
        self.poll.join(self.request)

    @property
    def written(self) -> bytes:
        return b"".join(self.transport.written)

    @property
    def head(self) -> list[str]:
        return self.written.partition(b"\r\n\r\n")[0].decode().split("\r\n")

    @property
    def status(self) -> int:
        return int(self.head[0].split()[1])

    @property
    def body(self) -> dict[str, Any]:
        body = self.written.partition(b"\r\n\r\n")[2]
        assert f"Content-Length: {len(body)}" in self.head
        parsed: dict[str, Any] = orjson.loads(body)
        return parsed


def test_response_has_its_headers_and_ends_the_side_of_the_bridge() -> None:
    scene = OnePoll()
    scene.publish("a")
    scene.start()
    assert [line for line in scene.head if not line.startswith(("Date: ", "Content-Length: "))] == [
        "HTTP/1.1 200 OK",
        "Content-Type: application/json",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Cross-Origin-Resource-Policy: same-origin",
        "Content-Security-Policy: frame-ancestors 'none'",
        "Connection: close",
        "Vary: Accept, Origin",
    ]
    assert len(scene.body["updates"]) == 1
    assert len(scene.transport.written) == 1
    assert scene.transport.ended == ["eof"]
    assert scene.poll.closed_at == scene.clock.now_s


@pytest.mark.parametrize("encrypted", [False, True])
def test_large_response_is_written_in_pieces_while_the_client_reads(*, encrypted: bool) -> None:
    scene = OnePoll(encrypted=encrypted)
    scene.publish(*"a" * 100, size=1000)
    scene.transport.full = True
    scene.start()
    assert PIECE_BYTES < len(scene.written) < PIECE_BYTES + 1024
    for _ in range(3):
        before = len(scene.written)
        scene.transport.drain(full=True)
        assert PIECE_BYTES <= len(scene.written) - before < PIECE_BYTES + 256
        assert scene.transport.ended == []
    scene.transport.drain()
    assert len(scene.body["updates"]) == 100
    assert scene.transport.ended == ["eof"]


def test_small_response_to_a_full_socket_ends_after_the_client_has_read_it() -> None:
    scene = OnePoll()
    scene.transport.full = True
    scene.start()
    assert scene.body["updates"] == []
    scene.transport.drain()
    assert scene.transport.ended == ["eof"]


def test_socket_that_was_full_before_the_response_does_not_end_the_wait() -> None:
    scene = OnePoll(SubscribeRequest(None, FROM_NOW_ON), wait_s=30)
    scene.start()
    scene.poll.pause_writing()
    scene.poll.resume_writing()
    assert (scene.transport.ended, scene.written, len(scene.polls)) == ([], b"", 1)


def test_client_that_reads_too_slowly_is_reset_once_the_log_has_dropped_an_update() -> None:
    scene = OnePoll(log_bytes=2**17)
    scene.publish(*"a" * 4, size=PIECE_BYTES)
    scene.transport.full = True
    scene.start()
    scene.publish(*"a" * 8, size=PIECE_BYTES)
    scene.transport.drain()
    assert scene.transport.ended == ["abort"]
    scene.turns.settle()
    assert scene.lost == [scene.poll]


def test_client_that_leaves_before_it_has_read_everything_gets_nothing_more() -> None:
    scene = OnePoll()
    scene.publish(*"a" * 4, size=PIECE_BYTES)
    scene.transport.full = True
    scene.start()
    before = scene.written
    scene.poll.connection_lost(None)
    scene.poll.resume_writing()
    assert scene.written == before
    assert scene.poll._pieces is None


def test_client_that_leaves_while_it_waits_is_forgotten() -> None:
    scene = OnePoll(SubscribeRequest(None, FROM_NOW_ON), wait_s=30)
    scene.start()
    assert len(scene.polls) == 1
    scene.poll.connection_lost(None)
    assert len(scene.polls) == 0
    assert scene.lost == [scene.poll]
    scene.poll.close(CloseReason.STOPPING)
    scene.poll.received(b"more")
    assert (scene.closed, scene.written) == ([], b"")


# Refusals


@pytest.mark.parametrize("is_head", [False, True])
@pytest.mark.parametrize("replaying", [False, True])
def test_poll_that_cannot_be_answered_now_is_told_to_ask_again(*, is_head: bool, replaying: bool) -> None:
    scene = OnePoll(ALL if replaying else ID_AHEAD, is_head=is_head, replaying=replaying, shared=True)
    scene.source.is_consuming = False
    scene.start()
    assert scene.status == 503
    assert {"Retry-After: 5", "Vary: Accept, Origin", "Connection: close"} <= set(scene.head)
    text = b"" if is_head else b"The bridge has no updates yet: it is starting, or it has no broker.\n"
    assert scene.written.partition(b"\r\n\r\n")[2] == text
    assert scene.transport.ended == ["eof"]
    assert scene.closed == []


@pytest.mark.parametrize(
    ("reason", "status", "retry_after"),
    [
        (CloseReason.FULL, 503, "30"),
        (CloseReason.ADDRESS_LIMIT, 429, "30"),
        (CloseReason.STOPPING, 503, "5"),
        (CloseReason.INTERNAL, 503, "5"),
    ],
)
def test_reason_to_close_has_its_status_and_a_time_to_retry(reason: CloseReason, status: int, retry_after: str) -> None:
    scene = OnePoll()
    scene.poll.close(reason, limit=7)
    assert scene.status == status
    assert f"Retry-After: {retry_after}" in scene.head
    assert scene.closed == [(reason, {"limit": 7})]
    assert scene.poll.close_code == reason.code
    assert scene.transport.ended == ["eof"]


def test_close_ends_the_wait_but_not_a_response_that_has_begun() -> None:
    scene = OnePoll(SubscribeRequest(None, FROM_NOW_ON), wait_s=30)
    scene.start()
    scene.poll.close(CloseReason.STOPPING)
    assert (scene.status, len(scene.polls)) == (503, 0)
    scene.poll.close(CloseReason.STOPPING)
    assert len(scene.closed) == len(scene.transport.written) == 1


# HEAD


def test_head_has_the_headers_of_get_without_a_length_and_is_not_looked_up() -> None:
    scene = OnePoll(is_head=True, wait_s=30)
    scene.publish("a")
    scene.start()
    assert scene.status == 200
    assert scene.written.endswith(b"\r\n\r\n")
    assert "Content-Type: application/json" in scene.head
    assert not any(line.startswith("Content-Length") for line in scene.head)
    assert scene.transport.ended == ["eof"]
    assert len(scene.polls) == 0
    assert scene.metrics.written == 0


# A connection like any other


def test_poll_is_never_silent_and_a_ping_sends_nothing() -> None:
    scene = OnePoll()
    assert scene.poll.last_received_at == scene.poll.last_active_at == float("inf")
    scene.poll.ping()
    assert scene.written == b""


def test_abort_resets_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, client:
        scene = OnePoll()
        transport = FakeTransport(scene.turns.call_soon, sock=ours)
        scene.connect(transport).abort()
        assert transport.ended == ["abort"]
        ours.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
