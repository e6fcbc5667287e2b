"""What the clients of all bridges get if bridges are killed, stopped or replaced under load."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import CLOSE, TEXT, ClosingCollector, close_all, close_code, collectors, server_frames
from tests.support.killmail import killmail
from tests.support.proxy import Direction, Proxy, proxy
from tests.support.publishing import depth
from tests.support.releases_marker import release_of, version_of
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

MAX_UNCONFIRMED = 50
"""The maximum number of events without a confirm. This number allows many hundreds of events per second."""

PREFETCH = 100


class Stream:
    """Publishes numbered persistent killmails without a pause.

    Records the numbers of confirmed and refused killmails.
    """

    def __init__(self, exchange: aio_pika.abc.AbstractExchange) -> None:
        self._exchange = exchange
        self._number = 0
        self._stopping = False
        self.confirmed: list[int] = []
        self.refused: set[int] = set()
        """The numbers of the events that the broker answered with a nack.

        An event that got a nack may still be in some of the queues.
        """
        self._tasks = [asyncio.create_task(self._run()) for _ in range(MAX_UNCONFIRMED)]

    async def _run(self) -> None:
        while not self._stopping:
            self._number = number = self._number + 1
            body = orjson.dumps(killmail(number))
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            try:
                await self._exchange.publish(message, routing_key="")
            except aio_pika.exceptions.DeliveryError:
                self.refused.add(number)
            else:
                self.confirmed.append(number)

    async def further(self, count: int) -> None:
        """Waits until `count` more events are confirmed."""
        enough = len(self.confirmed) + count
        await eventually("more events are confirmed", lambda: len(self.confirmed) >= enough)

    async def stop(self) -> None:
        """Stops publishing, and waits for the confirms of all published events."""
        self._stopping = True
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def streaming(amqp: AbstractConnection, exchange: str) -> AsyncIterator[Stream]:
    """Provides a `Stream` that publishes killmails to an existing exchange."""
    channel = await amqp.channel(publisher_confirms=True)
    stream = Stream(await channel.get_exchange(exchange, ensure=False))
    try:
        yield stream
    finally:
        await stream.stop()
        await channel.close()


class Client:
    """A client that is connected to one bridge and keeps all updates that it gets."""

    def __init__(self, collector: ClosingCollector) -> None:
        self._collector = collector

    @classmethod
    async def of(cls, process: BridgeProcess) -> "Client":
        """Waits until the bridge listens, and connects a client to it."""
        [collector] = await collectors(await process.port(), 1, ClosingCollector)
        assert isinstance(collector, ClosingCollector)
        return cls(collector)

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        return server_frames(bytes(self._collector.received))

    @property
    def numbers(self) -> list[int]:
        """The numbers of the killmails, in the order of their arrival."""
        return [orjson.loads(payload)["data"]["killmailId"] for opcode, payload in self.frames if opcode == TEXT]

    def has(self, number: int) -> bool:
        """Whether the killmail with this number has arrived."""
        return b'"killmailId":%d,' % number in self._collector.received

    async def ended(self) -> None:
        """Waits until the connection has ended.

        The client then has all updates that the bridge has sent to it.
        """
        await self._collector.lost

    def close(self) -> None:
        close_all([self._collector])


@asynccontextmanager
async def successor(broker: Broker, **variables: str) -> AsyncIterator[tuple[Proxy, Client]]:
    """Starts a bridge with a client. The bridge can't reach the broker until the test opens the proxy.

    The client must connect before the bridge consumes, because the bridge then sends the events of its queue at once.
    """
    async with proxy(broker.url) as tunnel, bridge_process(tunnel.url, BRIDGE_WAIT="true", **variables) as process:
        client = await Client.of(process)
        yield tunnel, client
        client.close()


def named(exchange: str, queue: str) -> dict[str, str]:
    return {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_QUEUE": queue,
        "BRIDGE_PREFETCH": str(PREFETCH),
    }


def twice(*received: list[int]) -> list[int]:
    """Returns the numbers that were received more than once."""
    return [
        number for number, count in Counter(number for numbers in received for number in numbers).items() if count > 1
    ]


async def delivered(amqp: AbstractConnection, queue: str, stream: Stream, client: Client) -> None:
    """When the stream of events has stopped, waits until the client has the last event and the queue is empty."""
    last = max(stream.confirmed)
    await eventually("the last event arrives", lambda: client.has(last))

    async def empty() -> bool:
        return await depth(amqp, queue) == 0

    await eventually("the queue is empty", empty)


async def handed_over(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, end: signal.Signals
) -> tuple[list[int], Client, Client, int]:
    """Ends a bridge under load, and lets another bridge take over its queue. Waits until all events are acknowledged.

    Returns the confirmed events, the clients of the two bridges, and the exit code of the bridge that ended.
    """
    variables = named(exchange, queue)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(bridge_process(broker.url, **variables))
        await first.consuming()
        a = await Client.of(first)
        stack.callback(a.close)
        tunnel, b = await stack.enter_async_context(successor(broker, **variables))
        stream = await stack.enter_async_context(streaming(amqp, exchange))
        await stream.further(1000)
        await eventually("the first bridge is at work", lambda: a.has(500))
        first.process.send_signal(end)
        code = await first.ended()
        await a.ended()
        await stream.further(500)
        await tunnel.open()
        await stream.further(500)
        await stream.stop()
        await delivered(amqp, queue, stream, b)
        return stream.confirmed, a, b, code


def assert_all_arrived(confirmed: list[int], *clients: Client) -> None:
    """Checks that every confirmed event reached a client, and that no client got an event twice or out of order."""
    for client in clients:
        assert client.numbers == sorted(set(client.numbers))
    assert set(confirmed) - set(chain(*(client.numbers for client in clients))) == set()


async def test_next_bridge_gets_all_events_that_a_killed_bridge_had_not_acknowledged(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """With BRIDGE_QUEUE, a bridge is killed under load, and another bridge takes over its queue.

    Every confirmed event reaches a client of one of the bridges. Only events that the killed bridge had not
    acknowledged are delivered twice. Each client gets its updates once and in order.
    """
    confirmed, a, b, _ = await handed_over(broker, amqp, exchange, queue, signal.SIGKILL)
    assert_all_arrived(confirmed, a, b)
    doubled = twice(a.numbers, b.numbers)
    assert len(doubled) <= PREFETCH
    figures.record(
        "the bridge is killed (-9) under load, and another one takes its queue",
        "its unacknowledged events go to the clients of the other one",
        f"0 of {len(confirmed)}",
        f"{len(doubled)}, over both bridges' clients",
    )


@pytest.mark.slow
async def test_killed_bridge_with_acknowledgements_in_flight_repeats_at_most_the_prefetch(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The clients of the next bridge also get the events that the killed bridge had sent but not acknowledged.

    The number of events that arrive twice is at most the prefetch, and no confirmed event is missing.
    """
    variables = named(exchange, queue)
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(proxy(broker.url))
        await way.open()
        first = await stack.enter_async_context(bridge_process(way.url, **variables))
        await first.consuming()
        a = await Client.of(first)
        stack.callback(a.close)
        tunnel, b = await stack.enter_async_context(successor(broker, **variables))
        stream = await stack.enter_async_context(streaming(amqp, exchange))
        await eventually("the first bridge is at work", lambda: a.has(100))
        way.hold(Direction.UP)

        async def waits() -> bool:
            # A few events may be in the queue for a moment, even if the broker can still send them.
            return await depth(amqp, queue) > PREFETCH

        await eventually("the broker sends nothing more without an acknowledgement", waits)
        first.process.kill()
        await first.ended()
        await a.ended()
        way.cut()
        await tunnel.open()
        await stream.further(500)
        await stream.stop()
        await delivered(amqp, queue, stream, b)
    assert_all_arrived(stream.confirmed, a, b)
    assert 0 < len(twice(a.numbers, b.numbers)) <= PREFETCH


