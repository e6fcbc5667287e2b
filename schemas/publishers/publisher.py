"""Publishes events with aio-pika, and reports the events that a bridge rejects.

Copy this file, and run `pip install aio-pika`.

    async with publisher("amqp://guest:guest@localhost:5672/", "killmails", print) as publish:
        await publish("killmail", data)
"""

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

MAX_KNOWN = 10_000  # The program remembers this many of its newest events, and recognizes only their rejects.
# At most this many rejects wait for this program. Without this limit, waiting rejects could fill the broker.
MAX_QUEUED = 1_000

Publish = Callable[[str, Any], Awaitable[str]]


@asynccontextmanager
async def publisher(
    amqp_url: str, exchange: str, on_reject: Callable[[str, str, str], object], rejects: str = "bridge.rejected"
) -> AsyncIterator[Publish]:
    """Yields a function that publishes an event, waits for the broker's confirm, and returns the event's message id.

    `on_reject` is called with the message id, the reason as a slug, and the reason as a sentence. The exchange for
    events and the exchange for rejects must exist. If the connection is lost, publishing raises an error, and so does
    the end of the `async with` block: open another publisher, and publish the unconfirmed events again.
    """
    known: dict[str, None] = {}

    async def receive(message: AbstractIncomingMessage) -> None:
        # This function gets the rejected events of all publishers, not only of this one.
        if message.message_id in known:
            del known[message.message_id]
            on_reject(message.message_id, *(str(message.headers[f"x-reject-{name}"]) for name in ("reason", "detail")))

    async def publish(update_type: str, data: Any) -> str:
        message_id = uuid.uuid4().hex
        known[message_id] = None
        if len(known) > MAX_KNOWN:
            del known[next(iter(known))]
        message = aio_pika.Message(
            json.dumps(data, allow_nan=False).encode(),
            type=update_type,
            message_id=message_id,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await target.publish(message, routing_key="")
        return message_id

    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange)
        queue = await channel.declare_queue(exclusive=True, arguments={"x-max-length": MAX_QUEUED})
        await queue.bind(rejects)
        await queue.consume(receive, no_ack=True)
        try:
            yield publish
        finally:
            # The queue is unbound first: if the connection ends while the queue is still bound, RabbitMQ 4.3 may answer
            # other publishers with nacks.
            await queue.unbind(rejects)
