"""Rejected events, as a bridge leaves them, without waiting for one to reject them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aio_pika
import orjson
from aio_pika.abc import AbstractConnection

from bridge.broker.rejects import QUEUE_ARGUMENTS
from tests.support.killmail import killmail
from tests.support.publishing import depth, take


async def rejected(
    amqp: AbstractConnection, rejects: str, exchange: str, numbers: Sequence[int], reason: str = "too-large"
) -> None:
    """Puts killmails with these numbers into the queue of rejects, `id-<number>` being their ids."""
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
    """Of the killmails in a queue, in their order, which is empty afterwards."""
    count = await depth(amqp, queue)
    messages = await take(amqp, queue, count) if count else []
    return [orjson.loads(message.body)["killmailId"] for message in messages]
