"""Tests how each handshake is answered and when a client is aborted, with a fake transport and a fake clock."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import pytest

from bridge.config.networks import DEFAULT_NETWORKS
from bridge.contract import catalog
from bridge.contract.filters import After, QueryParser, SubscribeRequest
from bridge.metrics import Metrics
from bridge.server.access.rules import Access, Rule
from bridge.server.handshake import MAX_DISCARDED_BYTES, Handshake, HandshakeContext
from bridge.server.http.event_stream import event_stream_head
from bridge.server.http.pages import Pages
from bridge.server.http.request import Request, parse
from bridge.server.http.response import Response, text_response
from bridge.server.http.response_writer import MIN_READ_BYTES_PER_S
from bridge.server.listeners.sockets import SEND_BUFFER_BYTES
from bridge.server.pending_handshakes import PERIODS, PendingHandshakes
from bridge.server.router import Answer, Opening, Poll, Refused, Router
from bridge.server.tls import Tls
from bridge.server.transport import tcp
from bridge.server.transport.poller import Poller, make_poller
from bridge.server.transport.socket_transport import SocketTransport
from bridge.server.transport.tcp import PeerName
from bridge.server.transport.tls_transport import TlsTransport
from bridge.server.websocket.upgrade import Upgrade
from bridge.server.websocket.upgrade_cache import UpgradeCache
from bridge.timing import DEFAULT
from tests.support.certificates import certificate
from tests.support.clients import request
from tests.support.fakes import FakeTransport, ManualClock, deliver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


QUERIES = QueryParser(catalog.load([catalog.PACKAGED]))
PAGES = Pages(lambda: (True, {}), Metrics(), {}, "/updates")
TIMEOUT_S = 10.0
ADDRESS = "10.0.0.7"
PEERNAME = PeerName(ADDRESS, 54321)
UPDATES = request(3000)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class RecordingServer:
    """A fake of the server and its log, which records the calls that a handshake makes."""

    def __init__(self) -> None:
        self.access = Access(DEFAULT_NETWORKS, frozenset(), frozenset())
        self.tls: Tls | None = None
        self.poller: Poller = make_poller(asyncio.get_running_loop(), lambda: None)
        self.pending: PendingHandshakes[Handshake] = PendingHandshakes(asyncio.get_running_loop().call_later, TIMEOUT_S)
        self.transports: list[FakeTransport] = []
        """The fake transport of each client without TLS."""
        self.register_error: OSError | None = None
        """The error that the kernel reports when it is asked to watch a socket."""
        self.upgrade_cache = UpgradeCache()
        self.tracing = False
        self.upgrades: list[tuple[Handshake, asyncio.Transport, SubscribeRequest, bytes]] = []
        self.requests: list[Request] = []
        """The requests that opened a connection."""
        self.refusals: list[tuple[str, str, str]] = []
        """The rule, address and detail of each refusal."""
        self.left: list[str] = []
        """The address of each client that ended the connection before its request was complete."""
        self.ended: list[Handshake] = []
        self.traced: list[tuple[str, Request | None, Answer | Rule, float]] = []
        """The decision about each handshake, recorded while `tracing` is True."""

    def context(self) -> HandshakeContext:
        router = Router(self.access, QUERIES, PAGES, "/updates")
        return HandshakeContext(
            router, self.upgrade_cache, self, self._make_transport, TIMEOUT_S, self._on_opened, self._on_closed
        )

    def accept(self, client: socket.socket) -> Handshake:
        """Begins the handshake of an accepted socket."""
        handshake = Handshake(self.context(), client, PEERNAME)
        self.pending.add(handshake)
        handshake.begin()
        self.pending.start_timer()
        return handshake

    def _make_transport(
        self,
        client: socket.socket,
        peername: PeerName,
        protocol: asyncio.BufferedProtocol,
        on_failed: Callable[[OSError], None],
    ) -> SocketTransport:
        if self.tls is not None:
            return TlsTransport(
                self.poller, client, peername, protocol, self.tls.context, on_failed, DEFAULT.tls_shutdown_s
            )
        transport = FakeTransport(asyncio.get_running_loop().call_soon, peername=peername, sock=client)
        transport.set_protocol(protocol)
        transport.begin_error = self.register_error
        self.transports.append(transport)
        return cast("SocketTransport", transport)

    def _on_closed(self, handshake: Handshake) -> None:
        if handshake in self.pending:
            self.pending.remove(handshake)
        self.ended.append(handshake)

    def _on_opened(
        self,
        handshake: Handshake,
        transport: asyncio.Transport,
        request: Request,
        answer: Opening,
        rest: bytes,
    ) -> None:
        self.pending.remove(handshake)
        self.upgrades.append((handshake, transport, answer.subscribe, rest))
        self.requests.append(request)

    def refused(self, rule: Rule, peer: str, detail: str) -> None:
        self.refusals.append((rule, peer, detail))

    def abandoned(self, peer: str) -> None:
        self.left.append(peer)

    def handshake(self, peer: str, request: Request | None, decision: Answer | Rule, duration_s: float) -> None:
        self.traced.append((peer, request, decision, duration_s))


class Client:
    """A client's handshake, and the bridge's socket for this client."""

    def __init__(self, server: RecordingServer) -> None:
        self.socket = socket.socket()
        self.handshake = server.accept(self.socket)
        self.transport = server.transports[-1]

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            deliver(self.transport, piece)

    @property
    def answer(self) -> bytes:
        return b"".join(self.transport.written)

    @property
    def status(self) -> int:
        return int(self.answer[9:12])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return dict(line.split(": ", 1) for line in lines)

    @property
    def text(self) -> str:
        return self.answer.partition(b"\r\n\r\n")[2].decode().removesuffix("\n")


class Harness:
    """A server, and clients that connect to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock(monkeypatch)
        self.server = RecordingServer()
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        self.clients.append(Client(self.server))
        await self.clock.settle()
        return self.clients[-1]

    async def ask(self, *pieces: bytes) -> Client:
        """Connects a client that sends a request."""
        client = await self.connect()
        client.send(*pieces)
        return client


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Harness]:
    harness = Harness(monkeypatch)
    yield harness
    for client in harness.clients:
        client.socket.close()
    harness.server.poller.close()


