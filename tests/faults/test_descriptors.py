"""If file descriptors run out and become free again, connected clients lose nothing and the bridge needs no restart."""

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractConnection

from bridge.server.listeners.acceptor import SPARE_DESCRIPTORS
from bridge.server.listeners.descriptors import OWN_DESCRIPTORS
from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import TEXT, RawClient, close_all, close_code, collectors, request
from tests.support.healthy import COUNT, healthy_clients
from tests.support.killmail import killmail
from tests.support.process_stats import cpu_s, descriptors, metric, sockets
from tests.support.proxy import proxy
from tests.support.publishing import publish
from tests.support.running import COMMAND, BridgeProcess, bridge_process
from tests.support.waiting import eventually

LIMIT = 160
CAPACITY = LIMIT - OWN_DESCRIPTORS
OVERFLOW = CAPACITY // 4
CONNECTIONS = CAPACITY - OVERFLOW
PRESSING = 200
"""The number of clients that connect at once while there are too few descriptors."""

WAITING = 50
"""The number of clients that connect while no descriptor is free."""

CPU_SHARE = 0.5
"""The maximum share of a core that the bridge uses while no descriptor is free. A busy loop uses a whole core."""

SHORT = "file descriptors exhausted; accepting paused"
AGAIN = "file descriptors available; accepting resumed"


def count(process: BridgeProcess, event: str) -> int:
    """Returns the number of log lines with this event."""
    return sum(1 for line in process.lines if line["event"] == event)


async def fate(port: int) -> tuple[str, asyncio.StreamWriter | None]:
    """Connects a client, and returns what happens to it: "served", "dropped", or a close code.

    The connection stays open.
    """
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return "dropped", None  # the bridge ended the connection before `open_connection` returned
    try:
        writer.write(request(port))
        await reader.readuntil(b"\r\n\r\n")
        first, _, *payload = await reader.readexactly(4)
    except (asyncio.IncompleteReadError, ConnectionError):
        return "dropped", writer
    return ("served" if first & 15 == TEXT else str(close_code(bytes(payload)))), writer


@asynccontextmanager
async def without_descriptors(process: BridgeProcess, limit: int) -> AsyncIterator[None]:
    """Limits the process to descriptors below `limit`."""
    pid = process.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def test_descriptors_that_run_out_and_become_free_cost_no_update(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Without free descriptors, the bridge continues, uses little processor time, and logs the shortage once.

    The bridge later accepts the waiting clients.
    """
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            # libuv keeps a spare descriptor for refusing clients. The limit is so low that libuv can't even open the
            # spare descriptor.
            async with without_descriptors(process, 5):
                early = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(WAITING)))
                await eventually("the shortage is logged", lambda: count(process, SHORT))
                waiting = asyncio.create_task(collectors(port, WAITING))
                before_s, since = cpu_s(pid), asyncio.get_running_loop().time()
                await stream.further(100)
                share = (cpu_s(pid) - before_s) / (asyncio.get_running_loop().time() - since)
                assert share <= CPU_SHARE, f"{share:.0%} of a processor"
                assert not waiting.done()
            late = await waiting
            assert (count(process, SHORT), count(process, AGAIN)) == (1, 1)
            assert await metric(port, "bridge_descriptors_exhausted_total") == 1
            await stream.further(20)
            await stream.verify()
            figures.record(
                "file descriptors run out, and become free again",
                f"logs it, accepts no clients ({share:.0%} of a core), then accepts the waiting ones",
                f"0 of {stream.published}",
            )
            close_all(late)
            for _, writer in early:
                writer.transport.abort()


async def test_broker_that_is_lost_while_descriptors_are_short_is_consumed_from_again(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """If the broker is lost while no descriptor is free, the bridge reconnects when a descriptor becomes free."""
    async with (
        proxy(broker.url) as tunnel,
        bridge_process(tunnel.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process,
    ):
        await tunnel.open()
        await process.consuming()
        port = await process.port()
        client = await RawClient.open(port)
        async with without_descriptors(process, 5):
            # To accept this client, the bridge needs a descriptor, so it notices the shortage.
            _, waiting = await asyncio.open_connection("127.0.0.1", port)
            await eventually("the shortage is logged", lambda: count(process, SHORT))
            tunnel.cut()
            await eventually("the broker is lost", lambda: count(process, "broker lost"))
        waiting.transport.abort()
        await eventually("the bridge consumes again", lambda: count(process, "broker recovered"))
        await publish(amqp, exchange, killmail(1))
        assert b'"killmailId":1,' in await client.text()
        await client.close()


async def test_clients_alone_cannot_use_up_the_descriptors(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """If there are too few descriptors for all allowed connections, further clients get the close code 1013.

    If even more clients connect, the bridge drops and counts them.
    """
    command = ("prlimit", f"--nofile={LIMIT}:{LIMIT}", *COMMAND)
    async with bridge_process(broker.url, command=command, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        [warning] = [line for line in process.lines if "descriptors" in line]
        assert (warning["descriptors"], warning["connections"]) == (LIMIT, CONNECTIONS)
        port, pid = await process.port(), process.process.pid
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            before = sockets(pid)
            fates = await asyncio.gather(*(fate(port) for _ in range(PRESSING)))
            found = Counter(what for what, _ in fates)
            assert found == {"served": CONNECTIONS - COUNT, "1013": OVERFLOW, "dropped": PRESSING - CAPACITY + COUNT}
            assert descriptors(pid) <= LIMIT - SPARE_DESCRIPTORS
            await stream.further(20)
            for _, writer in fates:
                if writer is not None:
                    writer.transport.abort()
            await eventually("all connections are closed", lambda: sockets(pid) == before)
            assert await metric(port, 'bridge_clients_refused_total{rule="full"}') == found["dropped"]
            assert await metric(port, 'bridge_evictions_total{reason="full"}') == found["1013"]
            assert await metric(port, "bridge_descriptors_exhausted_total") == 0
            assert count(process, "connection limit exceeded; dropping new connections") == 1
            assert process.logged("accepting new connections again")
            assert process.logged(SHORT) is None
            await stream.verify()
