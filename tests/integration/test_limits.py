"""The limits for clients: on all connections, on the connections from each address, and on incomplete requests.

Tests that depend on the event loop's transports are in `test_transports.py`.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection
from structlog.testing import capture_logs

from bridge.app import Bridge
from bridge.server import server
from bridge.server.access.log_limiter import MAX_LINES
from bridge.server.http.request import MAX_HEAD_BYTES
from bridge.server.listeners.descriptors import MAX_OVERFLOW
from bridge.server.transport.tcp import PeerName
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.clients import PENDING, RawClient, distrust, read_all, request, silent_clients
from tests.support.namespaces import NEAR, island
from tests.support.running import bridge_process, pending, port_of, running, sample, secure
from tests.support.waiting import eventually

pytestmark = module_loop.MARK
amqp, exchange = module_loop.amqp, module_loop.exchange


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(broker: Broker, amqp: AbstractConnection) -> AsyncIterator[Bridge]:
    """A bridge with the default settings, for all tests that need no other settings."""
    async with (
        module_loop.own(amqp, "exchange") as name,
        running(broker.url, exchanges=f"{name}=killmail") as bridge,
    ):
        yield bridge


@pytest.fixture
def few_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_HANDSHAKES", PENDING)


@pytest.mark.usefixtures("few_pending")
async def test_oldest_client_without_a_request_is_dropped_for_a_new_one(shared: Bridge) -> None:
    """Silent clients don't keep others out: the bridge drops the oldest silent client and serves a new client."""
    before = sample(shared, "bridge_clients_refused_total", rule="pending")
    async with silent_clients(port_of(shared), PENDING) as silent:
        await eventually("all requests are pending", lambda: pending(shared) == PENDING)
        client = await RawClient.open(port_of(shared))
        assert await read_all(silent[0]) == b""
        assert pending(shared) == PENDING - 1
        assert sample(shared, "bridge_clients_refused_total", rule="pending") == before + 1
        # The other silent clients are still connected.
        silent[1][1].write(request(port_of(shared)))
        assert (await silent[1][0].readline()).startswith(b"HTTP/1.1 101 ")
        await client.close()
    await eventually(
        "no connection is left",
        lambda: pending(shared) == sample(shared, "bridge_connections", transport="websocket") == 0,
    )


@pytest.mark.usefixtures("few_pending")
async def test_clients_without_a_request_are_kept_up_to_the_limit(shared: Bridge) -> None:
    before = sample(shared, "bridge_clients_refused_total", rule="pending")
    async with silent_clients(port_of(shared), PENDING) as connected:
        await eventually("all requests are pending", lambda: pending(shared) == PENDING)
        for reader, writer in connected:
            writer.write(request(port_of(shared)))
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        assert sample(shared, "bridge_clients_refused_total", rule="pending") == before


@pytest.mark.parametrize("excess", [0, 1])
async def test_request_of_the_maximum_size_is_accepted_and_a_larger_one_is_refused(shared: Bridge, excess: int) -> None:
    before = sample(shared, "bridge_clients_refused_total", rule="size")
    head = request(port_of(shared), headers=["X-A: " + "a" * 12_000, "X-B: " + "b" * 12_000, "X-C: "])
    padded = head[:-4] + b"c" * (MAX_HEAD_BYTES - len(head) + excess) + b"\r\n\r\n"
    async with silent_clients(port_of(shared), 1) as [(reader, writer)]:
        writer.write(padded)
        assert (await reader.readline())[9:12] == (b"431" if excess else b"101")
    assert sample(shared, "bridge_clients_refused_total", rule="size") == before + excess


@pytest.mark.parametrize(
    ("header", "limit"),
    [
        ("Cookie: " + "a" * 16_385, b"at most 16384 bytes. If a browser sent it, delete the cookies of this host.\n"),
        ("\r\n".join(["X-A: b"] * 130), b"A request may have at most 128 headers.\n"),
    ],
    ids=["long line", "many headers"],
)
async def test_request_with_a_long_line_or_many_headers_is_refused_with_the_limit(
    shared: Bridge, header: str, limit: bytes
) -> None:
    async with silent_clients(port_of(shared), 1) as [connection]:
        connection[1].write(request(port_of(shared), headers=[header]))
        response = await read_all(connection)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert response.endswith(limit)


async def test_tls_client_of_a_plain_port_is_refused_with_a_hint_in_the_log(shared: Bridge) -> None:
    with capture_logs() as logged, pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
        await asyncio.to_thread(distrust, port_of(shared))
    refused = [line for line in logged if line["event"] == "client refused"]
    assert [(line["rule"], line["detail"]) for line in refused] == [
        ("malformed", "This port does not use TLS: use ws:// and http://.")
    ]


async def test_client_of_a_full_bridge_replaces_one_without_a_request(broker: Broker, exchange: str) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1, handshake_timeout="5m") as bridge,
        silent_clients(port_of(bridge), 1 + MAX_OVERFLOW) as silent,
    ):
        await eventually("all requests are pending", lambda: pending(bridge) == 1 + MAX_OVERFLOW)
        client = await RawClient.open(port_of(bridge))
        assert await read_all(silent[0]) == b""
        await client.close()


