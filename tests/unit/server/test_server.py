"""Tests of the server's admission, limits, evictions, ticks and end, with fake transports and a manual clock."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest
from structlog.testing import capture_logs
from websockets.frames import Frame, Opcode

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.hub import Hub
from bridge.broadcast.hub_metrics import register_hub_metrics, register_poll_metrics
from bridge.broadcast.polls import Polls
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.update_log import UpdateLog
from bridge.config.networks import DEFAULT_NETWORKS
from bridge.contract import catalog
from bridge.contract.filters import QueryParser
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics
from bridge.server import memory
from bridge.server import server as server_module
from bridge.server.access.address_limit import MAX_ADDRESS_OVERFLOW
from bridge.server.access.log_limiter import MAX_LINES, MINUTE_S
from bridge.server.access.read_limiter import MAX_READ_BYTES, PERIOD_S
from bridge.server.access.rules import Access, Rule
from bridge.server.connection.keepalive import PING_PAUSE_S
from bridge.server.http.pages import Pages
from bridge.server.router import Router
from bridge.server.server import CLOCK_RESOLUTION_S, Limits, Server
from bridge.timing import DEFAULT
from tests.support.clients import CLOSE, PING, PONG, TEXT, close_code, request, server_frames
from tests.support.fakes import (
    NOW_MS,
    TAG,
    FakeFlowControl,
    FakeSource,
    FakeTransport,
    FakeTurn,
    ManualClock,
    deliver,
    update,
)
from tests.support.metrics import series, value

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from bridge.server.tls import Tls
from bridge.server.transport.poller import Poller
from bridge.server.transport.tcp import PeerName

QUERIES = QueryParser(catalog.load([catalog.PACKAGED]))
PAGES = Pages(lambda: (True, {}), Metrics(), {}, "/updates")
LOG_BYTES = 2**20
HANDSHAKE_TIMEOUT_S = 10.0
A, B, EXTERNAL = "10.0.0.1", "10.0.0.2", "8.8.8.8"
PORT = 54321
CLOSED_BY_CLIENT = Frame(Opcode.CLOSE, b"").serialize(mask=True)


class Client:
    """A client that the server has accepted, and the bridge's socket for this client."""

    def __init__(self, harness: Harness, client: socket.socket) -> None:
        self._harness = harness
        self.socket = client

    @property
    def transport(self) -> FakeTransport:
        [transport] = [each for each in self._harness.transports if each.get_extra_info("socket") is self.socket]
        return transport

    @property
    def dropped(self) -> bool:
        """True if the client's socket was closed before it had a transport."""
        return self.socket.fileno() == -1

    @property
    def ended(self) -> list[str]:
        return self.transport.ended

    def send(self, data: bytes) -> None:
        deliver(self.transport, data)

    @property
    def status(self) -> int:
        """The status of the response, or 0 if there is no response."""
        return int(b"".join(self.transport.written)[9:12] or 0)

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """The opcode and the payload of each frame after the response."""
        return server_frames(b"".join(self.transport.written).partition(b"\r\n\r\n")[2])

    @property
    def close_code(self) -> int | None:
        """The code with which the bridge closes the connection, or None if the bridge does not close it."""
        codes = [close_code(payload) for opcode, payload in self.frames if opcode == CLOSE]
        assert len(codes) <= 1
        return codes[0] if codes else None

    @property
    def body(self) -> dict[str, Any]:
        """The body of a JSON response."""
        head, _, body = b"".join(self.transport.written).partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d\r\n" % len(body) in head
        parsed: dict[str, Any] = orjson.loads(body)
        return parsed

    def header(self, name: str) -> str | None:
        """The value of a header of the response, or None."""
        lines = b"".join(self.transport.written).partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return dict(line.split(": ", 1) for line in lines).get(name)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of an event stream."""
        lines = b"".join(self.transport.written).partition(b"\r\n\r\n")[2].split(b"\n")
        return [orjson.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]

    async def leave(self) -> None:
        """Ends the connection from the client's side."""
        self.transport.close()
        await self._harness.clock.settle()


