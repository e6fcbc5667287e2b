"""The machine of a client vanishes: no FIN and no RST arrive, and the bridge must detect the loss."""

import asyncio
import ssl
import time
from pathlib import Path

import pytest
from aio_pika.abc import AbstractConnection

from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.broker.ports import LOOPBACK
from tests.support.certificates import certificate
from tests.support.clients import request
from tests.support.event_streams import StreamClient, stream_request
from tests.support.healthy import healthy_clients
from tests.support.killmail import killmail
from tests.support.namespaces import FAR, NEAR, island
from tests.support.process_stats import MB, Memory, metric, sockets
from tests.support.publishing import publish
from tests.support.running import bridge_process
from tests.support.waiting import eventually

IDLE_TIMEOUT_S, PING_INTERVAL_S = 2.0, 0.5

TICK_S = PING_INTERVAL_S / 4
"""The precision of the times that the bridge measures."""

GONE_LIMIT_S = 15.0
"""The longest time from the eviction until the client's descriptor is free.

The limit consists of 10 s for the answer to the close frame and a reserve.
"""


@pytest.mark.alone  # the test measures the time of the eviction with a precision of half a second
async def test_client_on_a_vanished_machine_is_evicted_as_idle_and_takes_no_more_resources(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A client that vanishes silently is evicted with 4009 within the idle timeout. Other clients lose nothing."""
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HOST": "0.0.0.0",
        "BRIDGE_IDLE_TIMEOUT": f"{IDLE_TIMEOUT_S}s",
        "BRIDGE_PING_INTERVAL": f"{PING_INTERVAL_S}s",
    }
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            before = sockets(pid)
            memory = Memory(pid)
            client = await net.connect_from_outside(port)
            with client:
                await asyncio.to_thread(client.sendall, request(port))
                received = 0
                while received < 5000:
                    received += len(await asyncio.to_thread(client.recv, 1000))
                assert sockets(pid) == before + 1
                await net.cut()
                since_s = time.monotonic()
                await eventually("the client is evicted", lambda: process.logged("client evicted"))
                took_s = time.monotonic() - since_s
                line = process.logged("client evicted")
                assert line is not None
                assert (line["reason"], line["code"]) == ("idle", 4009)
                assert str(line["peer"]).startswith(f"{FAR} port ")
                assert took_s <= IDLE_TIMEOUT_S + 4 * TICK_S
                await eventually(
                    "the client's descriptor is free", lambda: sockets(pid) == before, limit_s=GONE_LIMIT_S
                )
            assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 1
            assert memory.look() <= 4 * MB
            await stream.verify()
            figures.record(
                "a client's machine vanishes",
                f"closes the connection with 4009 (`BRIDGE_IDLE_TIMEOUT`, {IDLE_TIMEOUT_S:.0f} s here)",
                f"0 of {stream.published}, for the other clients",
            )


@pytest.mark.parametrize("secure", [False, True], ids=["TCP", "TLS"])
async def test_event_stream_to_a_vanished_machine_is_evicted_as_idle_and_takes_no_more_resources(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path, *, secure: bool
) -> None:
    """A client of Server-Sent Events sends nothing, so the kernel detects that the client acknowledges nothing."""
    chain, key = certificate(tmp_path, "vanished")
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HOST": "0.0.0.0",
        "BRIDGE_IDLE_TIMEOUT": f"{IDLE_TIMEOUT_S}s",
        "BRIDGE_PING_INTERVAL": f"{PING_INTERVAL_S}s",
        **({"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key)} if secure else {}),
    }
    context = ssl.create_default_context(cafile=chain) if secure else None
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        before = sockets(pid)
        connected = await net.connect_from_outside(port)
        connected.settimeout(0)
        reader, writer = await asyncio.open_connection(
            sock=connected, ssl=context, server_hostname=LOOPBACK if secure else None
        )
        client = await StreamClient.over(reader, writer, stream_request(port, host=NEAR))
        await publish(amqp, exchange, *map(killmail, range(20)))
        assert [(await client.update()).message["data"]["killmailId"] for _ in range(20)] == list(range(20))
        await net.cut()
        # Updates are on their way when the kernel gives up.
        number = 20
        while process.logged("client evicted") is None:
            await publish(amqp, exchange, killmail(number))
            number += 1
        line = process.logged("client evicted")
        assert line is not None
        assert (line["reason"], line["code"]) == ("idle", 4009)
        assert str(line["peer"]).startswith(f"{FAR} port ")
        await eventually("the client's descriptor is free", lambda: sockets(pid) == before)
        assert await metric(port, 'bridge_evictions_total{reason="idle"}', context) == 1
        assert await metric(port, 'bridge_connections{transport="sse"}', context) == 0
        client.abort()