async def test_clients_far_beyond_the_limit_are_dropped_without_an_answer(broker: Broker, exchange: str) -> None:
    """A full bridge answers 256 clients with the close code 1013, and drops further clients.

    The bridge logs dropped clients only once, but counts all of them.
    """
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        with capture_logs() as logged:
            # The clients that got 1013 do not close their connections.
            clients = [await RawClient.open(port_of(bridge)) for _ in range(1 + MAX_OVERFLOW)]
            async with silent_clients(port_of(bridge), 3) as beyond:
                for each in beyond:
                    assert await read_all(each) == b""
        assert sample(bridge, "bridge_clients_refused_total", rule="full") == 3
        assert [line["log_level"] for line in logged if "dropping" in line["event"]] == ["warning"]
        for client in clients:
            await client.close()
        await eventually("no connection is left", lambda: len(bridge._server._connections) == 0)
        with capture_logs() as logged:
            await (await RawClient.open(port_of(bridge))).close()
        assert [line["dropped"] for line in logged if line["event"] == "accepting new connections again"] == [3]


async def test_bridge_that_is_repeatedly_full_logs_this_ten_times_a_minute(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        server, peername = bridge._server, PeerName("127.0.0.1", 54321)
        with capture_logs() as logged:
            for _ in range(3 * MAX_LINES):
                server._client_log._dropped = 0
                server._connections.update(dict.fromkeys(range(1 + MAX_OVERFLOW)))  # type: ignore[arg-type]  # only counted
                ours, theirs = socket.socketpair()
                with theirs:
                    server.on_accept(ours, peername)
                server._connections.clear()
                server._admit()
        events = Counter(line["event"] for line in logged)
        assert set(events.values()) == {MAX_LINES}
        assert len(events) == 2


@pytest.fixture
def limited_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the limit for each address apply to loopback."""
    monkeypatch.setattr("bridge.server.access.address_limit._is_loopback", lambda address: False)
    monkeypatch.setattr("bridge.server.access.address_limit.MAX_ADDRESS_OVERFLOW", 2)


@pytest.mark.usefixtures("limited_loopback")
async def test_client_above_the_limit_of_its_address_gets_1013_and_further_ones_are_dropped(
    broker: Broker, exchange: str
) -> None:
    limits = {"exchanges": f"{exchange}=killmail", "max_connections_per_address": 2}
    async with running(broker.url, **limits) as bridge:
        clients = [await RawClient.open(port_of(bridge)) for _ in range(2)]
        excess = [await RawClient.open(port_of(bridge)) for _ in range(2)]
        with capture_logs() as logged:
            async with silent_clients(port_of(bridge), 1) as [beyond]:
                assert await read_all(beyond) == b""
        assert [(line["rule"], line["peer"]) for line in logged] == [("address-limit", "127.0.0.1")]
        assert [await each.closed() for each in excess] == [1013, 1013]
        assert sample(bridge, "bridge_evictions_total", reason="address-limit") == 2
        assert sample(bridge, "bridge_connections", transport="websocket") == 2
        for each in [*clients, *excess]:
            await each.close()
        await eventually("no connection is left", lambda: len(bridge._server._address_limit) == 0)
        await (await RawClient.open(port_of(bridge))).close()


async def test_limit_of_each_address_applies_to_other_machines_and_not_to_loopback(
    broker: Broker, exchange: str
) -> None:
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HOST": "0.0.0.0",
        "BRIDGE_MAX_CONNECTIONS_PER_ADDRESS": "2",
    }
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        port = await process.port()

        async def status() -> tuple[bytes, int]:
            """Connects from the other machine.

            Returns the status of the response, and the close code, or 0 if there is none.
            """
            client_socket = await net.connect_from_outside(port)
            client_socket.settimeout(0)
            reader, writer = await asyncio.open_connection(sock=client_socket)
            kept.append(writer)
            writer.write(request(port, host=NEAR))
            head = await reader.readuntil(b"\r\n\r\n")
            if len(kept) <= 2:
                return head[9:12], 0
            first, size = await reader.readexactly(2)
            assert first == 0x88
            return head[9:12], int.from_bytes((await reader.readexactly(size))[:2], "big")

        kept: list[asyncio.StreamWriter] = []
        assert [await status() for _ in range(3)] == [(b"101", 0), (b"101", 0), (b"101", 1013)]
        clients = [await RawClient.open(port) for _ in range(5)]
        for client in clients:
            await client.close()
        for writer in kept:
            writer.transport.abort()


async def test_client_of_another_network_is_dropped_before_the_tls_handshake(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path, allowed_networks="10.0.0.0/8") as (bridge, _):
        async with silent_clients(port_of(bridge), 1) as [connection]:
            assert await read_all(connection) == b""
        assert sample(bridge, "bridge_clients_refused_total", rule="peer") == 1
