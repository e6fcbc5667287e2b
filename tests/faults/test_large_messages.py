"""If a queue has large messages, the bridge reads them with bounded memory, whatever its prefetch is."""

import asyncio

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed
from pamqp.common import FieldTable

from bridge.amqp.rejects.publisher import MAX_HELD_BYTES
from tests.support.broker.find import Broker
from tests.support.killmail import killmail
from tests.support.process_stats import MB, Memory, metric
from tests.support.publishing import depth, publish, take
from tests.support.running import bridge_process
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

LOG_MB, IN_HAND_MB = 16, 64
"""The bridge may use this much memory in addition to one message.

The memory is for the update log (`BRIDGE_LOG_BYTES`), and for messages in progress.
"""

BASE_MB = 50
"""The memory of a bridge without clients.

This memory is included in the result, because the measurement begins when the process starts.
"""

LIMIT_S = 120.0


async def queue_with(amqp: AbstractConnection, queue: str, size: int, count: int) -> None:
    """Declares a durable queue, as an operator would, and publishes `count` messages of `size` bytes to it."""
    channel = await amqp.channel(publisher_confirms=True)
    await channel.declare_queue(queue, durable=True)
    body = b"x" * size
    for _ in range(count):
        await channel.default_exchange.publish(Message(body), queue)
    await channel.close()


async def sample_memory(memory: Memory) -> None:
    while True:
        memory.look()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("size", "count"), [(16_000_000, 40), (100_000_000, 6)], ids=["16 MB", "100 MB"])
async def test_memory_is_bounded_while_large_messages_are_rejected(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str, size: int, count: int
) -> None:
    try:
        await queue_with(amqp, queue, size, count)
    except ChannelPreconditionFailed as error:
        pytest.skip(f"this broker accepts no messages of {size} bytes: {error}")
    settings = {"EXCHANGES": f"{exchange}=killmail", "QUEUE": queue, "REJECT_EXCHANGE": rejects}
    variables = {f"BRIDGE_{name}": text for name, text in settings.items()}
    async with bridge_process(broker.url, **variables) as process:
        memory = Memory(process.process.pid)
        sampling = asyncio.create_task(sample_memory(memory))
        port = await process.port()

        async def rejected() -> bool:
            return await metric(port, 'bridge_rejects_total{reason="too-large"}') == count

        await eventually("all events are rejected", rejected, limit_s=LIMIT_S)
        await eventually("all rejects are published", lambda: _none_waits(port), limit_s=LIMIT_S)
        sampling.cancel()
        assert await depth(amqp, queue) == 0
        assert await metric(port, "bridge_rejects_lost_total") == 0
        assert memory.look() < (LOG_MB + IN_HAND_MB) * MB + size + BASE_MB * MB
        await publish(amqp, exchange, killmail(1))
        await eventually("updates still arrive", lambda: _has_updates(port))


async def _none_waits(port: int) -> bool:
    return await metric(port, "bridge_rejects_waiting") == 0


async def _has_updates(port: int) -> bool:
    return await metric(port, 'bridge_updates_total{type="killmail"}') == 1


async def test_large_rejects_that_can_not_be_published_are_held_within_bounds_and_not_lost(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """If the bridge does not read from its connection, the connection is closed.

    On the next connection, the bridge takes only as many messages as fit into memory.
    """
    size, count = 8_000_000, 30
    await queue_with(amqp, queue, size, count)
    channel = await amqp.channel()
    full: FieldTable = {"x-max-length": 0, "x-overflow": "reject-publish"}
    await channel.declare_queue(rejects, durable=True, arguments=full)
    settings = {"EXCHANGES": f"{exchange}=killmail", "QUEUE": queue, "REJECT_EXCHANGE": rejects}
    variables = {f"BRIDGE_{name}": text for name, text in settings.items()}
    # aiormq closes a silent connection after three heartbeats.
    async with bridge_process(f"{broker.url}?heartbeat=3", **variables) as process:
        memory = Memory(process.process.pid)
        sampling = asyncio.create_task(sample_memory(memory))
        port = await process.port()
        await eventually(
            "the prefetch is reduced",
            lambda: process.logged("prefetch reduced: large rejected events are held"),
            limit_s=LIMIT_S,
        )
        await eventually("the bridge consumes again", lambda: process.logged("broker recovered"), limit_s=LIMIT_S)
        # The exchange always has a queue: without one, the broker would return rejected events to the bridge as whole
        # messages.
        kept = await channel.declare_queue(f"{rejects}.kept", durable=True)
        await kept.bind(rejects, "#")
        await channel.queue_delete(rejects)
        await eventually("all rejects are in the queue", lambda: _is_deep(amqp, kept.name, count), limit_s=LIMIT_S)
        sampling.cancel()
        # If a session ends while the bridge sends a message, the bridge still sends the rest of the message. This
        # message takes memory in addition to the messages of the next session.
        assert memory.look() < (LOG_MB + IN_HAND_MB + BASE_MB) * MB + MAX_HELD_BYTES + size
        assert await metric(port, "bridge_rejects_lost_total") == 0
    assert len(await take(amqp, kept.name, count)) == count
    # If the confirm of an event was lost with the connection, a second copy of the event is still in the queue.
    await kept.delete(if_empty=False)
    await channel.close()


async def _is_deep(amqp: AbstractConnection, queue: str, count: int) -> bool:
    return await depth(amqp, queue) >= count
