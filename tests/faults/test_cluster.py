"""A RabbitMQ cluster in which whichever node leads the stream is killed: what the stream has, and what clients get."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aio_pika
import orjson
import pytest

from bridge.demo.broker import NoBroker, find_server
from tests.faults.test_several_bridges import BETWEEN, CLIENTS, on_stream, settled
from tests.support import figures
from tests.support.broker import say, unavailable
from tests.support.cluster import SIZE, Cluster
from tests.support.exactly_once import SYSTEMS, ConfirmingFetcher, confirming_fetcher, resuming_clients
from tests.support.fleet import fleet
from tests.support.publishing import observer
from tests.support.running import unique

READ_LIMIT_S = 30.0

PREFETCH = 500


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A real RabbitMQ of three nodes, which a test may kill and start again; shared, so leave all of them running."""
    try:
        nodes = Cluster(find_server(say, may_install=False))
    except NoBroker as error:
        unavailable(str(error))
    nodes.start()
    yield nodes
    nodes.stop()


@asynccontextmanager
async def names(cluster: Cluster) -> AsyncIterator[tuple[str, str]]:
    """Of an exchange and a stream, both of which are removed."""
    exchange, stream = unique("exchange"), unique("stream")
    try:
        yield exchange, stream
    finally:
        async with observer(cluster.members[0].url) as amqp:
            channel = await amqp.channel()
            await channel.queue_delete(stream)
            await channel.exchange_delete(exchange)


async def leaders_killed_in_turn(cluster: Cluster, stream: str, fetcher: ConfirmingFetcher) -> set[str]:
    """The stream's leader is killed under load and started again, as often as there are nodes. Their names."""
    killed = set()
    for _ in range(SIZE):
        await cluster.replicated(stream)
        await fetcher.further(BETWEEN)
        leader = await cluster.leader(stream)
        leader.kill()
        killed.add(leader.name)
        await fetcher.further(BETWEEN)
        await asyncio.to_thread(leader.start)
    await cluster.replicated(stream)
    await fetcher.further(BETWEEN)
    return killed


async def read(amqp_url: str, stream: str, wanted: set[int]) -> list[int]:
    """The numbers of all killmails in a stream from its beginning, until all that are wanted have come."""
    found: list[int] = []
    missing = set(wanted)
    async with observer(amqp_url) as amqp:
        channel = await amqp.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(stream, ensure=False)
        try:
            async with (
                asyncio.timeout(READ_LIMIT_S),
                queue.iterator(arguments={"x-stream-offset": "first"}) as messages,
            ):
                async for message in messages:
                    await message.ack()
                    found.append(orjson.loads(message.body)["killmailId"])
                    missing.discard(found[-1])
                    if not missing:
                        break
        except TimeoutError:
            # What is missing is for the test to say.
            return found
    return found


async def test_confirmed_events_are_in_the_stream_although_its_leaders_were_killed(cluster: Cluster) -> None:
    """What the guarantees of a bridge rest on, without a bridge."""
    async with names(cluster) as (exchange, stream):
        async with observer(cluster.members[0].url) as amqp:
            channel = await amqp.channel()
            source = await channel.declare_exchange(exchange, aio_pika.ExchangeType.FANOUT, durable=True)
            target = await channel.declare_queue(stream, durable=True, arguments={"x-queue-type": "stream"})
            await target.bind(source)
        async with confirming_fetcher(cluster.url, exchange) as fetcher:
            await leaders_killed_in_turn(cluster, stream, fetcher)
            await fetcher.stop()
            found = await read(cluster.members[0].url, stream, fetcher.confirmed)
        missing = sorted(fetcher.confirmed.difference(found))
        assert missing == [], f"{len(missing)} of {len(fetcher.confirmed)} confirmed events are missing: {missing[:20]}"


async def test_clients_that_resume_miss_nothing_while_the_leaders_of_the_stream_are_killed(cluster: Cluster) -> None:
    """Three bridges on a cluster of three nodes: whichever node leads the stream is killed, and each client has every
    confirmed update exactly once and in order, and is never told that something is missing."""
    async with (
        names(cluster) as (exchange, stream),
        fleet(cluster.url, **on_stream(exchange, stream)) as bridges,
        resuming_clients(bridges.port, CLIENTS) as everyone,
        resuming_clients(bridges.port, CLIENTS // 2, systemId=str(SYSTEMS[0])) as some,
        confirming_fetcher(cluster.url, exchange) as fetcher,
    ):
        killed = await leaders_killed_in_turn(cluster, stream, fetcher)
        # And a bridge, for which clients come back to those that went through it all.
        await bridges.end(0)
        await fetcher.further(BETWEEN)
        await bridges.start(0)
        await settled(fetcher, everyone, some)
        assert len(killed) > 1
        bridges.assert_nothing_went_wrong()
        figures.record(
            f"the leader of a replicated stream is killed under load, {SIZE} times",
            "bridges go on at another node of the cluster, from the offset where they were",
            f"0 of {len(fetcher.confirmed)}",
            "0",
        )