def get(target: str = "/updates", *lines: str) -> bytes:
    """Returns a GET request with a Host header and without an upgrade."""
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: localhost:3000", *lines, "", ""]).encode()


# Upgrades


async def test_handshake_is_answered_with_101_and_the_accept_of_its_key(harness: Harness) -> None:
    client = await harness.ask(request(3000, headers=["Sec-WebSocket-Extensions: permessage-deflate"]))
    assert client.answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    headers = client.headers
    del headers["Date"], headers["Vary"]
    # RFC 6455, section 1.3, gives this accept value for this key. No extension is negotiated.
    assert headers == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    }
    assert client.transport.ended == []
    assert harness.server.upgrades == [(client.handshake, client.transport, SubscribeRequest(None, None), b"")]
    assert harness.server.refusals == []


async def test_upgraded_client_is_not_aborted_at_the_timeout(harness: Harness) -> None:
    client = await harness.ask(UPDATES)
    await harness.clock.advance(3 * TIMEOUT_S)
    assert client.transport.ended == []
    assert not harness.server.refusals
    assert not harness.server.ended


async def test_request_that_arrives_byte_by_byte_is_read(harness: Harness) -> None:
    client = await harness.connect()
    for byte in UPDATES:
        assert client.answer == b""
        client.send(bytes([byte]))
    assert client.status == 101


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_end_of_a_request_that_is_split_over_two_reads_is_found(harness: Harness, at: int) -> None:
    client = await harness.ask(UPDATES[:-at], UPDATES[-at:] + b"frame")
    assert [rest for *_, rest in harness.server.upgrades] == [b"frame"]
    assert client.status == 101


async def test_bytes_after_the_request_are_handed_on_with_the_upgrade(harness: Harness) -> None:
    await harness.ask(UPDATES + b"\x89\x80\r\n\r\n")
    assert [rest for *_, rest in harness.server.upgrades] == [b"\x89\x80\r\n\r\n"]


@pytest.mark.parametrize("target", ["/updates", "http://localhost:3000/updates", "HTTP://localhost:3000/updates"])
@pytest.mark.parametrize("query", ["", "?after=7-0000000a&systemId=30000142"])
async def test_endpoint_is_found_by_path_and_by_whole_url_with_its_query(
    harness: Harness, target: str, query: str
) -> None:
    client = await harness.ask(request(3000, target + query))
    assert client.status == 101
    assert [wanted for _, _, wanted, _ in harness.server.upgrades] == [QUERIES.parse(query.removeprefix("?")).subscribe]


# Polls


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize(("query", "lines"), [("?format=json", []), ("", ["Accept: application/json"])])
async def test_poll_is_handed_on_before_anything_is_written(
    harness: Harness, method: bytes, version: bytes, query: str, lines: list[str]
) -> None:
    sent = get(f"/updates{query}", *lines).replace(b"GET", method).replace(b"HTTP/1.1", version)
    client = await harness.ask(sent + b"more")
    assert client.answer == b""
    assert [(each, rest) for each, _, _, rest in harness.server.upgrades] == [(client.handshake, b"more")]
    assert harness.server.requests[0].method.encode() == method
    await harness.clock.advance(3 * TIMEOUT_S)
    assert (client.transport.ended, harness.server.refusals, harness.server.ended) == ([], [], [])


async def test_poll_is_traced(harness: Harness) -> None:
    harness.server.tracing = True
    await harness.ask(get("/updates?format=json&wait=3"))
    [(_, _, answer, _)] = harness.server.traced
    assert isinstance(answer, Poll)
    assert answer.wait_s == 3


# Event streams


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize(("query", "lines"), [("?format=sse", []), ("", ["Accept: text/event-stream"])])
async def test_event_stream_begins_with_its_head_and_a_comment(
    harness: Harness, version: bytes, query: str, lines: list[str]
) -> None:
    origin = "http://localhost:8080"
    sent = get(f"/updates{query}", f"Origin: {origin}", *lines).replace(b"HTTP/1.1", version)
    client = await harness.ask(sent)
    cors = ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", "Retry-After")
    assert client.answer == event_stream_head((("Vary", "Accept, Origin"), *cors)) + b":\n"
    assert client.transport.ended == []
    assert [(each, rest) for each, _, _, rest in harness.server.upgrades] == [(client.handshake, b"")]
    assert harness.server.refusals == []


