"""If a publisher loses its broker, all confirmed updates are in the queue.

The publisher itself sends the unconfirmed updates as soon as it can.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge import NotConfirmed, Publisher
from tests.support.broker.find import Broker
from tests.support.killmail import killmail
from tests.support.proxy import Direction, proxy
from tests.support.publishing import bind, depth, take
from tests.support.running import unique
from tests.support.waiting import eventually, no_task_left

MAX_UNCONFIRMED = 20


class Stream:
    """Broadcasts numbered killmails concurrently until `stop` is called. Records the outcome of each broadcast."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._stopping = False
        self._number = 0
        self.routed: list[int] = []
        self.unrouted: list[int] = []
        self.unconfirmed: list[int] = []
        self._tasks = [asyncio.create_task(self._run()) for _ in range(MAX_UNCONFIRMED)]

    async def _run(self) -> None:
        while not self._stopping:
            self._number = number = self._number + 1
            try:
                routed = await self._publisher.broadcast("killmail", killmail(number))
            except NotConfirmed:
                self.unconfirmed.append(number)
            else:
                (self.routed if routed else self.unrouted).append(number)

    async def further(self, count: int) -> None:
        """Waits until `count` more killmails are routed to a queue."""
        enough = len(self.routed) + count
        await eventually("more updates are confirmed", lambda: len(self.routed) >= enough)

    async def stop(self) -> None:
        """Starts no more broadcasts, and waits until all broadcasts in progress have ended."""
        self._stopping = True
        await asyncio.gather(*self._tasks)


async def all_of(amqp: AbstractConnection, queue: str) -> list[int]:
    """Returns the ids of all killmails in a queue."""
    messages = await take(amqp, queue, await depth(amqp, queue))
    return [orjson.loads(message.body)["killmailId"] for message in messages]


def missing(wanted: list[int], found: list[int]) -> set[int]:
    return set(wanted) - set(found)


@no_task_left
async def test_broker_that_is_killed_and_started_again_has_all_that_it_confirmed(mortal_broker: Broker) -> None:
    exchange, queue = unique("exchange"), unique("queue")
    amqp = await aio_pika.connect(mortal_broker.url, timeout=10)
    await bind(amqp, exchange, queue)
    async with Publisher(mortal_broker.url, exchange) as publisher:
        stream = Stream(publisher)
        await stream.further(300)
        await asyncio.to_thread(mortal_broker.kill)
        await amqp.close()
        before = len(stream.routed)
        await asyncio.to_thread(mortal_broker.start)
        await stream.further(300)
        await stream.stop()
    assert before < len(stream.routed)
    assert stream.unrouted == stream.unconfirmed == []
    amqp = await aio_pika.connect(mortal_broker.url, timeout=10)
    assert missing(stream.routed, await all_of(amqp, queue)) == set()
    await amqp.close()