class Harness:
    """A server with clients and with its own hub. The updates of this hub have ids, like updates from a stream."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        max_connections: int = 100,
        overflow: int = 10,
        max_per_address: int = 100,
        idle_timeout_s: float = 120.0,
        ping_interval_s: float = 30.0,
        tls: Tls | None = None,
    ) -> None:
        self.clock = ManualClock(monkeypatch)
        self.transports: list[FakeTransport] = []
        monkeypatch.setattr(server_module, "TcpTransport", self._make_transport)
        self.metrics = Metrics()
        self.metrics.init_labels([], [], [reason.slug for reason in CloseReason], Rule)
        loop = asyncio.get_running_loop()
        self.errors: list[dict[str, Any]] = []
        """The exceptions that callbacks of the event loop raised."""
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        log = UpdateLog(LOG_BYTES)
        index = ReplayIndex(log, None)
        self.turn = turn = FakeTurn(loop.call_soon)
        self.source = FakeSource()
        self.polls = Polls(
            index, self.metrics, turn, loop.call_later, loop.time, lambda: self.source.is_consuming, lambda: False
        )
        self.hub = Hub(
            index,
            self.metrics,
            loop.call_soon,
            loop.call_later,
            loop.time,
            lambda: 0,
            self.polls,
            self.source,
            turn,
            FakeFlowControl(),
            heartbeat_s=0.0,
        )
        register_hub_metrics(self.metrics, self.hub, log)
        register_poll_metrics(self.metrics, self.polls)
        access = Access(DEFAULT_NETWORKS, frozenset(), frozenset())
        self.server = Server(
            self.hub,
            self.polls,
            access,
            Router(access, QUERIES, PAGES, "/updates"),
            Limits(max_connections, overflow, max_per_address, HANDSHAKE_TIMEOUT_S, idle_timeout_s, ping_interval_s),
            self.metrics,
            turn,
            lambda: NOW_MS,
            tls,
        )
        self._series = series(self.metrics)
        self.sockets: list[socket.socket] = []

    def _make_transport(
        self, _: Poller, client: socket.socket, peername: PeerName, protocol: asyncio.BufferedProtocol
    ) -> FakeTransport:
        transport = FakeTransport(asyncio.get_running_loop().call_soon, peername=peername, sock=client)
        transport.set_protocol(protocol)
        self.transports.append(transport)
        return transport

    async def connect(self, address: str = A) -> Client:
        """Connects a client, which sends nothing yet."""
        self.sockets.append(socket.socket())
        self.server.on_accept(self.sockets[-1], PeerName(address, PORT))
        await self.clock.settle()
        return Client(self, self.sockets[-1])

    async def upgrade(self, address: str = A, query: str = "", *, rest: bytes = b"") -> Client:
        """Connects a WebSocket client. The server reads `rest` together with the client's request."""
        client = await self.connect(address)
        client.send(request(3000, "/updates" + query) + rest)
        assert client.status == 101
        await self.clock.settle()
        return client

    async def stream(self, address: str = A, query: str = "", *, rest: bytes = b"") -> Client:
        """Connects a client of Server-Sent Events. The server reads `rest` together with the client's request."""
        client = await self.connect(address)
        client.send(b"GET /updates?format=sse%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % query.encode() + rest)
        assert client.status == 200
        await self.clock.settle()
        return client

    async def poll(self, address: str = A, query: str = "", *, method: str = "GET") -> Client:
        """Connects a client that asks for updates as JSON."""
        client = await self.connect(address)
        client.send(f"{method} /updates?format=json{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await self.clock.settle()
        return client

    def publish(self, number: int) -> None:
        """Publishes the update with this number, and flushes."""
        self.hub.publish(update(number), ("a", {}), UpdateId(number, TAG))
        self.hub.flush()

    def listen(self) -> tuple[str, int]:
        """Listens on a real socket. Returns the address and the port."""
        [name] = self.server.listen(("127.0.0.1",), 0, reuse_port=False)
        return name

    async def tick(self, count: int = 1) -> None:
        """Advances the clock by `count` keepalive passes."""
        for _ in range(count):
            await self.clock.advance(self.server._keepalive.tick_s)

    def metric(self, name: str, **labels: str) -> float:
        return value(self.metrics, name, **labels)

    def gauges(self) -> tuple[float, float]:
        """The number of open connections, and the number of connections without a complete request."""
        return self.metric("bridge_connections", transport="websocket"), self.metric("bridge_handshakes_pending")

    async def close(self) -> None:
        self.server.stop_listening()
        draining = asyncio.create_task(self.server.drain(0.0))
        await self.clock.settle()
        assert draining.done(), "a connection can't be ended"
        await draining
        assert self.errors == []
        assert series(self.metrics) == self._series, "a refusal or a close has a label value without a counter at 0"
        assert (self.gauges(), len(self.server._address_limit)) == ((0, 0), 0), "a client is still counted"
        for each in self.sockets:
            each.close()


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Harness]]:
    """Makes the harness of a test, with the limits that the test passes."""
    made: list[Harness] = []

    def make(**limits: Any) -> Harness:
        made.append(Harness(monkeypatch, **limits))
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list of times. Whenever the server returns free memory to the system, the current time is added."""
    times: list[float] = []
    monkeypatch.setattr(memory, "malloc_trim", lambda: times.append(asyncio.get_running_loop().time()))
    return times


def events(logged: list[Any], event: str) -> list[dict[str, Any]]:
    """Returns the fields of each log line with this event."""
    return [{k: v for k, v in line.items() if k != "event"} for line in logged if line["event"] == event]


async def test_client_whose_transport_cannot_be_made_uses_no_capacity(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    harness = serve()
    monkeypatch.setattr(server_module, "TcpTransport", fail)
    client = socket.socket()
    with pytest.raises(MemoryError):
        harness.server.on_accept(client, PeerName(A, PORT))
    assert client.fileno() == -1
    assert (harness.gauges(), len(harness.server._address_limit)) == ((0, 0), 0)


# Access


@pytest.mark.parametrize("gone", [False, True])
async def test_external_peer_is_refused_and_uses_no_capacity(serve: Callable[..., Harness], *, gone: bool) -> None:
    harness = serve()
    ours, theirs = socket.socketpair()
    if gone:
        theirs.close()
    with theirs, capture_logs() as logged:
        harness.server.on_accept(ours, PeerName(EXTERNAL, PORT))
        assert ours.fileno() == -1
        if not gone:
            answer = theirs.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert answer.endswith(b"\r\n\r\nYour address is not in an allowed network (BRIDGE_ALLOWED_NETWORKS).\n")
    assert harness.metric("bridge_clients_refused_total", rule="peer") == 1
    assert events(logged, "client refused") == [
        {"log_level": "info", "rule": "peer", "peer": EXTERNAL, "detail": EXTERNAL}
    ]
    assert len(harness.server._address_limit) == 0
    assert harness.gauges() == (0, 0)


async def test_external_peer_is_closed_before_tls_and_without_an_answer(serve: Callable[..., Harness]) -> None:
    harness = serve(tls=cast("Tls", SimpleNamespace(context=object())))
    ours, theirs = socket.socketpair()
    with theirs:
        harness.server.on_accept(ours, PeerName(EXTERNAL, PORT))
        assert ours.fileno() == -1
        assert theirs.recv(10_000) == b""
    assert harness.metric("bridge_clients_refused_total", rule="peer") == 1


@pytest.mark.parametrize(
    ("limits", "clients", "refused"),
    [
        ({}, [EXTERNAL], [(EXTERNAL, "peer", 403)]),
        ({"tls": cast("Tls", SimpleNamespace(context=object()))}, [EXTERNAL], [(EXTERNAL, "peer", None)]),
        ({"max_per_address": 1}, [A] * (2 + MAX_ADDRESS_OVERFLOW), [(A, "address-limit", None)]),
        ({"max_connections": 1, "overflow": 0}, [A, B], [(A, "full", None)]),
        ({"max_connections": 0, "overflow": 0}, [A], [(A, "full", None)]),
    ],
    ids=["peer", "peer with TLS", "address limit", "full with a handshake", "full"],
)
async def test_refusal_before_the_request_is_a_debug_line(
    serve: Callable[..., Harness],
    caplog: pytest.LogCaptureFixture,
    limits: dict[str, Any],
    clients: list[str],
    refused: list[tuple[str, str, int | None]],
) -> None:
    caplog.set_level(logging.DEBUG, "bridge.server")
    harness = serve(**limits)
    with capture_logs() as logged:
        for each in clients:
            harness.sockets.append(socket.socket())
            harness.server.on_accept(harness.sockets[-1], PeerName(each, PORT))
            await harness.clock.settle()
    lines = events(logged, "handshake")
    expected = [(f"{address} port {PORT}", rule, status) for address, rule, status in refused]
    assert [(line["peer"], line["rule"], line.get("status")) for line in lines] == expected
    assert {(line["outcome"], line["duration_ms"]) for line in lines} == {("refused", 0)}


async def test_eviction_of_the_oldest_handshake_is_a_debug_line(
    serve: Callable[..., Harness], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "bridge.server")
    monkeypatch.setattr(server_module, "MAX_HANDSHAKES", 1)
    harness = serve()
    await harness.connect(A)
    with capture_logs() as logged:
        await harness.connect(B)
    assert [(line["peer"], line["rule"]) for line in events(logged, "handshake")] == [(f"{A} port {PORT}", "pending")]


async def test_refusals_of_a_rule_are_logged_ten_times_a_minute_and_all_counted(serve: Callable[..., Harness]) -> None:
    harness = serve()
    with capture_logs() as logged:
        for _ in range(MAX_LINES + 3):
            harness.server._client_log.refused(Rule.HOST, A, "evil.example")
        harness.server._client_log.refused(Rule.ORIGIN, A, "null")
        await harness.clock.advance(MINUTE_S)
        harness.server._client_log.refused(Rule.HOST, B, "evil.example")
    lines = events(logged, "client refused")
    assert [line["rule"] for line in lines] == ["host"] * MAX_LINES + ["origin", "host"]
    assert [line.get("suppressed") for line in lines] == [None] * (MAX_LINES + 1) + [3]
    assert harness.metric("bridge_clients_refused_total", rule="host") == MAX_LINES + 4


async def connected_with(harness: Harness, *headers: str, target: str = "/updates") -> None:
    """Connects a client with the given headers in its handshake."""
    client = await harness.connect()
    client.send(request(3000, target, headers=headers))
    assert client.status == 101


async def test_client_that_requests_a_subprotocol_is_served_and_logged_once(serve: Callable[..., Harness]) -> None:
    harness = serve()
    with capture_logs() as logged:
        await connected_with(harness, "Sec-WebSocket-Protocol:")
        assert logged == []
        await connected_with(harness, "Sec-WebSocket-Protocol: Chat, x\u00e9" + "y" * 200)
        await connected_with(harness, "Sec-WebSocket-Protocol: chat")
    [line] = logged
    assert line["event"] == "client requested a subprotocol"
    assert line["subprotocols"].startswith("chat, x")
    assert len(line["subprotocols"]) < 120


async def test_malformed_id_is_logged_ten_times_a_minute(serve: Callable[..., Harness]) -> None:
    harness = serve()
    with capture_logs() as logged:
        for after in ("", "1-0000000a", "earliest"):
            await connected_with(harness, target=f"/updates?after={after}")
        assert logged == []
        for _ in range(MAX_LINES + 3):
            await connected_with(harness, target="/updates?after=" + "+" * 1000 + "undefined")
        assert [line["after"] for line in logged] == ["undefined"] * MAX_LINES
        assert {line["event"] for line in logged} == {"client requested a malformed id"}
        await harness.clock.advance(MINUTE_S)
        for after in ("null", "None", "NaN", "latest", "-1", "%5Bobject%20Object%5D", "x" * 1000):
            await connected_with(harness, target=f"/updates?after={after}")
    assert len(logged) == MAX_LINES + 7
    assert all(len(line["after"]) < 60 for line in logged)


# Capacity


async def test_client_becomes_a_connection_that_gets_updates(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.connect()
    assert harness.gauges() == (0, 1)
    client.send(request(3000))
    assert client.status == 101
    assert harness.gauges() == (1, 0)
    harness.hub.publish(b"update")
    harness.hub.flush()
    assert client.frames == [(TEXT, b"update")]
    await client.leave()
    assert harness.gauges() == (0, 0)
    assert len(harness.server._address_limit) == 0


async def test_client_that_leaves_without_a_request_does_not_count_any_more(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.connect()
    with capture_logs() as logged:
        await client.leave()
    assert harness.gauges() == (0, 0)
    assert len(harness.server._address_limit) == 0
    assert harness.metric("bridge_handshakes_abandoned_total") == 1
    # This log line is written only at level debug, because health checks end connections in the same way.
    assert [line["log_level"] for line in logged] == ["debug"]


async def test_client_gets_the_updates_that_match_its_query(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.upgrade(query="?type=event&after=")
    assert harness.metric("bridge_subscriptions") == 1
    harness.hub.publish(b'{"type": "killmail", "data": {}}', ("killmail", {}), UpdateId(1, 7))
    harness.hub.publish(b'{"type": "event", "data": {}}', ("event", {}), UpdateId(2, 7))
    harness.hub.flush()
    await harness.clock.settle()
    types = [orjson.loads(payload)["type"] for _, payload in client.frames]
    assert types == ["resume", "heartbeat", "event"]


async def test_close_frame_of_a_client_whose_connection_failed_at_once_is_no_fault(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = serve()
    write = FakeTransport.write

    def write_only_the_response(transport: FakeTransport, data: bytes) -> None:
        if data.startswith(b"HTTP/"):
            write(transport, data)
        else:
            transport.abort()

    monkeypatch.setattr(FakeTransport, "write", write_only_the_response)
    with capture_logs() as logs:
        client = await harness.upgrade(query="?after=", rest=CLOSED_BY_CLIENT)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
    assert "abort" in client.ended
    assert len(harness.hub) == 0


async def test_frames_right_after_the_request_are_read(serve: Callable[..., Harness]) -> None:
    client = await serve().upgrade(rest=Frame(Opcode.PING, b"here").serialize(mask=True))
    assert client.frames == [(PONG, b"here")]


async def test_page_is_served_and_its_client_counts_until_it_is_gone(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.connect()
    client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.status == 200
    assert harness.gauges() == (0, 1)
    await client.leave()
    assert harness.gauges() == (0, 0)
    assert len(harness.server._address_limit) == 0


async def test_client_without_a_request_is_answered_408_at_the_handshake_timeout(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.connect()
    await harness.clock.advance(HANDSHAKE_TIMEOUT_S - 0.1)
    assert client.status == 0
    await harness.clock.advance(0.1)
    assert client.status == 408
    assert harness.metric("bridge_clients_refused_total", rule="timeout") == 1
    await harness.clock.advance(HANDSHAKE_TIMEOUT_S)
    assert harness.gauges() == (0, 0)


async def test_connection_beyond_the_limit_is_closed_with_1013_and_the_ones_before_it_stay(
    serve: Callable[..., Harness],
) -> None:
    harness = serve(max_connections=2)
    served = [await harness.upgrade() for _ in range(2)]
    with capture_logs() as logged:
        refused = await harness.upgrade()
    assert [each.close_code for each in served] == [None, None]
    assert refused.close_code == 1013
    assert b"the bridge is full" in refused.frames[-1][1]
    assert events(logged, "connection limit exceeded") == [
        {
            "log_level": "info",
            "reason": "full",
            "code": 1013,
            "peer": f"{A} port {PORT}",
            "connected_s": 0,
            "max_connections": 2,
        }
    ]
    assert harness.metric("bridge_evictions_total", reason="full") == 1
    # The client uses a descriptor until its socket is closed.
    await served[0].leave()
    other = await harness.upgrade()
    assert other.close_code == 1013
    for each in (refused, other):
        await each.leave()
    assert (await harness.upgrade()).close_code is None


async def test_clients_beyond_the_overflow_are_dropped_and_logged_once(
    serve: Callable[..., Harness],
) -> None:
    harness = serve(max_connections=1, overflow=2)
    refused = [await harness.upgrade() for _ in range(3)]
    with capture_logs() as logged:
        dropped = [await harness.connect(B) for _ in range(2)]
    assert [each.dropped for each in (*refused, *dropped)] == [False] * 3 + [True] * 2
    assert len(harness.transports) == 3
    assert harness.metric("bridge_clients_refused_total", rule="full") == 2
    assert [(line["log_level"], line["clients"]) for line in logged] == [("warning", 3)]
    # Dropped clients were never counted towards the limit, so they do not free a place when they end.
    assert len(harness.server._address_limit) == 1


async def test_capacity_is_logged_with_the_number_of_dropped_clients_when_a_client_could_be_served(
    serve: Callable[..., Harness],
) -> None:
    harness = serve(max_connections=1, overflow=2)
    clients = [await harness.upgrade() for _ in range(3)]
    for _ in range(2):
        await harness.connect()
    with capture_logs() as logged:
        await clients[0].leave()
        clients.append(await harness.upgrade())
        assert events(logged, "accepting new connections again") == []
        await clients[1].leave()
        await clients[2].leave()
        await harness.upgrade()
        assert events(logged, "accepting new connections again") == [{"log_level": "info", "dropped": 2}]
        # The next time the bridge is full, dropped clients are counted from 0 again.
        await harness.upgrade()
        await harness.connect()
    assert [line["log_level"] for line in logged if "max_connections" not in line] == ["info", "warning"]


async def test_bridge_that_is_full_again_and_again_logs_it_ten_times_a_minute(serve: Callable[..., Harness]) -> None:
    harness = serve(max_connections=1, overflow=1)
    first = await harness.upgrade()
    with capture_logs() as logged:
        for _ in range(MAX_LINES + 5):
            second = await harness.upgrade()
            await harness.connect()
            await second.leave()
            await (await harness.connect()).leave()
    assert len(events(logged, "accepting new connections again")) == MAX_LINES
    assert sum(line["log_level"] == "warning" for line in logged) == MAX_LINES
    await first.leave()


async def test_oldest_handshake_is_evicted_for_a_new_client_of_a_full_bridge(
    serve: Callable[..., Harness],
) -> None:
    harness = serve(max_connections=1, overflow=2)
    served, oldest, newer = await harness.upgrade(), await harness.connect(), await harness.connect(B)
    newest = await harness.connect()
    assert oldest.ended == ["abort"]
    assert not newer.ended
    assert not newest.ended
    assert not newest.dropped
    assert harness.gauges() == (1, 2)
    assert harness.metric("bridge_clients_refused_total", rule="full") == 1
    await served.leave()
    newer.send(request(3000))
    newest.send(request(3000))
    assert [each.status for each in (newer, newest)] == [101, 101]


async def test_oldest_handshake_is_evicted_for_a_client_beyond_the_limit_of_handshakes(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_HANDSHAKES", 2)
    harness = serve()
    oldest, newer = await harness.connect(A), await harness.connect(B)
    with capture_logs() as logged:
        assert not oldest.ended
        newest = await harness.connect(B)
    assert oldest.ended == ["abort"]
    assert not newer.ended
    assert not newest.ended
    assert harness.gauges() == (0, 2)
    assert [(line["rule"], line["peer"]) for line in events(logged, "client refused")] == [("pending", A)]
    # A client whose handshake is complete no longer counts towards the limit of handshakes.
    newer.send(request(3000))
    await harness.connect(B)
    assert not newest.ended
    assert harness.metric("bridge_clients_refused_total", rule="pending") == 1


async def test_evicted_handshake_is_released_once(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_HANDSHAKES", 1)
    harness = serve(max_per_address=1)
    await harness.connect()
    # The second client evicts the first one. The connection of the first client is lost only after this client was
    # evicted.
    second = await harness.connect()
    assert len(harness.server._address_limit) == 1
    second.send(request(3000))
    assert second.close_code is None
    assert (await harness.upgrade()).close_code == 1013


@pytest.mark.parametrize("rule", ["pending", "full"])
async def test_clients_accepted_in_one_turn_of_the_loop_each_evict_another_handshake(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    harness = serve(max_connections=3, overflow=0) if rule == "full" else serve()
    if rule == "pending":
        monkeypatch.setattr(server_module, "MAX_HANDSHAKES", 3)
    waiting = [await harness.connect() for _ in range(3)]
    harness.sockets += [socket.socket() for _ in range(2)]
    for each in harness.sockets[-2:]:
        harness.server.on_accept(each, PeerName(B, PORT))
    await harness.clock.settle()
    assert [each.ended for each in waiting] == [["abort"], ["abort"], []]
    assert harness.gauges() == (0, 3)
    assert harness.metric("bridge_clients_refused_total", rule=rule) == 2


@pytest.fixture
def reserve_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """If several clients exceed the limit of an address, only one of them gets a close code."""
    monkeypatch.setattr("bridge.server.access.address_limit.MAX_ADDRESS_OVERFLOW", 1)


@pytest.mark.usefixtures("reserve_of_one")
async def test_clients_beyond_those_of_their_address_are_closed_with_1013_and_more_are_dropped(
    serve: Callable[..., Harness],
) -> None:
    harness = serve(max_per_address=1)
    served, refused = await harness.upgrade(), await harness.upgrade()
    with capture_logs() as logged:
        dropped = await harness.connect()
    assert served.close_code is None
    assert refused.close_code == 1013
    assert b"too many connections from your address" in refused.frames[-1][1]
    assert dropped.dropped
    assert events(logged, "client refused") == [
        {
            "log_level": "info",
            "rule": "address-limit",
            "peer": A,
            "detail": "This address has too many connections.",
        }
    ]
    assert harness.metric("bridge_evictions_total", reason="address-limit") == 1
    assert harness.metric("bridge_clients_refused_total", rule="address-limit") == 1
    # Each address has its own limit, and a connection that ends frees a slot.
    assert (await harness.upgrade(B)).close_code is None
    for each in (served, refused):
        await each.leave()
    assert (await harness.upgrade()).close_code is None


async def test_limit_of_the_bridge_is_checked_before_the_limit_of_an_address(serve: Callable[..., Harness]) -> None:
    harness = serve(max_connections=1, max_per_address=1)
    await harness.upgrade()
    with capture_logs() as logged:
        await harness.upgrade()
    assert [line["reason"] for line in logged] == ["full"]


# Polls


async def test_poll_is_a_connection_until_its_client_has_left(serve: Callable[..., Harness]) -> None:
    harness = serve()
    harness.publish(1)
    client = await harness.poll()
    assert (client.status, [each["data"]["n"] for each in client.body["updates"]]) == (200, [1])
    assert client.ended == ["eof"]
    assert harness.metric("bridge_connections_opened_total", transport="poll") == 1
    sent = harness.metric("bridge_sent_bytes_total", transport="poll")
    assert sent == len(b"".join(client.transport.written).partition(b"\r\n\r\n")[2])
    assert len(harness.server._connections) == 1
    await client.leave()
    assert len(harness.server._connections) == 0


async def test_waiting_poll_counts_as_an_open_connection(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.poll(query="&after=&wait=30")
    assert client.status == 0
    assert harness.metric("bridge_connections", transport="poll") == 1
    assert harness.gauges() == (0, 0)
    harness.publish(1)
    assert client.status == 200
    assert harness.metric("bridge_connections", transport="poll") == 0


async def test_client_that_leaves_while_it_waits_is_forgotten(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.poll(query="&after=&wait=30")
    await client.leave()
    assert len(harness.polls) == len(harness.server._connections) == 0
    harness.publish(1)
    assert client.status == 0


@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        ({"max_connections": 1}, 503, CloseReason.FULL),
        ({"max_per_address": 1}, 429, CloseReason.ADDRESS_LIMIT),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_poll_beyond_a_limit_is_refused_with_a_time_to_retry(
    serve: Callable[..., Harness], limits: dict[str, int], status: int, reason: CloseReason, method: str
) -> None:
    harness = serve(**limits)
    await harness.poll(query="&after=&wait=30")
    with capture_logs() as logged:
        client = await harness.poll(query="&wait=30", method=method)
    assert (client.status, client.header("Retry-After")) == (status, "30")
    assert client.header("Vary") == "Accept, Origin"
    assert client.ended == ["eof"]
    body = b"".join(client.transport.written).partition(b"\r\n\r\n")[2]
    assert body == (b"" if method == "HEAD" else f"{reason.phrase.capitalize()}.\n".encode())
    assert [(line["event"], line["reason"]) for line in logged] == [("connection limit exceeded", reason.slug)]
    assert harness.metric("bridge_evictions_total", reason=reason.slug) == 1


async def test_waiting_polls_count_towards_the_limit_of_other_connections(serve: Callable[..., Harness]) -> None:
    harness = serve(max_connections=1)
    await harness.poll(query="&after=&wait=30")
    assert (await harness.upgrade()).close_code == 1013


async def test_head_gets_its_head_at_once_and_does_not_wait(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.poll(query="&after=&wait=30", method="HEAD")
    assert client.status == 200
    assert b"".join(client.transport.written).endswith(b"\r\n\r\n")
    assert client.header("Content-Type") == "application/json"
    assert client.ended == ["eof"]
    assert len(harness.polls) == 0


async def test_drain_answers_waiting_polls_and_refuses_new_ones(serve: Callable[..., Harness]) -> None:
    harness = serve()
    harness.listen()
    waiting, late = await harness.poll(query="&after=&wait=30"), await harness.connect()
    harness.server.stop_listening()
    draining = asyncio.create_task(harness.server.drain(5.0))
    await harness.clock.settle()
    assert (waiting.status, waiting.body["updates"]) == (200, [])
    late.send(b"GET /updates?format=json&after=&wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (late.status, late.header("Retry-After")) == (503, "5")
    for client in (waiting, late):
        assert client.ended == ["eof"]
        assert not draining.done()
        await client.leave()
    assert draining.done()
    await draining


async def test_waiting_poll_is_neither_pinged_nor_idle(serve: Callable[..., Harness]) -> None:
    harness = serve(idle_timeout_s=4.0, ping_interval_s=1.0)
    harness.listen()
    client = await harness.poll(query="&after=&wait=30")
    await harness.clock.advance(29)
    assert client.transport.written == []
    await harness.clock.advance(2)
    assert client.status == 200


async def test_client_that_does_not_read_its_response_is_reset_after_the_close_timeout(
    serve: Callable[..., Harness],
) -> None:
    harness = serve()
    harness.listen()
    client = await harness.poll()
    while len(client.ended) == 1:
        await harness.tick()
    assert client.ended == ["eof", "abort"]


async def test_tick_refuses_a_poll_with_an_id_ahead_once_the_bridge_does_not_consume(
    serve: Callable[..., Harness],
) -> None:
    harness = serve(idle_timeout_s=8.0, ping_interval_s=4.0)
    harness.listen()
    client = await harness.poll(query="&after=7-00000007")
    await harness.tick()
    assert client.status == 0
    harness.source.is_consuming = False
    await harness.tick()
    assert (client.status, client.header("Retry-After")) == (503, "5")


@pytest.mark.usefixtures("released")
async def test_poll_that_sends_too_much_is_throttled(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.poll(query="&after=&wait=30")
    while client.transport.reading:
        client.send(b"x" * MAX_READ_BYTES)
    assert harness.metric("bridge_client_throttles_total") == 1
    harness.publish(1)
    assert client.status == 200
    await harness.clock.advance(PERIOD_S)


# Event streams


async def test_event_stream_is_a_connection_with_its_own_transport_label(serve: Callable[..., Harness]) -> None:
    harness = serve()
    await harness.upgrade()
    client = await harness.stream()
    body = b"".join(client.transport.written).partition(b"\r\n\r\n")[2]
    assert body.startswith(b":\nretry: ")
    assert [message["type"] for message in client.messages] == ["resume", "heartbeat"]
    for name in ("bridge_connections", "bridge_connections_opened_total"):
        assert [harness.metric(name, transport=each) for each in ("websocket", "sse")] == [1, 1]
    sent = harness.metric("bridge_sent_bytes_total", transport="sse")
    assert sent == len(body) - len(b":\nretry: 1000\n")
    await client.leave()
    assert harness.metric("bridge_connections", transport="sse") == 0


async def test_lagging_event_stream_has_its_own_transport_label(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.stream()
    client.transport.full = True
    harness.publish(1)
    await harness.clock.settle()
    name = "bridge_connections_lagging"
    assert [harness.metric(name, transport=each) for each in ("websocket", "sse")] == [0, 1]


@pytest.mark.parametrize(
    ("limits", "phrase"),
    [({"max_connections": 1}, CloseReason.FULL.phrase), ({"max_per_address": 1}, CloseReason.ADDRESS_LIMIT.phrase)],
)
async def test_event_stream_beyond_a_limit_gets_only_a_close_message_and_reconnects_late(
    serve: Callable[..., Harness], limits: dict[str, int], phrase: str
) -> None:
    harness = serve(**limits)
    await harness.upgrade()
    with capture_logs() as logged:
        client = await harness.stream(query="&after=7-00000007")
    body = b"".join(client.transport.written).partition(b"\r\n\r\n")[2]
    data = b'{"type":"close","data":{"code":1013,"reason":"%b"},"timestamp":%d}' % (phrase.encode(), NOW_MS)
    assert body == b":\nretry: 30000\ndata: " + data + b"\n\n"
    assert client.ended == ["eof"]
    assert [line["event"] for line in logged] == ["connection limit exceeded"]
    assert harness.metric("bridge_resumes_total", complete="false") == 0


async def test_event_stream_that_opens_while_the_server_drains_is_told_to_reconnect(
    serve: Callable[..., Harness],
) -> None:
    harness = serve()
    harness.listen()
    client = await harness.connect()
    harness.server.stop_listening()
    draining = asyncio.create_task(harness.server.drain(5.0))
    await harness.clock.settle()
    client.send(b"GET /updates?format=sse HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.status == 200
    body = b"".join(client.transport.written).partition(b"\r\n\r\n")[2]
    assert body.startswith(b':\ndata: {"type":"close","data":{"code":1001,')
    assert client.ended == ["eof"]
    await client.leave()
    assert draining.done()
    await draining


async def test_drain_ends_each_event_stream_with_a_close_message(serve: Callable[..., Harness]) -> None:
    harness = serve()
    clients = [await harness.stream(), await harness.stream(B)]
    draining = asyncio.create_task(harness.server.drain(5.0))
    await harness.clock.settle()
    for client in clients:
        assert client.messages[-1]["data"] == {"code": 1001, "reason": CloseReason.STOPPING.phrase}
        assert client.ended == ["eof"]
        assert not draining.done()
        await client.leave()
    assert draining.done()
    await draining


async def test_event_stream_whose_client_does_not_end_is_aborted_after_the_close_timeout(
    serve: Callable[..., Harness],
) -> None:
    harness = serve(max_connections=0)
    harness.listen()
    client = await harness.stream()
    while len(client.ended) == 1:
        await harness.tick()
    assert client.ended == ["eof", "abort"]


async def test_silent_event_stream_gets_a_comment_and_is_never_idle(serve: Callable[..., Harness]) -> None:
    harness = serve(idle_timeout_s=40.0, ping_interval_s=8.0)
    harness.listen()
    client = await harness.stream()
    client.transport.written.clear()
    await harness.tick(100)
    assert set(client.transport.written) == {b":\n"}
    assert client.ended == []


async def test_event_stream_that_gets_updates_gets_no_comments(serve: Callable[..., Harness]) -> None:
    harness = serve(idle_timeout_s=40.0, ping_interval_s=8.0)
    harness.listen()
    client = await harness.stream()
    for number in range(1, 50):
        harness.publish(number)
        await harness.tick()
    assert b":\n" not in client.transport.written


@pytest.mark.usefixtures("released")
async def test_event_stream_that_sends_too_much_is_throttled(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.stream(rest=b"x" * 1000)
    while client.transport.reading:
        client.send(b"x" * MAX_READ_BYTES)
    assert harness.metric("bridge_client_throttles_total") == 1
    await harness.clock.advance(PERIOD_S)
    assert client.transport.reading


# Connections that the bridge closes


@pytest.mark.parametrize("reason", [reason for reason in CloseReason if reason is not CloseReason.STOPPING])
async def test_closings_for_a_reason_are_logged_ten_times_a_minute_and_all_counted(
    serve: Callable[..., Harness], reason: CloseReason
) -> None:
    harness = serve()
    for _ in range(MAX_LINES + 3):
        await harness.upgrade()
    evicted = tuple(harness.server._connections)
    with capture_logs() as logged:
        for connection in evicted[:-1]:
            connection.close(reason, missed=7)
        await harness.clock.advance(MINUTE_S)
        evicted[-1].close(reason, missed=7)
    assert {(line["reason"], line["code"], line["missed"]) for line in logged} == {(reason.slug, reason.code, 7)}
    assert [line.get("suppressed") for line in logged] == [None] * MAX_LINES + [2]
    assert harness.metric("bridge_evictions_total", reason=reason.slug) == MAX_LINES + 3


async def test_closings_for_one_reason_leave_the_lines_of_another(serve: Callable[..., Harness]) -> None:
    harness = serve()
    reasons = {
        "protocol-error": Frame(Opcode.TEXT, b"not masked").serialize(mask=False),
        "invalid-utf8": Frame(Opcode.TEXT, b"\xff").serialize(mask=True),
    }
    with capture_logs() as logged:
        for data in reasons.values():
            for _ in range(MAX_LINES + 2):
                client = await harness.upgrade(rest=data)
                await client.leave()
    lines = [line["reason"] for line in events(logged, "client evicted")]
    assert {reason: lines.count(reason) for reason in reasons} == dict.fromkeys(reasons, MAX_LINES)


async def test_line_contains_how_long_a_client_was_connected(serve: Callable[..., Harness]) -> None:
    harness = serve()
    await harness.upgrade()
    # Although there was no tick since the first client connected, the time of a client that connects much later is
    # correct.
    await harness.clock.advance(100 + CLOCK_RESOLUTION_S)
    await harness.upgrade()
    await harness.clock.advance(CLOCK_RESOLUTION_S)
    await harness.upgrade()
    with capture_logs() as logged:
        for connection in tuple(harness.server._connections):
            connection.close(CloseReason.INTERNAL)
    assert [line["connected_s"] for line in logged] == [102, 1, 1]
    opened_at = [connection.opened_at for connection in harness.server._connections]
    # Clients that connect within CLOCK_RESOLUTION_S of each other share one float object, which is the time when they
    # connected.
    assert opened_at[1] is opened_at[2]


async def test_client_that_sends_too_much_is_throttled_counted_and_logged(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.upgrade()
    with capture_logs() as logged:
        flood(client)
    assert not client.transport.reading
    assert harness.metric("bridge_client_throttles_total") == 1
    assert events(logged, "client throttled") == [{"log_level": "info", "peer": f"{A} port {PORT}"}]
    with capture_logs() as logged:
        for _ in range(MAX_LINES):
            # After four periods, the client has paid off its debt.
            for _ in range(4):
                await harness.clock.advance(PERIOD_S)
            flood(client)
    assert len(logged) == MAX_LINES - 1
    assert harness.metric("bridge_client_throttles_total") == MAX_LINES + 1


def flood(client: Client) -> None:
    """Sends so many tiny frames in one read that the client is throttled for some periods."""
    frame = Frame(Opcode.PONG, b"").serialize(mask=True)
    client.send(frame * (MAX_READ_BYTES // len(frame)))


# Time


async def test_silent_client_is_pinged_and_then_evicted(serve: Callable[..., Harness]) -> None:
    harness = serve(idle_timeout_s=8.0, ping_interval_s=4.0)
    harness.listen()
    client = await harness.upgrade()
    await harness.tick(4)
    assert client.frames == [(PING, b"")]
    with capture_logs() as logged:
        await harness.tick(5)
    assert client.close_code == 4009
    [line] = events(logged, "client evicted")
    assert (line["reason"], line["connected_s"], line["silent_s"]) == ("idle", 9, 9.0)


async def test_client_with_an_id_that_never_arrives_gets_an_incomplete_resume(
    serve: Callable[..., Harness],
) -> None:
    harness = serve()
    harness.listen()
    client = await harness.upgrade(query="?after=99-00000001")
    assert harness.metric("bridge_resumes_pending") == 1
    await harness.tick(1)
    assert client.frames == []
    await harness.tick(1)
    message, heartbeat = (orjson.loads(payload) for _, payload in client.frames)
    assert (message["type"], message["data"]["complete"], heartbeat["type"]) == ("resume", False, "heartbeat")
    assert harness.metric("bridge_resumes_pending") == 0


async def test_pending_client_waits_on_after_the_bridge_did_not_run(
    serve: Callable[..., Harness],
) -> None:
    harness = serve()
    harness.listen()
    client = await harness.upgrade(query="?after=99-00000001")
    await harness.tick(1)
    await harness.clock.stall(3600.0)
    assert harness.metric("bridge_resumes_pending") == 1
    # The bridge now reads the events that were published while it was frozen.
    harness.hub.publish(b'{"type": "event", "data": {}}', ("event", {}), UpdateId(99, 1))
    harness.hub.flush()
    await harness.clock.settle()
    payload, _ = [payload for opcode, payload in client.frames if opcode == TEXT]
    assert orjson.loads(payload)["data"]["complete"] is True


async def test_clients_stay_when_the_bridge_did_not_run_for_an_hour(serve: Callable[..., Harness]) -> None:
    harness = serve(idle_timeout_s=8.0, ping_interval_s=4.0)
    harness.listen()
    answers, silent = await harness.upgrade(), await harness.upgrade()
    await harness.tick(1)
    with capture_logs() as logged:
        await harness.clock.stall(3600.0)
        await harness.clock.advance(PING_PAUSE_S)
        assert [each.frames for each in (answers, silent)] == [[(PING, b"")]] * 2
        answers.send(Frame(Opcode.PONG, b"").serialize(mask=True))
        await harness.tick(8)
        assert silent.close_code is None
        answers.send(Frame(Opcode.PONG, b"").serialize(mask=True))
        await harness.tick(1)
    assert answers.close_code is None
    assert silent.close_code == 4009
    assert [line["event"] for line in logged] == ["event loop stalled: idle timeouts start again", "client evicted"]


async def test_throttled_client_that_is_gone_is_ended_by_the_tick(serve: Callable[..., Harness]) -> None:
    # A tick occurs before the client's throttling ends.
    harness = serve(idle_timeout_s=2.0, ping_interval_s=0.4)
    harness.listen()
    throttled, other = await harness.upgrade(), await harness.upgrade()
    # The kernel reports that the throttled client's connection is closed.
    flood(throttled)
    await harness.tick()
    assert throttled.ended == ["abort"]
    assert not other.ended
    assert harness.gauges() == (1, 0)


async def test_gauge_counts_lagging_clients(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.upgrade()
    client.transport.full = True
    harness.hub.publish(b"update")
    harness.hub.flush()
    assert harness.metric("bridge_connections_lagging", transport="websocket") == 1


# The start and the end of listening


async def test_client_that_connects_to_the_listener_is_served(serve: Callable[..., Harness]) -> None:
    harness = serve()
    with socket.create_connection(harness.listen()):
        await harness.clock.settle()
        assert harness.gauges() == (0, 1)
        [transport] = harness.transports
        harness.sockets.append(transport.get_extra_info("socket"))
        deliver(transport, request(3000))
        assert harness.gauges() == (1, 0)
        assert [connection.address for connection in harness.server._connections] == ["127.0.0.1"]


async def test_listen_returns_each_address_with_the_port_that_it_got(serve: Callable[..., Harness]) -> None:
    names = serve().server.listen(("127.0.0.1", "127.0.0.2"), 0, reuse_port=False)
    [port] = {port for _, port in names}
    assert port > 0
    assert names == [("127.0.0.1", port), ("127.0.0.2", port)]


async def test_listen_returns_address_and_port_alone_for_ipv6(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Six(socket.socket):
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::1", 3000, 0, 0

    six = Six()
    six.setblocking(False)
    monkeypatch.setattr(server_module, "open_listeners", lambda *_: [six])
    assert serve().server.listen(("::1",), 3000, reuse_port=False) == [("::1", 3000)]


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_listener_is_made_as_the_settings_say(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch, *, reuse_port: bool
) -> None:
    asked: list[object] = []

    def open_none(*arguments: object) -> list[socket.socket]:
        asked.append(arguments)
        return []

    monkeypatch.setattr(server_module, "open_listeners", open_none)
    assert serve().server.listen(("localhost", "10.0.0.1"), 3000, reuse_port) == []
    assert asked == [(("localhost", "10.0.0.1"), 3000, reuse_port)]


async def test_stop_listening_keeps_connections_and_gives_handshakes_a_grace_period(
    serve: Callable[..., Harness],
) -> None:
    harness = serve()
    name = harness.listen()
    client, pending = await harness.upgrade(), [await harness.connect() for _ in range(2)]
    harness.server.stop_listening()
    await harness.clock.settle()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(name):
        pass
    assert harness.gauges() == (1, 2)
    await harness.clock.advance(DEFAULT.request_grace_s / 2)
    assert [each.ended for each in pending] == [[], []]
    await harness.clock.advance(DEFAULT.request_grace_s / 2)
    assert [each.ended for each in pending] == [["abort"], ["abort"]]
    assert client.ended == []
    assert harness.gauges() == (1, 0)


async def test_client_that_waits_to_be_accepted_is_answered_after_stop_listening(serve: Callable[..., Harness]) -> None:
    harness = serve()
    with socket.create_connection(harness.listen()):
        assert harness.transports == [], "the loop has not turned"
        harness.server.stop_listening()
        await harness.clock.settle()
        [transport] = harness.transports
        client = Client(harness, transport.get_extra_info("socket"))
        harness.sockets.append(client.socket)
        client.send(request(3000, "/healthz"))
        assert client.status == 200


@pytest.mark.parametrize("query", ["", "?after=", "?after=7-00000007"], ids=["plain", "new", "resuming"])
async def test_client_whose_request_is_complete_while_the_server_drains_is_closed_with_1001(
    serve: Callable[..., Harness], query: str
) -> None:
    harness = serve()
    harness.listen()
    client, probe = await harness.connect(), await harness.connect()
    harness.server.stop_listening()
    draining = asyncio.create_task(harness.server.drain(5.0))
    await harness.clock.settle()
    client.send(request(3000, "/updates" + query))
    probe.send(request(3000, "/healthz"))
    assert (client.status, client.close_code) == (101, 1001)
    assert probe.status == 200
    client.send(CLOSED_BY_CLIENT)
    await harness.clock.settle()
    assert not draining.done(), "the other client still reads its response"
    await probe.leave()
    assert draining.done()
    await draining
    assert harness.metric("bridge_evictions_total", reason="stopping") == 0


async def test_drain_waits_only_briefly_for_clients_without_a_request(
    serve: Callable[..., Harness],
) -> None:
    harness = serve()
    client = await harness.connect()
    harness.server.stop_listening()
    with capture_logs() as logged:
        draining = asyncio.create_task(harness.server.drain(5.0))
        await harness.clock.advance(DEFAULT.request_grace_s)
        assert client.ended == ["abort"]
        assert draining.done()
        await draining
    assert logged == []


async def test_drain_closes_a_shared_listener_at_its_deadline(serve: Callable[..., Harness]) -> None:
    harness = serve()
    [name] = harness.server.listen(("127.0.0.1",), 0, reuse_port=True)
    harness.server.stop_listening()
    with capture_logs() as logged:
        draining = asyncio.create_task(harness.server.drain(0.0))
        await harness.clock.settle()
        assert draining.done()
        await draining
    assert logged == []
    with pytest.raises(ConnectionRefusedError), socket.create_connection(name):
        pass


async def test_drain_of_a_server_without_clients_ends_at_once(serve: Callable[..., Harness]) -> None:
    harness = serve()
    draining = asyncio.create_task(harness.server.drain(5.0))
    await harness.clock.settle()
    assert draining.done()
    await draining


async def test_drain_closes_each_client_with_1001_and_ends_when_the_last_is_gone(serve: Callable[..., Harness]) -> None:
    harness = serve()
    harness.listen()
    clients = [await harness.upgrade(), await harness.upgrade(B)]
    with capture_logs() as logged:
        draining = asyncio.create_task(harness.server.drain(5.0))
        await harness.clock.settle()
        assert [each.close_code for each in clients] == [1001, 1001]
        for client in clients:
            assert not draining.done()
            client.send(CLOSED_BY_CLIENT)
            assert client.ended == ["close"]
            await harness.clock.settle()
        assert draining.done()
        await draining
    assert logged == []
    # A client that is closed because the bridge stops does not count as evicted.
    assert harness.metric("bridge_evictions_total", reason="stopping") == 0
    keepalive = harness.server._keepalive_task
    assert keepalive is not None
    await harness.clock.settle()
    assert keepalive.cancelled()


async def test_drain_closes_each_client_with_1001_although_a_listener_fails(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingListener(socket.socket):
        def getsockopt(self, *_: Any) -> Any:
            raise OSError(errno.EBADF, "a fault")

    listener = FailingListener()
    listener.setblocking(False)
    monkeypatch.setattr(server_module, "open_listeners", lambda *_: [listener])
    harness = serve()
    harness.server.listen(("127.0.0.1",), 0, reuse_port=False)
    clients = [await harness.upgrade(), await harness.upgrade(B)]
    harness.turn.steps = 1
    with capture_logs() as logged:
        harness.server.stop_listening()
        draining = asyncio.create_task(harness.server.drain(5.0))
        await harness.clock.settle()
        assert [each.close_code for each in clients] == [1001, 1001]
        assert not draining.done()
        for client in clients:
            client.send(CLOSED_BY_CLIENT)
        await harness.clock.settle()
        assert draining.done()
        await draining
    assert [line["event"] for line in logged] == ["accepting failed; closing the listeners"]
    assert listener.fileno() == -1


async def test_drain_ends_again_after_there_were_no_clients_for_a_while(serve: Callable[..., Harness]) -> None:
    harness = serve()
    await (await harness.upgrade()).leave()
    client = await harness.upgrade()
    draining = asyncio.create_task(harness.server.drain(5.0))
    await harness.clock.settle()
    assert not draining.done()
    await client.leave()
    assert draining.done()
    await draining


async def test_drain_aborts_clients_that_are_not_gone_at_its_deadline(serve: Callable[..., Harness]) -> None:
    harness = serve()
    clients = [await harness.upgrade(), await harness.upgrade(B)]
    with capture_logs() as logged:
        draining = asyncio.create_task(harness.server.drain(5.0))
        await harness.clock.settle()
        await harness.clock.advance(4.9)
        assert [each.ended for each in clients] == [[], []]
        assert logged == []
        await harness.clock.advance(0.1)
    assert [each.ended for each in clients] == [["abort"], ["abort"]]
    assert draining.done()
    await draining
    assert events(logged, "clients did not close in time") == [{"log_level": "warning", "clients": 2, "timeout_s": 5.0}]
    assert harness.gauges() == (0, 0)


@pytest.mark.parametrize("upgraded", [True, False], ids=["connections", "handshakes"])
async def test_drain_aborts_many_clients_in_several_turns(serve: Callable[..., Harness], *, upgraded: bool) -> None:
    harness = serve()
    clients = [await (harness.upgrade() if upgraded else harness.connect()) for _ in range(5)]
    draining = asyncio.create_task(harness.server.drain(0.0))
    await asyncio.sleep(0)
    harness.turn.steps = 2
    await harness.clock.settle()
    await draining
    assert [each.ended for each in clients] == [["abort"]] * 5
    assert harness.gauges() == (0, 0)


async def test_client_that_is_upgraded_while_clients_are_aborted_is_aborted_too(serve: Callable[..., Harness]) -> None:
    harness = serve()
    client = await harness.upgrade()
    harness.server._aborting = True
    late = await harness.upgrade()
    assert (client.ended, late.ended) == ([], ["abort"])


# Memory


async def test_memory_is_released_a_moment_after_half_of_many_clients_have_gone(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch, released: list[float]
) -> None:
    monkeypatch.setattr(memory, "TRIM_MIN_CONNECTIONS", 4)
    harness = serve()
    clients = [await harness.upgrade() for _ in range(4)]
    await clients.pop().leave()
    await harness.clock.advance(2 * DEFAULT.trim_delay_s)
    assert released == []
    await clients.pop().leave()
    await harness.clock.advance(DEFAULT.trim_delay_s / 2)
    assert released == []
    await harness.clock.advance(DEFAULT.trim_delay_s / 2)
    assert released == [harness.clock.now_s]
    # So few clients remain that memory is not released again when they leave.
    for client in clients:
        await client.leave()
    await harness.clock.advance(2 * DEFAULT.trim_delay_s)
    assert len(released) == 1
    # Whether memory is released again depends only on the clients since the last release.
    clients = [await harness.upgrade() for _ in range(4)]
    for client in clients:
        await client.leave()
    await harness.clock.advance(2 * DEFAULT.trim_delay_s)
    assert len(released) == 2


async def test_memory_is_not_released_after_few_clients(
    serve: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch, released: list[float]
) -> None:
    monkeypatch.setattr(memory, "TRIM_MIN_CONNECTIONS", 4)
    harness = serve()
    for client in [await harness.upgrade() for _ in range(3)]:
        await client.leave()
    await harness.clock.advance(2 * DEFAULT.trim_delay_s)
    assert released == []


async def test_server_without_clients_is_as_small_as_before_the_first(serve: Callable[..., Harness]) -> None:
    harness = serve()
    for client in [await harness.upgrade() for _ in range(20)]:
        await client.leave()
    assert sys.getsizeof(harness.server._connections) == sys.getsizeof({})