async def test_event_stream_starts_after_the_last_event_id(harness: Harness) -> None:
    await harness.ask(get("/updates?format=sse&after=7-0000000a", "Last-Event-ID: 8-0000000a") + b"more")
    [(_, _, subscribe, rest)] = harness.server.upgrades
    assert (subscribe.after, rest) == (After.parse("8-0000000a"), b"more")


async def test_opened_event_stream_is_not_aborted_at_the_timeout(harness: Harness) -> None:
    client = await harness.ask(get("/updates?format=sse"))
    await harness.clock.advance(3 * TIMEOUT_S)
    assert client.transport.ended == []
    assert not harness.server.refusals
    assert not harness.server.ended


async def test_head_of_an_event_stream_is_sent_alone(harness: Harness) -> None:
    found = await harness.ask(get("/updates?format=sse"))
    client = await harness.ask(get("/updates?format=sse").replace(b"GET", b"HEAD"))
    assert client.answer + b":\n" == found.answer
    assert client.transport.ended == ["eof"]
    assert len(harness.server.upgrades) == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (get("/updates?format=sse", "Origin: http://evil.example"), 403),
        (get("/updates?format=sse", "Sec-Fetch-Site: cross-site"), 403),
        (get("/updates?format=sse&limit=5"), 400),
        (get("/updates?format=sse").replace(b"GET", b"POST"), 405),
    ],
)
async def test_event_stream_is_refused_with_a_final_status(harness: Harness, sent: bytes, status: int) -> None:
    client = await harness.ask(sent)
    assert client.status == status
    assert client.headers["Vary"] == "Accept, Origin"
    assert harness.server.upgrades == []


@pytest.mark.parametrize(
    ("request_", "status", "headers"),
    [
        (get(), 426, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Connection": "Upgrade, close"}),
        (UPDATES.replace(b": 13", b": 12"), 426, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}),
        (UPDATES.replace(b"HTTP/1.1", b"HTTP/1.0"), 426, {"Upgrade": "websocket"}),
        (UPDATES.replace(b"Sec-WebSocket-Version: 13\r\n", b""), 400, {"Upgrade": None, "Connection": "close"}),
        (UPDATES.replace(b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: secret"), 400, {"Upgrade": None}),
    ],
    ids=["no upgrade", "version 12", "HTTP/1.0", "no version", "bad key"],
)
async def test_request_that_is_not_a_handshake_is_refused_in_the_bridges_own_words(
    harness: Harness, request_: bytes, status: int, headers: dict[str, str | None]
) -> None:
    client = await harness.ask(request_)
    assert client.status == status
    answered = client.headers
    assert {name: answered.get(name) for name in headers} == headers
    assert b"secret" not in client.answer
    assert harness.server.refusals == [("upgrade", ADDRESS, client.text)]
    assert harness.server.upgrades == []
    assert client.transport.ended == ["eof"]


# Pages


async def test_page_is_answered_with_its_headers_and_only_our_side_ends(harness: Harness) -> None:
    client = await harness.ask(HEALTH)
    assert (client.status, client.text, client.headers["Connection"]) == (200, "alive", "close")
    assert client.transport.ended == ["eof"]
    assert not harness.server.refusals
    assert not harness.server.upgrades
    assert not harness.server.ended


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/healthz", 200),
        ("/healthz?x=1", 200),
        ("http://localhost:3000/healthz?x=1", 200),
        ("http://localhost:3000", 200),
        ("/nothing", 404),
        ("/updates/", 404),
        ("http://localhost:3000/nothing", 404),
    ],
)
async def test_page_is_found_by_path_and_by_whole_url(harness: Harness, target: str, status: int) -> None:
    client = await harness.ask(get(target))
    assert client.status == status
    assert harness.server.refusals == []


async def test_whole_url_without_a_path_is_the_live_page(harness: Harness) -> None:
    client = await harness.ask(get("http://localhost:3000"))
    assert client.headers["Content-Type"] == "text/html; charset=utf-8"
    assert client.headers["Referrer-Policy"] == "no-referrer"
    assert "script-src 'self'" in client.headers["Content-Security-Policy"]


@pytest.mark.parametrize("target", ["/healthz", "/", "/schemas/", "/nothing", "/updates", "/updates?nothing=1"])
async def test_head_is_answered_like_get_without_the_body(harness: Harness, target: str) -> None:
    found = await harness.ask(get(target))
    client = await harness.ask(get(target).replace(b"GET", b"HEAD"))
    head, _, body = found.answer.partition(b"\r\n\r\n")
    assert body
    assert client.answer == head + b"\r\n\r\n"
    assert client.transport.ended == ["eof"]


