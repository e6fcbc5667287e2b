"""The machine of a client vanishes: no FIN and no RST arrive, and the bridge must detect the loss."""

import asyncio
import time

import pytest
from aio_pika.abc import AbstractConnection

from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import request
from tests.support.healthy import healthy_clients
from tests.support.namespaces import FAR, island
from tests.support.process_stats import MB, Memory, metric, sockets
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
