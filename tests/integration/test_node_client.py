"""A client in Node, with `ws`, gets exactly the same bytes as a client in Python."""

from contextlib import AsyncExitStack

import orjson
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.followers import node_line, node_program
from tests.support.killmail import EXAMPLE, killmail
from tests.support.prepare import NODE
from tests.support.publishing import publish
from tests.support.running import port_of, running

# A client that confuses bytes with characters, or has a fault at 125 or 65535 bytes, fails for these updates.
EVENTS = [EXAMPLE, killmail(2, note='Ünïcode 🚀 \u2028 \x7f \\ " /'), killmail(3, padding="é" * 70_000)]


async def test_ws_gets_the_same_bytes_as_a_raw_client(
    node: str, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with AsyncExitStack() as after:
        async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
            raw = await RawClient.open(port_of(bridge))
            url = f"ws://127.0.0.1:{port_of(bridge)}/updates"
            process = await after.enter_async_context(node_program(node, NODE / "client.mjs", url))
            assert await node_line(process) == b"open"
            await publish(amqp, exchange, *EVENTS)
            texts = [await raw.text() for _ in EVENTS]
            assert [await node_line(process) for _ in EVENTS] == texts
            assert [orjson.loads(text)["data"] for text in texts] == EVENTS
            await raw.close()
        assert await node_line(process) == b"closed 1001"
        assert await process.wait() == 0
