"""Clients that resume from bridges with a stream, during faults of the stream and its broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.exactly_once import confirming_fetcher
from tests.support.killmail import killmail
from tests.support.publishing import depth, observer, publish
from tests.support.resuming import KINDS, have_all, resuming_clients
from tests.support.running import consumer_of, port_of, running, sample, started, unique
from tests.support.waiting import eventually

SETTLED_S = 6.0
"""If the broker is killed, it keeps a stream that is at least this many seconds old.

RabbitMQ 3.10 never finds its first stream again if the broker is killed a second after it declared the stream.
"""


@pytest.fixture
async def stream(amqp: AbstractConnection) -> AsyncIterator[str]:
    """Yields the name of a stream that the bridge declares."""
    name = unique("stream")
    yield name
    await (await amqp.channel()).queue_delete(name)


def flags(exchange: str, stream: str) -> dict[str, str]:
    return {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": stream}


async def resume(bridge: Bridge, after: str) -> tuple[dict[str, object], list[int]]:
    """Resumes a client.

    Returns the data of the client's `resume`, and the numbers of the killmails that the client gets again.
    """
    client = await RawClient.open(port_of(bridge), path=f"/updates?after={after}")
    resumed = orjson.loads(await client.text())["data"]
    again: list[int] = []
    while len(again) < resumed["replayed"]:
        message = orjson.loads(await client.text())
        if message["type"] != "gap":
            again.append(message["data"]["killmailId"])
    await client.close()
    return resumed, again


async def test_restart_of_the_broker_loses_only_what_is_in_the_gap(mortal_broker: Broker) -> None:
    """When RabbitMQ starts after a kill, it confirms some events and then drops them.

    No event outside the reported gap is lost.
    """
    exchange, stream = unique("exchange"), unique("stream")
    async with (
        _removed(mortal_broker, exchange, stream),
        running(mortal_broker.url, **flags(exchange, stream)) as bridge,
        resuming_clients(port_of(bridge), 3, *KINDS.values()) as clients,
        confirming_fetcher(mortal_broker.url, exchange) as fetcher,
    ):
        await asyncio.sleep(SETTLED_S)
        await fetcher.further(50)
        mortal_broker.kill()
        for client in clients[::3]:
            client.drop()
        mortal_broker.start()
        await fetcher.further(100)
        for client in clients[1::3]:
            client.drop()
        await fetcher.stop()
        await have_all(clients, {max(fetcher.confirmed)})
        steady = clients[2]
        lost = fetcher.confirmed.difference(steady.numbers)
        for client in clients:
            client.verify()
            assert client.numbers == [number for number in steady.numbers if number in set(client.numbers)]
            assert fetcher.confirmed.difference(client.numbers) == lost
            assert len(client.numbers) == len(set(client.numbers))
            assert all(answer["complete"] for answer in client.resumes)
            assert client.places == sorted(client.places)
            assert not lost or client.gaps
        if lost:
            # While a broker starts, it may close a second connection after the first gap was reported.
            for gap in steady.gaps:
                assert datetime.fromisoformat(gap["since"]) < datetime.fromisoformat(gap["until"])


@pytest.mark.slow
async def test_client_that_resumes_before_the_broker_is_up_waits_for_the_answer(
    mortal_broker: Broker,
) -> None:
    exchange, stream = unique("exchange"), unique("stream")
    async with _removed(mortal_broker, exchange, stream):
        async with (
            running(mortal_broker.url, **flags(exchange, stream)) as bridge,
            observer(mortal_broker.url) as amqp,
            resuming_clients(port_of(bridge), 1) as [client],
        ):
            await publish(amqp, exchange, *map(killmail, range(5)), delivery_mode=2)
            await have_all([client], set(range(5)))
            await asyncio.sleep(SETTLED_S)
        mortal_broker.kill()
        async with started(mortal_broker.url, **flags(exchange, stream)) as bridge:
            resuming_one = asyncio.create_task(resume(bridge, client.updates[1].id))
            await eventually("the client waits", lambda: bridge._hub.pending == 1)
            await eventually("the bridge misses the broker", lambda: consumer_of(bridge).status.attempts > 2)
            bridge._hub.tick()
            bridge._hub.tick()
            assert bridge._hub.pending == 1, "no id counts as unknown before the history is read"
            mortal_broker.start()
            resumed, again = await resuming_one
            assert (resumed["complete"], again) == (True, [2, 3, 4])


@pytest.mark.slow
async def test_stream_that_is_deleted_and_declared_again_is_another_stream(
    broker: Broker, amqp: AbstractConnection, exchange: str, stream: str
) -> None:
    """Connected clients get a `gap` message. A bridge that has never read the old stream does not know its ids."""
    channel = await amqp.channel()
    async with (
        running(broker.url, **flags(exchange, stream)) as bridge,
        resuming_clients(port_of(bridge), 1, *KINDS.values()) as clients,
    ):
        client = clients[0]
        await publish(amqp, exchange, *map(killmail, range(10)))
        await have_all(clients, set(range(10)))
        old = client.updates[4].id
        await channel.queue_delete(stream)
        await eventually("the stream is declared again", lambda: sample(bridge, "bridge_gaps_total") == 1)
        # The new stream is longer than the old stream, so the sequence number of the old id now belongs to another
        # update.
        await publish(amqp, exchange, *map(killmail, range(100, 150)))
        await have_all(clients, {*range(10), *range(100, 150)})
        for each in clients:
            each.drop()
        await eventually("each client is back", lambda: all(each.reconnects for each in clients))
        [gap] = client.gaps
        assert gap["reason"] == "stream-recreated"
        for each in clients:
            each.verify()
            assert each.gaps == [gap]
            assert each.numbers == [*range(10), *range(100, 150)]
            assert all(answer["complete"] for answer in each.resumes)
        resumed, again = await resume(bridge, old)
        assert (resumed["complete"], again) == (True, [*range(5, 10), *range(100, 150)])
        new = client.updates[-10].id
    async with running(broker.url, **flags(exchange, stream)) as bridge:
        resumed, again = await resume(bridge, old)
        assert (resumed["complete"], again) == (False, list(range(100, 150)))
        resumed, again = await resume(bridge, new)
        assert (resumed["complete"], again) == (True, list(range(141, 150)))


async def test_restarted_bridge_sends_new_updates_and_keeps_old_ones(
    broker: Broker, amqp: AbstractConnection, exchange: str, stream: str, rejects: str
) -> None:
    """After a restart, a bridge does not reject an old invalid event again: it only counts the event."""
    settings = {**flags(exchange, stream), "reject_exchange": rejects}
    async with running(broker.url, **settings) as bridge:
        await publish(amqp, exchange, killmail(1), b"invalid", killmail(2), killmail(1))
        await eventually(
            "the event is rejected", lambda: sample(bridge, "bridge_rejects_total", reason="not-json") == 1
        )
        assert sample(bridge, "bridge_duplicates_total", type="killmail") == 1
    await publish(amqp, exchange, killmail(3), b"invalid too")
    async with running(broker.url, **settings) as bridge:
        plain = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, killmail(2), killmail(4), b"invalid again")
        assert orjson.loads(await plain.text())["data"]["killmailId"] == 4, "only the new update is sent"
        resumed, again = await resume(bridge, "unknown")
        assert (resumed["complete"], again) == (False, [1, 2, 3, 4])
        await eventually(
            "the event is rejected", lambda: sample(bridge, "bridge_rejects_total", reason="not-json") == 1
        )
        await plain.close()
    assert await depth(amqp, rejects) == 2


@asynccontextmanager
async def _removed(broker: Broker, exchange: str, stream: str) -> AsyncIterator[None]:
    """Deletes the exchange and the stream after the test."""
    yield
    async with observer(broker.url) as amqp:
        channel = await amqp.channel()
        await channel.queue_delete(stream)
        await channel.exchange_delete(exchange)
