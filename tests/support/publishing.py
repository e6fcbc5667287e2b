"""Functions that publish events to an exchange or a queue and wait for the confirms, and functions that read queues."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aio_pika
import orjson
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from yarl import URL

from bridge.amqp.rejects.publisher import QUEUE_ARGUMENTS
from tests.bench.amqp import Channel, Publication
from tests.support.killmail import killmail
from tests.support.waiting import eventually

BATCH = 500
"""At most this many published events wait for their confirm at the same time."""


async def connect(broker_url: str, timeout_s: float) -> AbstractConnection:
    """Connects like `aio_pika.connect` to a broker that may be away.

    If the attempt to connect fails, the connection is closed at once. The garbage collector would close an abandoned
    connection later, maybe in another test.
    """
    connection = aio_pika.Connection(URL(broker_url))
    try:
        await connection.connect(timeout=timeout_s)
    except BaseException:
        await connection.close()
        raise
    return connection


@asynccontextmanager
async def observer(broker_url: str) -> AsyncIterator[AbstractConnection]:
    """Yields a connection to a running broker."""
    connection = await aio_pika.connect(broker_url, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


async def publish(connection: AbstractConnection, exchange: str, *events: object, **properties: Any) -> None:
    """Publishes each event (bytes unchanged, other values as JSON), and waits for its confirm."""
    channel = await connection.channel(publisher_confirms=True)
    try:
        target = await channel.get_exchange(exchange, ensure=False)
        for batch in _batches(events):
            await asyncio.gather(
                *(target.publish(aio_pika.Message(_body(event), **properties), routing_key="") for event in batch)
            )
    finally:
        await channel.close()


def pour(url: str, exchange: str, bodies: Sequence[bytes]) -> None:
    """Publishes as fast as the broker accepts messages, without confirms.

    Returns when the broker has read all of them.
    """
    publication = Publication(exchange)
    with Channel(url) as channel:
        channel.write(b"".join(map(publication.of, bodies)))
        channel.close()


async def remade(connection: AbstractConnection, exchange: str, kind: aio_pika.ExchangeType) -> None:
    """Deletes an exchange, and declares a new exchange with the same name."""
    while True:
        channel = await connection.channel()
        await channel.exchange_delete(exchange)
        # The declaration fails if a bridge has meanwhile declared the exchange again, with another type.
        with suppress(ChannelPreconditionFailed):
            await channel.declare_exchange(exchange, kind, durable=True)
            await channel.close()
            return


async def delete_until_missed(connection: AbstractConnection, exchange: str, is_missed: Callable[[], bool]) -> None:
    """Deletes an exchange, and waits until the bridge has noticed the deletion.

    If a bridge is just about to declare the exchange, the bridge creates it again without noticing the deletion. If the
    bridge has created the exchange again, this function deletes the exchange once more.
    """

    async def missed() -> bool:
        channel = await connection.channel()
        with suppress(ChannelNotFoundEntity):
            await channel.get_exchange(exchange)
            if not is_missed():
                await channel.exchange_delete(exchange)
            await channel.close()
        return is_missed()

    await eventually(f"the exchange {exchange} is missed", missed)


async def take(
    connection: AbstractConnection, queue: str, count: int, limit_s: float = 20.0
) -> list[AbstractIncomingMessage]:
    """Acknowledges and returns the next `count` messages of a queue."""
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=count)
    messages = []
    try:
        source = await channel.get_queue(queue, ensure=False)
        async with asyncio.timeout(limit_s), source.iterator() as iterator:
            async for message in iterator:
                messages.append(message)
                if len(messages) == count:
                    # One acknowledgement covers all messages, because ten thousand acknowledgements would take 20 s on
                    # a busy machine.
                    await message.ack(multiple=True)
                    break
    finally:
        await channel.close()
    return messages


async def bind(connection: AbstractConnection, exchange: str, queue: str, **arguments: Any) -> None:
    """Declares a durable queue, and binds it to a durable fanout exchange.

    A test can read the published events from the queue.
    """
    channel = await connection.channel()
    target = await channel.declare_exchange(exchange, aio_pika.ExchangeType.FANOUT, durable=True)
    bound = await channel.declare_queue(queue, durable=True, arguments=arguments)
    await bound.bind(target)
    await channel.close()


async def depth(connection: AbstractConnection, queue: str) -> int:
    """Returns the number of messages in a queue."""
    channel = await connection.channel()
    try:
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0
    finally:
        await channel.close()


async def rejected(
    amqp: AbstractConnection, rejects: str, exchange: str, numbers: Sequence[int], reason: str = "too-large"
) -> None:
    """Puts killmails with the given numbers into the queue of rejected events. The message ids are `id-<number>`."""
    channel = await amqp.channel(publisher_confirms=True)
    await channel.declare_queue(rejects, durable=True, arguments=dict(QUEUE_ARGUMENTS))
    headers: dict[str, Any] = {
        "x-reject-reason": reason,
        "x-reject-detail": "it is too large",
        "x-reject-pointer": "",
        "x-reject-exchange": exchange,
        "x-reject-time": "2026-11-26T02:15:01.123+00:00",
    }
    messages = [
        aio_pika.Message(
            orjson.dumps(killmail(number)), headers=headers, message_id=f"id-{number}", delivery_mode=2, type="killmail"
        )
        for number in numbers
    ]
    await asyncio.gather(*(channel.default_exchange.publish(message, rejects) for message in messages))
    await channel.close()


async def numbers_in(amqp: AbstractConnection, queue: str) -> list[int]:
    """Empties a queue of killmails. Returns the ids of the killmails in order."""
    count = await depth(amqp, queue)
    messages = await take(amqp, queue, count) if count else []
    return [orjson.loads(message.body)["killmailId"] for message in messages]


def _batches(events: tuple[object, ...]) -> Iterable[tuple[object, ...]]:
    return (events[at : at + BATCH] for at in range(0, len(events), BATCH))


def _body(event: object) -> bytes:
    return event if isinstance(event, bytes) else orjson.dumps(event)