async def test_next_bridge_gets_exactly_the_events_that_a_stopped_bridge_did_not_send(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """With BRIDGE_QUEUE, a bridge gets SIGTERM under load, and another bridge takes over its queue.

    Every confirmed event reaches a client of exactly one of the bridges. The clients of the first bridge are closed
    with 1001.
    """
    confirmed, a, b, code = await handed_over(broker, amqp, exchange, queue, signal.SIGTERM)
    assert code == 0
    assert twice(a.numbers, b.numbers) == []
    assert a.numbers + b.numbers == sorted(confirmed)
    opcode, payload = a.frames[-1]
    assert (opcode, close_code(payload)) == (CLOSE, 1001)
    figures.record(
        "the bridge is stopped (SIGTERM) under load, and another one takes its queue",
        "sends and acknowledges its events, closes its clients with 1001",
        f"0 of {len(confirmed)}",
    )


async def test_two_bridges_on_one_exchange_both_deliver_everything_while_they_run(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """If each bridge has its own queue, each bridge delivers all events that are published while it consumes.

    One bridge delivers all events, although the other bridge is killed and started again meanwhile.

    RabbitMQ 4.3 refuses some events while it deletes the exclusive queue of the killed bridge.
    """
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail"}
    async with (
        bridge_process(broker.url, **variables) as steady,
        bridge_process(broker.url, **variables) as killed,
        AsyncExitStack() as stack,
    ):
        await steady.consuming()
        await killed.consuming()
        a, b = await Client.of(steady), await Client.of(killed)
        async with streaming(amqp, exchange) as stream:
            await stream.further(500)
            await eventually("the other bridge is at work", lambda: b.has(300))
            killed.process.send_signal(signal.SIGKILL)
            await killed.ended()
            await b.ended()
            tunnel, c = await stack.enter_async_context(successor(broker, **variables))
            await tunnel.open()
            await eventually("the bridge sends again", lambda: c.numbers)
            await stream.further(500)
        assert not stream.refused or release_of(version_of(broker.url)) == "4.3"
        everything = sorted(stream.confirmed)
        await eventually("all clients have the last event", lambda: a.has(everything[-1]) and c.has(everything[-1]))
        received = [[number for number in client.numbers if number not in stream.refused] for client in (a, b, c)]
        assert received[0] == everything
        assert received[1] == everything[: len(received[1])]
        assert received[2] == everything[-len(received[2]) :]
        assert len(b.numbers) >= 300
        assert len(c.numbers) >= 500
        for client in (a, b):
            client.close()