async def test_head_of_a_handshake_is_no_handshake(harness: Harness) -> None:
    client = await harness.ask(UPDATES.replace(b"GET", b"HEAD"))
    assert client.status == 426
    assert harness.server.upgrades == []


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (HEALTH.replace(b"GET", b"POST"), "GET, HEAD, OPTIONS"),
        (get("/").replace(b"GET", b"OPTIONS"), "GET, HEAD"),
        (HEALTH.replace(b"GET", b"BREW"), "GET, HEAD, OPTIONS"),
        (get("/nothing").replace(b"GET", b"DELETE"), "GET, HEAD"),
        (HEALTH.replace(b"GET", b"POST")[:-2] + b"Content-Length: 3\r\n\r\nabc", "GET, HEAD, OPTIONS"),
        (HEALTH.replace(b"GET", b"POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "GET, HEAD, OPTIONS"),
        (HEALTH.replace(b"GET", b"POST").replace(b"/1.1", b"/1.0"), "GET, HEAD, OPTIONS"),
        (UPDATES.replace(b"GET", b"POST"), "GET, HEAD, OPTIONS"),
        (b"CONNECT localhost:3000 HTTP/1.1\r\nHost: localhost:3000\r\n\r\n", "GET, HEAD"),
    ],
)
async def test_other_method_is_answered_with_405_and_what_is_allowed(
    harness: Harness, request_: bytes, allowed: str
) -> None:
    client = await harness.ask(request_)
    assert client.status == 405
    assert client.headers["Allow"] == allowed
    assert client.text == f"Only {allowed} are allowed for this path."
    assert harness.server.refusals == []


@pytest.mark.parametrize("origin", [(), ("Origin: http://localhost:8080",)])
async def test_options_of_the_endpoint_list_what_a_page_of_another_origin_may_send(
    harness: Harness, origin: tuple[str, ...]
) -> None:
    client = await harness.ask(get("/updates", *origin).replace(b"GET", b"OPTIONS"))
    assert client.status == 204
    headers = client.headers
    assert headers["Allow"] == "GET, HEAD, OPTIONS"
    assert headers["Access-Control-Allow-Methods"] == "GET"
    assert headers["Access-Control-Allow-Headers"] == "Last-Event-ID, Cache-Control"
    assert headers.get("Access-Control-Allow-Origin") == ("http://localhost:8080" if origin else None)
    assert client.answer.endswith(b"\r\n\r\n")


async def test_options_of_the_endpoint_from_an_origin_that_may_not_connect_are_refused(harness: Harness) -> None:
    client = await harness.ask(get("/updates", "Origin: https://evil.example").replace(b"GET", b"OPTIONS"))
    assert client.status == 403
    assert "Access-Control-Allow-Methods" not in client.headers


