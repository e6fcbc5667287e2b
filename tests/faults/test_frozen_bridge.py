"""If a bridge was frozen, for example in a paused container, it does not evict the clients that seemed silent."""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.clients import CLOSE, PING, PONG, Collector, RawClient, client_frame, collectors, server_frames
from tests.support.exactly_once import assert_exactly_once
from tests.support.killmail import killmail
from tests.support.process_stats import metric
from tests.support.publishing import publish
from tests.support.resuming import KINDS, have_all, resuming_clients
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

NO_BROKER = "amqp://guest:guest@127.0.0.1:1/"
"""A broker that can't be reached. Clients can connect while the bridge waits for a broker."""

IDLE_TIMEOUT_S, PING_INTERVAL_S = 1.2, 0.4

FREEZE_S = 1.8
"""The duration of a freeze. A freeze is longer than the idle timeout plus one tick of tolerance."""

CROWD = 1200
"""If pongs counted towards the read limit for all clients together, the pongs of this many clients would exceed it."""


class Answering(Collector):
    """A client that answers each ping, as every library does, and counts the pings."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.pings = 0
        self.closed = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Without a broker, the bridge sends only pings and close frames, and each arrives in one piece.
        for opcode, payload in server_frames(bytes(self.received)):
            self.closed = self.closed or opcode == CLOSE
            if opcode == PING and self.transport is not None:
                self.pings += 1
                self.transport.write(client_frame(PONG, payload))
        self.received.clear()


async def answering(port: int, count: int) -> list[Answering]:
    """Connects `count` clients."""
    return [each for each in await collectors(port, count, Answering) if isinstance(each, Answering)]


def all_pinged(clients: list[Answering], before: list[int]) -> bool:
    """Whether each client has got pings since `before`, which has the number of pings for each client at that time."""
    return all(client.pings > count for client, count in zip(clients, before, strict=True))


@asynccontextmanager
async def frozen(process: BridgeProcess, seconds: float = FREEZE_S) -> AsyncIterator[None]:
    """Stops the process of the bridge for at least `seconds`."""
    process.process.send_signal(signal.SIGSTOP)
    try:
        yield
        until_s = time.monotonic() + seconds
        await eventually("the bridge has not run for long", lambda: time.monotonic() >= until_s)
    finally:
        process.process.send_signal(signal.SIGCONT)


async def test_clients_stay_when_the_bridge_wakes_and_one_that_is_silent_has_a_whole_idle_timeout() -> None:
    variables = {"BRIDGE_IDLE_TIMEOUT": f"{IDLE_TIMEOUT_S}s", "BRIDGE_PING_INTERVAL": f"{PING_INTERVAL_S}s"}
    async with bridge_process(NO_BROKER, BRIDGE_WAIT="true", **variables) as process:
        port = await process.port()
        clients = await answering(port, 20)
        await eventually("all clients are pinged", lambda: all(client.pings for client in clients))
        silent = await RawClient.open(port)
        async with frozen(process):
            pass
        woken_s = time.monotonic()
        before = [client.pings for client in clients]
        assert await silent.closed() == 4009
        assert time.monotonic() - woken_s >= IDLE_TIMEOUT_S
        await eventually("the other clients are pinged again", lambda: all_pinged(clients, before))
        assert not any(client.closed or client.lost.done() for client in clients)
        assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 1
        assert process.logged("event loop stalled: idle timeouts start again") is not None
        await silent.close()


async def test_clients_stay_when_the_bridge_is_frozen_again_and_again() -> None:
    variables = {"BRIDGE_IDLE_TIMEOUT": "1s", "BRIDGE_PING_INTERVAL": "300ms"}
    async with bridge_process(NO_BROKER, BRIDGE_WAIT="true", **variables) as process:
        port = await process.port()
        clients = await answering(port, 5)
        for _ in range(2):
            async with frozen(process, 1.3):
                before = [client.pings for client in clients]
            await eventually("all clients are pinged", partial(all_pinged, clients, before))
        assert not any(client.closed or client.lost.done() for client in clients)
        assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 0


async def test_clients_that_answer_the_pings_of_a_resumed_bridge_are_not_throttled() -> None:
    """All clients are silent while the bridge is frozen, and one keepalive pass then pings all clients."""
    variables = {"BRIDGE_IDLE_TIMEOUT": "60s", "BRIDGE_PING_INTERVAL": "1200ms"}
    async with bridge_process(NO_BROKER, BRIDGE_WAIT="true", **variables) as process:
        port = await process.port()
        clients = await answering(port, CROWD)
        async with frozen(process, 1.3):
            before = [client.pings for client in clients]
        await eventually("all clients are pinged", lambda: all_pinged(clients, before))
        assert await metric(port, "bridge_client_throttles_total") == 0
        assert process.logged("client throttled") is None
        for client in clients:
            assert client.transport is not None
            client.transport.abort()


async def test_clients_of_each_transport_stay_and_get_what_was_published_while_the_bridge_was_frozen(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """The clients of a frozen bridge need no reconnect, and a request that waits gets its response late."""
    variables = {"BRIDGE_IDLE_TIMEOUT": f"{IDLE_TIMEOUT_S}s", "BRIDGE_PING_INTERVAL": f"{PING_INTERVAL_S}s"}
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables) as process:
        await process.consuming()
        async with resuming_clients(await process.port(), 3, *KINDS.values()) as clients:
            await publish(amqp, exchange, *map(killmail, range(5)))
            await have_all(clients, set(range(5)))
            async with frozen(process):
                await publish(amqp, exchange, *map(killmail, range(5, 10)))
            await have_all(clients, set(range(10)))
            assert_exactly_once(clients, set(range(10)))
            assert [client.reconnects for client in clients] == [0] * len(clients)
