"""The HTTP side of a running bridge: pages, refusals, and limits of a handshake."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import orjson
import pytest

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.clients import get, request
from tests.support.running import port_of, running, sample, secure
from tests.support.waiting import LIMIT_S, eventually

UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


async def test_every_page_answers(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", instance="here") as bridge:
        port = port_of(bridge)
        assert await get(port, "/healthz") == (200, b"alive\n")
        status, body = await get(port, "/readyz")
        assert status == 200
        ready = orjson.loads(body)
        assert (ready["ready"], ready["missing"], ready["instance"]) == (True, [], "here")
        status, body = await get(port, "/metrics")
        assert status == 200
        assert b"bridge_consuming 1.0" in body
        status, body = await get(port, "/schemas/")
        assert status == 200
        for name in orjson.loads(body):
            status, schema = await get(port, f"/schemas/{name}")
            assert (status, orjson.loads(schema)["$id"]) == (200, f"urn:edk-bridge:schema:{name.removesuffix('.json')}")


@pytest.mark.parametrize(
    ("path", "headers", "method", "status", "reason"),
    [
        pytest.param("/nothing", (), "GET", 404, b"/updates is the endpoint for updates", id="unknown-path"),
        pytest.param("/schemas/../settings.py", (), "GET", 404, b"nothing here", id="path-outside-the-schemas"),
        pytest.param("/healthz", (), "POST", 405, b"Only GET, HEAD", id="other-method"),
        pytest.param("/healthz", (), "BREW", 405, b"Only GET, HEAD", id="unknown-method"),
        pytest.param("/updates", (), "GET", 426, b"WebSocket", id="no-upgrade"),
        pytest.param("/updates?type=kilmail", UPGRADE, "GET", 400, b"no update type 'kilmail'", id="unknown-type"),
        pytest.param("/updates?system=1", UPGRADE, "GET", 400, b"systemId", id="unknown-member"),
        pytest.param("/updates?systemId=Jita", UPGRADE, "GET", 400, b"an integer", id="value-of-another-type"),
        pytest.param("/updates?after=&after=", UPGRADE, "GET", 400, b"more than once", id="two-ids"),
        pytest.param("/updates", (*UPGRADE, "Origin: https://evil.example"), "GET", 403, b"ORIGINS", id="origin"),
        pytest.param("/updates", ("Sec-Fetch-Site: cross-site",), "GET", 403, b"other sites", id="cross-site"),
        pytest.param("/updates", (*UPGRADE, "Host: evil.example"), "GET", 403, b"ALLOWED_HOSTS", id="host"),
        pytest.param("/updates", (*UPGRADE, "Host: localhost", "Host: a"), "GET", 400, b"exactly one", id="two-hosts"),
        pytest.param("/updates", (*UPGRADE, "X-Forwarded-For: 203.0.113.9"), "GET", 403, b"NETWORKS", id="forwarded"),
        pytest.param("/updates", ("Cookie: " + "x" * 17_000,), "GET", 431, b"delete the cookies", id="too-large"),
        pytest.param("/" + "a" * 9000, (), "GET", 414, b"8190 bytes", id="too-long"),
        pytest.param("no path", (), "GET", 400, b"not a valid HTTP request", id="malformed"),
        pytest.param("updates", (), "GET", 400, b"must be a path", id="no-path"),
    ],
)
async def test_refused_request_gets_a_reason(
    broker: Broker, exchange: str, path: str, headers: tuple[str, ...], method: str, status: int, reason: bytes
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        actual, body = await get(port_of(bridge), path, *headers, method=method)
        assert (actual, reason in body) == (status, True), body
        assert sample(bridge, "bridge_connections", transport="websocket") == 0


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        *(
            (path, (), 200)
            for path in ("/", "/page.js", "/list.js", "/page.css", "/icon.svg", "/healthz", "/readyz", "/metrics")
        ),
        *((path, (), 200) for path in ("/schemas/", "/schemas/killmail.json", "/asyncapi.json", "/openapi.json")),
        ("/nothing", (), 404),
        ("/updates", (), 426),
        ("/updates?after=", (), 426),
        ("/updates?x=", (), 400),
        ("/metrics", ("Origin: https://evil.example",), 200),
        ("/updates", ("Origin: https://evil.example",), 403),
    ],
)
async def test_each_response_forbids_browsers_to_give_it_to_other_pages(
    broker: Broker, exchange: str, path: str, headers: tuple[str, ...], status: int
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        port = port_of(bridge)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join([f"GET {path} HTTP/1.1", f"Host: localhost:{port}", *headers, "", ""]).encode())
        head, _, _ = (await reader.read(-1)).decode().partition("\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert "\r\nCross-Origin-Resource-Policy: same-origin\r\n" in head
        assert "\r\nX-Content-Type-Options: nosniff\r\n" in head
        policies = [line for line in head.splitlines() if line.startswith("Content-Security-Policy: ")]
        assert [policy.endswith("frame-ancestors 'none'") for policy in policies] == [True]


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: http://localhost:8080",),
        ("Origin: http://127.0.0.1",),
        ("X-Forwarded-For: 10.1.2.3, 192.168.0.9",),
        ("Origin: https://kills.example.org",),
        ("Origin: HTTPS://Kills.example.org:443/",),
        ("Cookie: " + "c" * 16_000,),
    ],
    ids=["local-page", "loopback-page", "internal-proxy-chain", "allowed-origin", "other-spelling", "large-cookies"],
)
async def test_allowed_client_is_upgraded(broker: Broker, exchange: str, headers: tuple[str, ...]) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "allowed_origins": "https://kills.example.org"}
    async with running(broker.url, **flags) as bridge:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge))
        writer.write(request(port_of(bridge), headers=headers))
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        writer.close()
        await writer.wait_closed()


async def test_peer_outside_the_allowed_networks_is_refused(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", allowed_networks="10.0.0.0/8") as bridge:
        status, body = await get(port_of(bridge), "/updates", *UPGRADE)
        assert (status, b"ALLOWED_NETWORKS" in body) == (403, True)
        assert sample(bridge, "bridge_clients_refused_total", rule="peer") == 1


async def test_incomplete_request_gets_408_after_the_handshake_timeout(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", handshake_timeout="200ms") as bridge:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge))
        writer.write(b"GET /updates HTTP/1.1\r\nHost: local")
        async with asyncio.timeout(5):
            answer = await reader.read(-1)
        assert answer.startswith(b"HTTP/1.1 408 ")
        writer.close()
        await writer.wait_closed()
        await eventually("no handshake is pending", lambda: sample(bridge, "bridge_handshakes_pending") == 0)


async def test_client_of_another_network_is_refused_before_it_sends_anything(broker: Broker, exchange: str) -> None:
    flags = {"allowed_networks": "10.0.0.0/8", "handshake_timeout": "5m"}
    async with running(broker.url, exchanges=f"{exchange}=killmail", **flags) as bridge:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge))
        async with asyncio.timeout(LIMIT_S):
            assert (await reader.read(-1)).startswith(b"HTTP/1.1 403 ")
        writer.close()
        await writer.wait_closed()


async def test_other_method_with_a_body_gets_405(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        status, _ = await get(port_of(bridge), "/healthz", "Content-Length: 5", method="POST")
        assert status == 405


LARGE_BYTES = 1_000_000
TIMEOUT_S = 0.5
"""The handshake timeout, which also ends a response that the client does not read."""

PAUSE_S, READ_BYTES = 0.06, 16_384
"""A client that reads READ_BYTES after each pause of PAUSE_S takes more than seven timeouts to read LARGE_BYTES."""


@asynccontextmanager
async def serving_a_large_document(
    broker: Broker, exchange: str, folder: Path, *, tls: bool
) -> AsyncIterator[tuple[Bridge, ssl.SSLContext | None]]:
    schemas = folder / "schemas"
    schemas.mkdir()
    (schemas / "large.json").write_text('{"description": "%s"}' % ("x" * LARGE_BYTES))
    flags = {"schemas": schemas, "handshake_timeout": f"{TIMEOUT_S}s"}
    if not tls:
        async with running(broker.url, exchanges=f"{exchange}=killmail", **flags) as bridge:
            yield bridge, None
        return
    async with secure(broker, exchange, folder, **flags) as (bridge, chain):
        yield bridge, ssl.create_default_context(cafile=chain)


@contextmanager
def requesting_it(port: int, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    """Requests the large document, with a small receive buffer.

    The socket blocks, so this function must run in a thread.
    """
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
        plain.settimeout(LIMIT_S)
        plain.connect(("127.0.0.1", port))
        with context.wrap_socket(plain, server_hostname="limits") if context else plain as client:
            client.sendall(b"GET /schemas/large.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            yield client


def read_slowly(port: int, context: ssl.SSLContext | None) -> tuple[float, bytes]:
    """Returns the duration and the response."""
    with requesting_it(port, context) as client:
        began_s, answer = time.monotonic(), b""
        while piece := client.recv(READ_BYTES):
            answer += piece
            time.sleep(PAUSE_S)
        return time.monotonic() - began_s, answer


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_client_that_reads_a_page_slowly_gets_all_of_it(
    broker: Broker, exchange: str, tmp_path: Path, *, tls: bool
) -> None:
    async with serving_a_large_document(broker, exchange, tmp_path, tls=tls) as (bridge, context):
        took_s, answer = await asyncio.to_thread(read_slowly, port_of(bridge), context)
        assert took_s > 4 * TIMEOUT_S, "the client was not slow"
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
        assert len(body) > LARGE_BYTES
        await eventually("no handshake is pending", lambda: sample(bridge, "bridge_handshakes_pending") == 0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_client_that_does_not_read_its_page_is_dropped(
    broker: Broker, exchange: str, tmp_path: Path, *, tls: bool
) -> None:
    async with serving_a_large_document(broker, exchange, tmp_path, tls=tls) as (bridge, context):
        over = threading.Event()

        def read_nothing() -> int:
            with requesting_it(port_of(bridge), context) as client:
                assert over.wait(LIMIT_S)
                try:
                    return sum(map(len, iter(lambda: client.recv(READ_BYTES), b"")))
                except ConnectionError:
                    return 0

        reading = asyncio.create_task(asyncio.to_thread(read_nothing))
        await eventually("the response is pending", lambda: sample(bridge, "bridge_handshakes_pending") == 1)
        await eventually("the client is dropped", lambda: sample(bridge, "bridge_handshakes_pending") == 0)
        over.set()
        assert await reading < LARGE_BYTES