async def test_options_of_the_server_as_a_whole_are_answered(harness: Harness) -> None:
    client = await harness.ask(b"OPTIONS * HTTP/1.1\r\nHost: www\r\n\r\n")
    assert (client.status, client.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/healthz?x"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_probe_in_http_1_0_needs_no_host(harness: Harness, path: str, method: str) -> None:
    client = await harness.ask(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
    assert client.status == 200


async def test_options_of_a_probe_have_the_status_of_a_get(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, HAProxy sends OPTIONS requests to check the bridge."""
    monkeypatch.setattr(PAGES, "get", lambda path: text_response(HTTPStatus.SERVICE_UNAVAILABLE, "no"))
    client = await harness.ask(b"OPTIONS /readyz HTTP/1.0\r\n\r\n")
    assert (client.status, client.text) == (503, "")
    assert client.headers["Allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /updates HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET http://localhost/healthz HTTP/1.0\r\n\r\n",
    ],
)
async def test_other_request_without_host_is_refused(harness: Harness, request_: bytes) -> None:
    client = await harness.ask(request_)
    assert client.status == 400
    assert client.text == "A request must have exactly one Host header."


async def test_request_with_a_host_is_answered_in_http_1_0(harness: Harness) -> None:
    client = await harness.ask(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert client.status == 200


# Requests from pages of other origins

EVIL = "Origin: https://evil.example"
OTHER = "Origin: http://localhost:8080"


@pytest.mark.parametrize("target", ["/", "/page.js", "/healthz", "/metrics", "/schemas/", "/nothing"])
@pytest.mark.parametrize("header", [EVIL, "Sec-Fetch-Site: cross-site"])
async def test_page_is_served_to_any_origin_and_readable_for_an_allowed_one(
    harness: Harness, target: str, header: str
) -> None:
    """If a proxy rewrites Host, requests for the live page's own scripts have an Origin that differs from Host."""
    client = await harness.ask(get(target, header))
    assert client.status == (404 if target == "/nothing" else 200)
    assert "Access-Control-Allow-Origin" not in client.headers


@pytest.mark.parametrize(
    ("target", "status", "vary"),
    [
        ("/schemas/", 200, "Origin"),
        ("/schemas/nothing.json", 404, "Origin"),
        ("/schemas/clients/browser.js", 200, "Origin"),
        ("/asyncapi.json", 404, "Origin"),
        ("/openapi.json", 404, "Origin"),
        ("/updates", 426, "Accept, Origin"),
        ("/updates?nothing=1", 400, "Accept, Origin"),
    ],
)
async def test_allowed_origin_is_echoed_with_what_pages_of_it_may_read(
    harness: Harness, target: str, status: int, vary: str
) -> None:
    client = await harness.ask(get(target, OTHER))
    assert client.status == status
    assert client.headers["Access-Control-Allow-Origin"] == "http://localhost:8080"
    assert client.headers["Vary"] == vary
    assert "Access-Control-Allow-Credentials" not in client.headers


async def test_origin_is_echoed_with_the_upgrade_too(harness: Harness) -> None:
    client = await harness.ask(request(3000, headers=[OTHER]))
    assert (client.status, client.headers["Access-Control-Allow-Origin"]) == (101, "http://localhost:8080")


@pytest.mark.parametrize("target", ["/", "/healthz", "/metrics", "/page.js"])
async def test_response_for_no_other_origin_is_not_shared(harness: Harness, target: str) -> None:
    client = await harness.ask(get(target, OTHER))
    assert client.headers.keys().isdisjoint({"Access-Control-Allow-Origin", "Vary"})


async def test_document_that_the_client_has_is_not_sent_again(harness: Harness) -> None:
    etag = (await harness.ask(get("/schemas/"))).headers["ETag"]
    client = await harness.ask(get("/schemas/", f"If-None-Match: {etag}", OTHER))
    assert client.answer.startswith(b"HTTP/1.1 304 Not Modified\r\n")
    assert b"\r\nAccess-Control-Allow-Origin: http://localhost:8080\r\n" in client.answer


# Refusals


@pytest.mark.parametrize(
    ("request_", "rule", "status", "detail"),
    [
        (get("/healthz", "X-Forwarded-For: 8.8.8.8"), "forwarded", 403, "x-forwarded-for: 8.8.8.8"),
        (get("/updates", "Origin: https://evil.example"), "origin", 403, "https://evil.example"),
        (get("/updates", "Sec-Fetch-Site: cross-site"), "origin", 403, "Sec-Fetch-Site: cross-site"),
        (get("/healthz", "Host: localhost"), "host", 400, "localhost:3000, localhost"),
        (HEALTH.replace(b"localhost", b"evil.example"), "host", 403, "evil.example"),
        (get("http://127.0.0.1:3000/healthz"), "host", 403, "http://127.0.0.1:3000/healthz"),
    ],
    ids=["forwarded", "origin", "cross-site", "two hosts", "host", "target"],
)
async def test_refusal_by_access_has_a_text_for_the_client_and_a_value_for_the_operator(
    harness: Harness, request_: bytes, rule: str, status: int, detail: str
) -> None:
    client = await harness.ask(request_)
    asked = parse(request_)
    access = harness.server.access
    refusal = access.check_request(asked.headers, asked.target) or access.check_origin(asked.headers)
    assert refusal is not None
    assert (client.status, client.text) == (status, refusal.text)
    assert harness.server.refusals == [(rule, ADDRESS, detail)]
    assert client.transport.ended == ["eof"]


async def test_access_is_checked_before_the_method_and_the_path(harness: Harness) -> None:
    client = await harness.ask(b"HEAD /nothing HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert client.status == 403


@pytest.mark.parametrize(
    ("query", "end"), [("nothing=1", "; /asyncapi.json lists the members."), ("systemid=1", "; did you mean systemId?")]
)
async def test_refusal_of_a_query_has_a_reason_and_one_mark_at_its_end(harness: Harness, query: str, end: str) -> None:
    client = await harness.ask(request(3000, f"/updates?{query}"))
    assert client.status == 400
    assert client.text.startswith("This query can't be answered: there is no member ")
    assert client.text.endswith(end)
    assert harness.server.refusals == [("query", ADDRESS, client.text)]
    assert harness.server.upgrades == []


@pytest.mark.parametrize(
    ("request_", "rule", "status"),
    [
        (b"GET /\r\n\r\n", "malformed", 400),
        (b"GET foo HTTP/1.1\r\nHost: localhost\r\n\r\n", "malformed", 400),
        (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", "malformed", 400),
        (b"\x16", "malformed", 400),
        (HEALTH[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", "malformed", 400),
        (get("/" + "a" * 9000), "size", 414),
        (get("/", "Cookie: " + "c" * 17_000), "size", 431),
        (get("/", *["X: y"] * 128), "size", 431),
    ],
    ids=["no version", "no path", "no path either", "TLS", "body", "long target", "large header", "many headers"],
)
async def test_request_that_cannot_be_read_is_refused_with_the_reason(
    harness: Harness, request_: bytes, rule: str, status: int
) -> None:
    client = await harness.ask(request_)
    assert client.status == status
    assert harness.server.refusals == [(rule, ADDRESS, client.text)]
    assert client.transport.ended == ["eof"]


@pytest.mark.parametrize(
    "request_",
    [
        b"HEAD foo HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nA : b\r\n\r\n",
        b"HEAD /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_refused_head_has_no_body(harness: Harness, request_: bytes) -> None:
    client = await harness.ask(request_)
    assert client.status in {400, 414}
    assert client.answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
@pytest.mark.parametrize("target", ["*", "foo", "/#a"])
async def test_invalid_target_is_refused_with_any_method(harness: Harness, method: str, target: str) -> None:
    client = await harness.ask(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert client.status == 400


@pytest.mark.parametrize(
    ("origin", "echoed"), [("http://localhost:8080", True), ("http://bridge:3000", False), (EVIL[8:], False)]
)
@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("/updates?type=" + "a" * 9000, (), 414),
        ("/schemas/#a", (), 400),
        ("/updates", ("Cookie: " + "c" * 17_000,), 431),
        ("/updates", ("Content-Length: 1",), 400),
    ],
)
async def test_refusal_of_what_other_pages_may_read_is_readable_too(
    harness: Harness, origin: str, target: str, headers: tuple[str, ...], status: int, *, echoed: bool
) -> None:
    request_ = get(target, f"Origin: {origin}", *headers).replace(b"localhost:3000", b"bridge:3000", 1)
    client = await harness.ask(request_)
    assert client.status == status
    # The page's own origin is allowed only after the Host header has passed its rule.
    assert client.headers.get("Access-Control-Allow-Origin") == (origin if echoed else None)
    assert "Origin" in client.headers["Vary"]


async def test_origin_of_a_host_that_is_refused_is_not_echoed(harness: Harness) -> None:
    rebound = b"GET /updates HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n"
    client = await harness.ask(rebound)
    assert client.status == 403
    assert "Access-Control-Allow-Origin" not in client.headers


async def test_second_request_is_not_answered(harness: Harness) -> None:
    client = await harness.ask(HEALTH + HEALTH)
    assert client.answer.count(b"HTTP/1.1 ") == 1
    client.send(HEALTH)
    assert client.answer.count(b"HTTP/1.1 ") == 1


# Time


async def test_client_without_a_request_is_answered_408_at_the_timeout_and_not_before(harness: Harness) -> None:
    client = await harness.ask(UPDATES[:-1])
    await harness.clock.advance(TIMEOUT_S - 0.1)
    assert client.answer == b""
    await harness.clock.advance(0.1)
    assert client.status == 408
    assert client.text == "No complete request within 10 seconds."
    assert harness.server.refusals == [("timeout", ADDRESS, client.text)]
    assert client.transport.ended == ["eof"]


@pytest.mark.parametrize("request_", [b"", HEALTH], ids=["408", "page"])
async def test_client_that_does_not_end_the_connection_after_its_answer_is_aborted(
    harness: Harness, request_: bytes
) -> None:
    client = await harness.ask(request_)
    if not request_:
        await harness.clock.advance(TIMEOUT_S)
    refused = len(harness.server.refusals)
    await harness.clock.advance(TIMEOUT_S - 0.1)
    assert client.transport.ended == ["eof"]
    await harness.clock.advance(0.1)
    assert client.transport.ended == ["eof", "abort"]
    assert harness.server.ended == [client.handshake]
    assert len(harness.server.refusals) == refused


class Reader:
    """The number of bytes that a client has acknowledged, as the kernel reports it to the bridge."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acknowledged: int | None = 0
        monkeypatch.setattr(tcp, "acknowledged_bytes", lambda client: self.acknowledged)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each page so large that the kernel can't take all of it at once."""
    monkeypatch.setattr(PAGES, "get", lambda path: text_response(HTTPStatus.OK, "x" * SEND_BUFFER_BYTES))


LEAST = int(MIN_READ_BYTES_PER_S * TIMEOUT_S)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kernel_says", [True, False])
async def test_client_that_reads_its_answer_slowly_gets_all_of_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, *, kernel_says: bool
) -> None:
    reader = Reader(monkeypatch)
    if not kernel_says:
        reader.acknowledged = None
    client = await harness.connect()
    client.transport.takes_nothing = True
    client.send(HEALTH)

    async def read(count: int) -> None:
        await harness.clock.advance(TIMEOUT_S - 0.1)
        assert client.transport.ended == ["eof"]
        if reader.acknowledged is None:
            client.transport.waiting_bytes -= count
        else:
            reader.acknowledged += count
        await harness.clock.advance(0.1)

    for _ in range(5):
        await read(LEAST)
        assert client.transport.ended == ["eof"]
    # The last part of the response may be smaller than the minimum.
    await read(len(client.answer) - 5 * LEAST)
    assert client.transport.ended == ["eof"]
    await read(0)
    assert client.transport.ended == ["eof", "abort"]
    assert harness.server.refusals == []


@pytest.mark.usefixtures("large")
async def test_client_that_reads_less_than_the_minimum_is_aborted(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch)
    client = await harness.ask(HEALTH)
    reader.acknowledged = LEAST - 1
    await harness.clock.advance(TIMEOUT_S)
    assert client.transport.ended == ["eof", "abort"]


async def test_answer_has_the_whole_timeout_after_a_late_request(harness: Harness) -> None:
    client = await harness.connect()
    await harness.clock.advance(TIMEOUT_S - 0.1)
    client.send(HEALTH)
    await harness.clock.advance(TIMEOUT_S - 0.1)
    assert client.transport.ended == ["eof"]
    await harness.clock.advance(0.2)
    assert client.transport.ended == ["eof", "abort"]


async def test_aborted_handshake_is_not_answered_at_its_timeout(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await harness.connect()
    monkeypatch.setattr(client.transport, "abort", lambda: None)  # simulates a transport that needs some time to close
    client.handshake.abort()
    await harness.clock.advance(2 * TIMEOUT_S)
    assert (client.answer, harness.server.refusals) == (b"", [])


async def test_client_is_not_refused_before_the_bridge_has_read_what_it_sent(harness: Harness) -> None:
    """In this test, each turn of the event loop takes as long as the timeout."""
    client = await harness.connect()
    for _ in range(PERIODS - 1):
        await harness.clock.stall(TIMEOUT_S)
        assert client.answer == b""
    client.send(HEALTH)
    assert client.status == 200
    assert harness.server.refusals == []


async def test_client_without_a_request_is_refused_however_long_the_turns_of_the_loop_are(harness: Harness) -> None:
    client = await harness.connect()
    for _ in range(PERIODS):
        await harness.clock.stall(TIMEOUT_S)
    assert client.status == 408


async def test_timeout_counts_from_the_accept_and_not_from_the_first_byte(harness: Harness) -> None:
    client = await harness.connect()
    await harness.clock.advance(TIMEOUT_S - 0.1)
    client.send(UPDATES[:-1])
    await harness.clock.advance(0.1)
    assert client.status == 408


# The end


async def test_lost_client_is_reported_once_and_its_timer_does_not_fire(harness: Harness) -> None:
    client = await harness.ask(UPDATES[:-1])
    client.transport.close()
    await harness.clock.advance(3 * TIMEOUT_S)
    assert harness.server.ended == [client.handshake]
    assert harness.server.refusals == []
    assert client.transport.ended == ["close"]
    assert client.answer == b""


@pytest.mark.parametrize("sent", [b"", UPDATES[:-1]], ids=["nothing", "a part"])
async def test_client_that_leaves_before_its_request_is_complete_is_reported_as_such(
    harness: Harness, sent: bytes
) -> None:
    client = await harness.connect()
    client.send(sent)
    client.transport.close()
    await harness.clock.settle()
    assert harness.server.left == [ADDRESS]
    assert harness.server.refusals == []


@pytest.mark.parametrize("sent", [UPDATES, HEALTH, b"nonsense\r\n\r\n"], ids=["101", "200", "400"])
async def test_client_that_leaves_after_its_request_is_not_reported_as_one_that_sent_none(
    harness: Harness, sent: bytes
) -> None:
    client = await harness.ask(sent)
    client.transport.close()
    await harness.clock.settle()
    assert harness.server.left == []


async def test_client_aborted_by_the_bridge_is_not_reported_as_one_that_left(harness: Harness) -> None:
    client = await harness.connect()
    client.handshake.abort()
    await harness.clock.settle()
    assert client.transport.ended == ["abort"]
    late = await harness.connect()
    await harness.clock.advance(2 * TIMEOUT_S)
    assert late.status == 408
    assert harness.server.left == []


async def test_client_that_ends_its_side_ends_the_connection(harness: Harness) -> None:
    protocol: asyncio.BufferedProtocol = (await harness.connect()).handshake
    # If `eof_received` returns None, the transport closes itself.
    assert protocol.eof_received() is None


@pytest.mark.parametrize("excess", [0, 1])
async def test_bytes_after_an_answer_are_discarded_and_too_many_abort_the_client(harness: Harness, excess: int) -> None:
    client = await harness.ask(HEALTH)
    answer = client.answer
    client.send(UPDATES, b"x" * (MAX_DISCARDED_BYTES - len(UPDATES)))
    assert client.transport.ended == ["eof"]
    if excess:
        client.send(b"x")
    assert client.transport.ended == ["eof", "abort"][: 1 + excess]
    assert client.answer == answer
    assert harness.server.upgrades == []


async def test_abort_ends_the_connection_with_a_reset_and_answers_nothing_any_more(harness: Harness) -> None:
    client = await harness.ask(UPDATES[:-1])
    client.handshake.abort()
    assert client.transport.ended == ["abort"]
    # With this SO_LINGER option, the kernel sends a reset, and drops the data that it holds for the client.
    lingers = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert struct.unpack("ii", lingers) == (1, 0)
    client.send(UPDATES[-1:])
    assert client.answer == b""
    assert harness.server.upgrades == []
    await harness.clock.settle()
    assert harness.server.ended == [client.handshake]
    client.handshake.abort()
    assert client.transport.ended == ["abort"]


@pytest.mark.parametrize("gone", ["closed", "missing"])
async def test_abort_ends_a_connection_whose_socket_is_gone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    client = await harness.connect()
    client.socket.close()
    if gone == "missing":
        monkeypatch.setattr(client.transport, "get_extra_info", lambda name, default=None: default)
    client.handshake.abort()
    assert client.transport.ended == ["abort"]


# TLS


async def connect_over_tls(harness: Harness, tmp_path: Path) -> tuple[Handshake, socket.socket, socket.socket]:
    """Connects a client to a bridge with a certificate.

    Returns the handshake, and the sockets of the bridge and the client.
    """
    harness.server.tls = Tls(*certificate(tmp_path, "localhost"))
    near, far = socket.socketpair()
    far.setblocking(False)
    handshake = harness.server.accept(near)
    await harness.clock.settle()
    return handshake, near, far


async def test_tls_handshake_that_is_never_complete_is_aborted_at_the_timeout(harness: Harness, tmp_path: Path) -> None:
    handshake, _, far = await connect_over_tls(harness, tmp_path)
    with far:
        await harness.clock.advance(TIMEOUT_S - 0.1)
        assert harness.server.refusals == []
        await harness.clock.advance(0.1)
        assert harness.server.refusals == [("timeout", ADDRESS, "No complete TLS handshake within 10 seconds.")]
        assert far.recv(100) == b""
    assert harness.server.ended == [handshake]
    await harness.clock.advance(3 * TIMEOUT_S)
    assert len(harness.server.refusals) == len(harness.server.ended) == 1


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (b"GET /updates HTTP/1.1\r\n\r\n", "The client sent HTTP instead of TLS: use wss:// and https:// here."),
        (b"\x15\x03\x01\x00\x02\x02\x30", "UNEXPECTED_MESSAGE"),
    ],
    ids=["HTTP", "alert"],
)
async def test_tls_handshake_that_fails_is_refused_with_its_reason(
    harness: Harness, tmp_path: Path, said: bytes, detail: str
) -> None:
    handshake, _, far = await connect_over_tls(harness, tmp_path)
    with far:
        far.send(said)
        far.shutdown(socket.SHUT_WR)
        await harness.clock.settle()
    [(rule, peer, text)] = harness.server.refusals
    assert (rule, peer) == ("tls", ADDRESS)
    assert detail in text
    assert harness.server.ended == [handshake]
    await harness.clock.advance(3 * TIMEOUT_S)
    assert len(harness.server.refusals) == 1


@pytest.mark.parametrize("how", ["ends", "resets"])
async def test_client_that_leaves_during_its_tls_handshake_is_not_refused(
    harness: Harness, tmp_path: Path, how: str
) -> None:
    harness.server.tls = Tls(*certificate(tmp_path, "localhost"))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as far:
        near, _ = listener.accept()
        handshake = harness.server.accept(near)
        await harness.clock.settle()
        if how == "resets":
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, tcp.RESET)
    await harness.clock.settle()
    assert (harness.server.left, harness.server.refusals) == ([ADDRESS], [])
    assert harness.server.ended == [handshake]


async def test_abort_during_the_tls_handshake_closes_the_socket_and_refuses_nothing(
    harness: Harness, tmp_path: Path
) -> None:
    handshake, _, far = await connect_over_tls(harness, tmp_path)
    with far:
        handshake.abort()
        await harness.clock.settle()
        assert far.recv(100) == b""
    assert harness.server.ended == [handshake]
    assert harness.server.refusals == []


# Accepted sockets that the kernel cannot watch


async def test_client_whose_socket_cannot_be_watched_is_refused_as_lost(harness: Harness) -> None:
    harness.server.register_error = OSError("out of memory")
    client = await harness.connect()
    assert harness.server.refusals == [("lost", ADDRESS, "out of memory")]
    assert client.transport.ended == ["abort"]
    assert harness.server.ended == [client.handshake]


# The trace


@pytest.mark.parametrize(
    ("sent", "kind", "method"),
    [(UPDATES, Upgrade, "GET"), (HEALTH, Response, "GET"), (get(), Refused, "GET"), (b"\x16", Refused, None)],
    ids=["101", "page", "refused", "not HTTP"],
)
async def test_decision_is_traced_with_the_time_since_the_accept(
    harness: Harness, sent: bytes, kind: type, method: str | None
) -> None:
    harness.server.tracing = True
    client = await harness.connect()
    await harness.clock.advance(1.5)
    client.send(sent)
    [(peer, traced, answer, duration_s)] = harness.server.traced
    assert (peer, duration_s) == (f"{ADDRESS} port 54321", 1.5)
    assert isinstance(answer, kind)
    assert (None if traced is None else traced.method) == method


async def test_timeout_is_traced_without_a_request(harness: Harness) -> None:
    harness.server.tracing = True
    await harness.connect()
    await harness.clock.advance(TIMEOUT_S)
    [(_, traced, answer, duration_s)] = harness.server.traced
    assert (traced, duration_s) == (None, TIMEOUT_S)
    assert isinstance(answer, Refused)


async def test_eviction_is_traced_unless_the_request_is_answered(harness: Harness) -> None:
    harness.server.tracing = True
    waiting = await harness.connect()
    waiting.handshake.evict(Rule.PENDING)
    assert [(peer, decision) for peer, _, decision, _ in harness.server.traced] == [
        (f"{ADDRESS} port 54321", Rule.PENDING)
    ]
    answered = await harness.connect()
    answered.send(HEALTH)
    answered.handshake.evict(Rule.PENDING)
    assert [decision for _, _, decision, _ in harness.server.traced if isinstance(decision, Rule)] == [Rule.PENDING]


async def test_failed_transport_is_traced_as_a_refusal(harness: Harness) -> None:
    harness.server.tracing = True
    harness.server.register_error = OSError("out of memory")
    await harness.connect()
    assert [decision for _, _, decision, _ in harness.server.traced] == [Rule.LOST]


async def test_client_that_leaves_is_reported_with_its_port_while_tracing(harness: Harness) -> None:
    harness.server.tracing = True
    client = await harness.connect()
    client.transport.close()
    await harness.clock.settle()
    assert harness.server.left == [f"{ADDRESS} port 54321"]


async def test_without_tracing_no_decision_is_traced(harness: Harness) -> None:
    await harness.ask(UPDATES)
    assert harness.server.traced == []


# Memory


@pytest.mark.parametrize("request_", [UPDATES, HEALTH, UPDATES[:-1]], ids=["101", "200", "no answer"])
async def test_handshake_that_is_over_leaves_nothing_to_the_garbage_collector(
    harness: Harness, request_: bytes
) -> None:
    gc.collect()
    gc.disable()
    try:
        handshake = harness.server.accept(socket.socket())
        [transport] = harness.server.transports
        deliver(transport, request_)
        if harness.server.upgrades:
            transport.set_protocol(asyncio.Protocol())
        transport.abort()
        await harness.clock.settle()
        # Only this test's transport still has a reference to the socket, so the test closes the socket.
        transport.get_extra_info("socket").close()
        harness.server.transports.clear()
        harness.server.upgrade_cache = UpgradeCache()
        harness.server.upgrades.clear()
        harness.server.ended.clear()
        del handshake, transport
        assert not any(isinstance(each, Handshake) for each in gc.get_objects())
    finally:
        gc.enable()
