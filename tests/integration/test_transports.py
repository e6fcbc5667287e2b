"""Handshakes and responses that end early, with asyncio and with uvloop, whose transports and TLS differ."""

import asyncio
import socket
import ssl
from pathlib import Path

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from structlog.testing import capture_logs
from websockets.asyncio.client import connect

from bridge.app import Bridge
from bridge.server import server
from bridge.server.handshake import MAX_DISCARDED_BYTES
from bridge.server.transport.tcp import RESET
from tests.support.broker.find import Broker
from tests.support.clients import PENDING, distrust, read_all, request, silent_clients
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import pending, port_of, running, sample, secure
from tests.support.waiting import eventually

pytestmark = pytest.mark.both_loops


async def write_forever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 4096)
        await writer.drain()


async def receive_all(client: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(client, 65536):
        pass


async def test_client_that_keeps_sending_after_its_response_is_dropped(broker: Broker, exchange: str) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail") as bridge,
        silent_clients(port_of(bridge), 1) as [connection],
    ):
        reader, writer = connection
        writer.write(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 405 ")
        writer.write(b"x" * MAX_DISCARDED_BYTES)
        assert pending(bridge) == 1
        with pytest.raises(ConnectionError):
            await write_forever(writer)
        await eventually("the client is not counted any more", lambda: pending(bridge) == 0)


async def test_kernel_keeps_no_bytes_for_a_client_that_does_not_read_its_page(broker: Broker, exchange: str) -> None:
    """When the bridge drops the client, the unsent bytes are discarded, so a later read ends with a reset."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", handshake_timeout="200ms") as bridge:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port_of(bridge)))
        with client:
            await loop.sock_sendall(client, b"GET /asyncapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually("the client is counted", lambda: pending(bridge) == 1)
            await eventually("the client is not counted any more", lambda: pending(bridge) == 0)
            with pytest.raises(ConnectionResetError):
                await receive_all(client)


# TLS


async def test_incomplete_tls_handshake_is_dropped_after_the_handshake_timeout(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path, handshake_timeout="300ms") as (bridge, _):
        with capture_logs() as logged:
            async with silent_clients(port_of(bridge), 3) as silent:
                silent[1][1].write(b"\x16\x03\x01\x02\x00")
                assert [await read_all(each) for each in silent] == [b"", b"", b""]
            await eventually("the clients are not counted any more", lambda: pending(bridge) == 0)
        assert sample(bridge, "bridge_clients_refused_total", rule="timeout") == 3
        assert {line["detail"] for line in logged} == {"No complete TLS handshake within 0.3 seconds."}


async def test_incomplete_tls_handshakes_do_not_exclude_other_clients(
    broker: Broker, exchange: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_HANDSHAKES", PENDING)
    async with (
        secure(broker, exchange, tmp_path) as (bridge, chain),
        silent_clients(port_of(bridge), 2 * PENDING) as silent,
    ):
        await eventually(
            "the first clients are dropped", lambda: sample(bridge, "bridge_clients_refused_total", rule="pending")
        )
        trust = ssl.create_default_context(cafile=chain)
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge), ssl=trust)
        writer.write(request(port_of(bridge)))
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        assert await read_all(silent[0]) == b""
        assert pending(bridge) <= PENDING
        writer.transport.abort()


async def test_client_without_tls_is_refused_and_the_log_has_the_reason(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        async with silent_clients(port_of(bridge), 1) as [connection]:
            with capture_logs() as logged:
                connection[1].write(request(port_of(bridge)))
                assert b"HTTP" not in await read_all(connection)
                await eventually("the client is not counted any more", lambda: pending(bridge) == 0)
        assert sample(bridge, "bridge_clients_refused_total", rule="tls") == 1
        [refusal] = [entry for entry in logged if entry["event"] == "client refused"]
        assert refusal["detail"] == "The client sent HTTP instead of TLS: use wss:// and https:// here."


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00"], ids=["nothing", "a part"])
@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
async def test_client_that_leaves_during_the_tls_handshake_is_counted_as_abandoned(
    broker: Broker, exchange: str, tmp_path: Path, sent: bytes, *, reset: bool
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        await leave(bridge, sent, reset=reset)
        assert sample(bridge, "bridge_clients_refused_total", rule="tls") == 0


@pytest.mark.parametrize("sent", [b"", b"GET /updates HT"], ids=["nothing", "a part"])
@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
async def test_client_that_leaves_before_its_request_is_complete_is_counted_as_abandoned(
    broker: Broker, exchange: str, sent: bytes, *, reset: bool
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await leave(bridge, sent, reset=reset)


async def test_client_that_leaves_after_its_tls_handshake_is_counted_as_abandoned(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, chain):
        trust = ssl.create_default_context(cafile=chain)
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge), ssl=trust)
        assert sample(bridge, "bridge_handshakes_abandoned_total") == 0
        writer.close()
        await eventually("the client is not counted any more", lambda: pending(bridge) == 0)
        assert sample(bridge, "bridge_handshakes_abandoned_total") == 1


async def leave(bridge: Bridge, sent: bytes, *, reset: bool) -> None:
    """Connects a client that sends `sent` and disconnects.

    Checks that the bridge counts an abandoned handshake and logs only debug lines.
    """
    with capture_logs() as logged:
        client = socket.create_connection(("127.0.0.1", port_of(bridge)))
        await eventually("the client is counted", lambda: pending(bridge) == 1)
        client.sendall(sent)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        await eventually("the client is not counted any more", lambda: pending(bridge) == 0)
    assert sample(bridge, "bridge_handshakes_abandoned_total") == 1
    assert {entry["log_level"] for entry in logged} == {"debug"}


async def test_log_names_a_client_that_does_not_trust_the_certificate(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        with capture_logs() as logged:
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.to_thread(distrust, port_of(bridge))
            await eventually(
                "the client is refused", lambda: sample(bridge, "bridge_clients_refused_total", rule="tls")
            )
        [refusal] = [entry for entry in logged if entry["event"] == "client refused"]
        assert "unknown ca" in str(refusal["detail"]).lower()


async def test_stop_closes_pending_tls_handshakes(broker: Broker, exchange: str, tmp_path: Path) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        silent = await asyncio.open_connection("127.0.0.1", port_of(bridge))
        await eventually("the client is counted", lambda: pending(bridge) == 1)
    assert await read_all(silent) == b""
    silent[1].transport.abort()


def upgrade_and_reset(port: int) -> None:
    """Sends a handshake, and resets the connection before the response arrives."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.sendall(request(port))


async def test_tls_clients_that_reset_after_their_request_do_not_affect_others(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, chain):
        port, context = port_of(bridge), ssl.create_default_context(cafile=chain)
        uri = f"wss://127.0.0.1:{port}/updates"
        async with connect(uri, ssl=context) as first, connect(uri, ssl=context) as second:
            for number in range(10):
                await asyncio.to_thread(upgrade_and_reset, port)
                await publish(amqp, exchange, killmail(number))
                for client in (first, second):
                    assert orjson.loads(await client.recv())["data"] == killmail(number)
            await eventually(
                "these connections are closed", lambda: sample(bridge, "bridge_connections", transport="websocket") == 2
            )
