"""If clients don't read large updates, the bridge keeps only its log, and one piece of an update for each client."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.certificates import certificate
from tests.support.clients import RawClient, request
from tests.support.killmail import killmail
from tests.support.process_stats import MB, Memory, metric, rss_bytes
from tests.support.publishing import publish
from tests.support.running import bridge_process
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aio_pika.abc import AbstractConnection

    from tests.support.broker.find import Broker

pytestmark = pytest.mark.slow

LOG_BYTES = 16 * MB
PIECE_BYTES = 16384
UPDATE_BYTES = 3_900_000
SPARE_BYTES = 30 * MB
"""Memory for an update on its way from the broker to the log, and for one piece of an update for each client."""

LIMIT_S = 60.0


def large(number: int) -> dict[str, object]:
    """Returns a killmail whose update is about 3.9 MB long."""
    return killmail(number, padding="x" * UPDATE_BYTES)


@contextmanager
def silent_client(port: int, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    """Connects a WebSocket client that reads only the answer to its handshake."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        if context is not None:
            client = context.wrap_socket(client, server_hostname="127.0.0.1")  # noqa: PLW2901 - it takes over the socket
        with client:
            client.sendall(request(port))
            head = b""
            while b"\r\n\r\n" not in head:
                byte = client.recv(1)
                assert byte, head
                head += byte
            assert head.startswith(b"HTTP/1.1 101 "), head
            yield client


async def growth(memory: Memory, port: int, lagging: int, context: ssl.SSLContext | None) -> int:
    """Waits until exactly `lagging` clients lag, and returns by how many bytes the bridge has grown."""

    async def are_behind() -> bool:
        memory.look()
        return await metric(port, 'bridge_connections_lagging{transport="websocket"}', context) == lagging

    await eventually("the clients lag", are_behind, limit_s=LIMIT_S)
    return memory.look()


async def test_large_update_takes_a_piece_of_memory_for_each_client_of_tls_that_does_not_read(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path, "bridge")
    context = ssl.create_default_context(cafile=chain)
    count = 500
    settings = {"EXCHANGES": f"{exchange}=killmail", "TLS_CERTIFICATE": str(chain), "TLS_KEY": str(key)}
    async with bridge_process(broker.url, **{f"BRIDGE_{name}": text for name, text in settings.items()}) as process:
        await process.consuming()
        port = await process.port()
        with ExitStack() as clients:
            for _ in range(count):
                await asyncio.to_thread(clients.enter_context, silent_client(port, context))
            memory = Memory(process.process.pid)
            await publish(amqp, exchange, large(1))
            grown = await growth(memory, port, count, context)
            assert grown < LOG_BYTES + SPARE_BYTES, f"{grown / MB:.0f} MiB"
            # Further updates make the log drop the first update, while each client is in the middle of it.
            for number in range(2, 8):
                await publish(amqp, exchange, large(number))
            grown = await growth(memory, port, 0, context)
            assert await metric(port, 'bridge_evictions_total{reason="too-slow"}', context) == count
            assert grown < LOG_BYTES + SPARE_BYTES, f"{grown / MB:.0f} MiB"


async def test_client_that_stalls_keeps_no_update_in_memory_that_the_log_has_dropped(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Each client connects before a different update, and stops in the middle of this update."""
    count = 40
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        port = await process.port()
        with ExitStack() as clients:
            memory = Memory(process.process.pid)
            for number in range(count):
                clients.enter_context(silent_client(port, None))
                await publish(amqp, exchange, large(number))
                await eventually("the update is sent", functools.partial(_updates, port, number + 1))
                memory.look()
            assert memory.look() < LOG_BYTES + SPARE_BYTES + count * PIECE_BYTES, f"{memory.look() / MB:.0f} MiB"


async def _updates(port: int, count: int) -> bool:
    return await metric(port, 'bridge_updates_total{type="killmail"}') == count


async def test_memory_of_large_updates_is_given_back(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        port = await process.port()
        memory = Memory(process.process.pid)
        clients = [await RawClient.open(port) for _ in range(20)]
        for number in range(10):
            await publish(amqp, exchange, large(number))
            await asyncio.gather(*(client.text() for client in clients))
        for client in clients:
            await client.close()
        await eventually("the connections are closed", lambda: _connections(port, 0))
        kept = rss_bytes(process.process.pid) - memory.before
        assert kept < LOG_BYTES + 4 * MB, f"{kept / MB:.0f} MiB"


async def _connections(port: int, count: int) -> bool:
    return await metric(port, 'bridge_connections{transport="websocket"}') == count