@no_task_left
async def test_connection_that_is_cut_is_restored_and_nothing_is_lost(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bridge.publisher")
    await bind(amqp, exchange, queue)
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with Publisher(tunnel.url, exchange) as publisher:
            stream = Stream(publisher)
            for _ in range(3):
                await stream.further(100)
                tunnel.cut()
            await stream.further(100)
            await stream.stop()
    assert stream.unrouted == stream.unconfirmed == []
    assert missing(stream.routed, await all_of(amqp, queue)) == set()
    messages = [record.message for record in caplog.records if record.name == "bridge.publisher"]
    assert len(messages) == 6
    assert all(message.startswith("no connection to the broker: ") for message in messages[::2])
    assert set(messages[1::2]) == {"the connection to the broker is back"}


@no_task_left
async def test_task_that_continues_after_a_cancellation_publishes_like_any_other(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """A cancelled task may publish a last update.

    If the connection is lost meanwhile, this task must not get an undocumented error.
    """
    await bind(amqp, exchange, queue)

    async def last_update(publisher: Publisher) -> bool:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return all([await publisher.broadcast("killmail", killmail(number)) for number in range(300)])
        raise AssertionError("this event is never set")

    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with Publisher(tunnel.url, exchange) as publisher:
            tasks = [asyncio.create_task(last_update(publisher)) for _ in range(5)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for enough in (50, 100, 200):
                await eventually("some updates have arrived", partial(_at_least, amqp, queue, enough))
                tunnel.cut()
            assert await asyncio.gather(*tasks) == [True] * 5


async def _at_least(amqp: AbstractConnection, queue: str, count: int) -> bool:
    return await depth(amqp, queue) >= count


@no_task_left
async def test_close_does_not_wait_for_a_broker_that_reads_nothing(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """If a broker is short of memory, it stops reading. aiormq by itself would wait until the broker reads again."""
    await bind(amqp, exchange, queue)
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with Publisher(tunnel.url, exchange) as publisher:
            assert await publisher.broadcast("killmail", killmail(1))
            tunnel.hold()
            large = killmail(2, padding="x" * 2_000_000)
            waiting = [asyncio.create_task(publisher.broadcast("killmail", large)) for _ in range(20)]
            await asyncio.wait(waiting, timeout=0.5)
            async with asyncio.timeout(10):
                await publisher.close()
                ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in ended] == ["this publisher is closed"] * 20


@no_task_left
async def test_exchange_that_is_deleted_is_declared_again(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    channel = await amqp.channel()
    async with Publisher(broker.url, exchange, declare=True) as publisher:
        stream = Stream(publisher)
        await stream.further(100)
        await channel.exchange_delete(exchange)
        await channel.close()
        await eventually("the exchange is there, without the queue", lambda: len(stream.unrouted) >= 100)
        await bind(amqp, exchange, queue)
        await stream.further(100)
        await stream.stop()
    assert stream.unconfirmed == []
    assert missing(stream.routed, await all_of(amqp, queue)) == set()


@no_task_left
async def test_update_that_is_cancelled_does_not_affect_the_others(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """An update may be cancelled while it waits for a connection, for its turn or for its confirm."""
    await bind(amqp, exchange, queue)
    async with proxy(broker.url) as tunnel, Publisher(tunnel.url, exchange) as publisher:
        early = [asyncio.create_task(publisher.broadcast("killmail", killmail(n))) for n in range(100)]
        await eventually("all updates wait", lambda: publisher._exchange.error is not None)
        for task in early[::3]:
            task.cancel()
        await tunnel.open()
        await asyncio.wait(early)
        late = [asyncio.create_task(publisher.broadcast("killmail", killmail(n))) for n in range(100, 400)]
        # When this update is confirmed, the broker has some of the updates, but not all.
        await late[150]
        # The proxy now holds back all confirms: one confirm that passes could confirm all updates at once.
        tunnel.hold(Direction.DOWN)
        more = [asyncio.create_task(publisher.broadcast("killmail", killmail(n))) for n in range(400, 430)]
        late += more
        await asyncio.sleep(0)
        cancelled = [task for task in late[::3] if task.cancel()]
        tunnel.release()
        await asyncio.wait(late)
        assert cancelled
    given_up = [n for n, task in enumerate([*early, *late]) if task.cancelled()]
    assert given_up[:34] == list(range(0, 100, 3))
    assert len(given_up) == 34 + len(cancelled)
    assert all(task.result() for task in [*early, *late] if not task.cancelled())
    arrived = await all_of(amqp, queue)
    assert missing([n for n in range(430) if n not in given_up], arrived) == set()
    assert arrived == sorted(arrived)
    assert not set(arrived) & set(given_up[:34])


@no_task_left
async def test_timeout_during_an_outage_raises_the_reason(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    async with AsyncExitStack() as stack:
        tunnel = await stack.enter_async_context(proxy(broker.url))
        publisher = await stack.enter_async_context(Publisher(tunnel.url, exchange, timeout_s=1))
        await tunnel.open()
        assert await publisher.broadcast("killmail", killmail(1))
        await tunnel.close()
        outcomes: list[Any] = await asyncio.gather(
            *(publisher.broadcast("killmail", killmail(n)) for n in range(2, 12)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {NotConfirmed}
        assert all("127.0.0.1" in str(outcome) for outcome in outcomes)
        await tunnel.open()
        stream = Stream(publisher)
        await stream.further(10)
        await stream.stop()
