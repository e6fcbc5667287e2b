"""The simplest bridge with aio-pika and websockets, as in the first examples of their documentation."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import aio_pika
import jsonschema_rs
import orjson
from aio_pika.abc import AbstractConnection
from websockets.asyncio.server import ServerConnection, broadcast, serve

SCHEMA = Path(__file__).parents[3] / "schemas/killmail.json"


async def consume(connection: AbstractConnection, take: Callable[[object, int], None]) -> None:
    """Calls `take` with each event of the exchange and the current time, until the process ends."""
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=200)  # the bridge has the same prefetch
    exchange = await channel.declare_exchange(os.environ["EXCHANGE"], aio_pika.ExchangeType.FANOUT, durable=True)
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(exchange)
    async with queue.iterator() as messages:
        async for message in messages:
            async with message.process():
                take(orjson.loads(message.body), int(time.time() * 1000))


async def main() -> None:
    """Runs the program."""
    validator = jsonschema_rs.validator_for(orjson.loads(SCHEMA.read_bytes()))
    clients: set[ServerConnection] = set()

    async def handle(client: ServerConnection) -> None:
        clients.add(client)
        try:
            await client.wait_closed()
        finally:
            clients.remove(client)

    def send(data: object, now_ms: int) -> None:
        if validator.is_valid(data):
            update = {"type": "killmail", "data": data, "timestamp": now_ms}
            broadcast(clients, orjson.dumps(update).decode())

    async with serve(handle, "127.0.0.1", int(os.environ["PORT"])):
        await consume(await aio_pika.connect_robust(os.environ["AMQP"]), send)


if __name__ == "__main__":
    asyncio.run(main())
