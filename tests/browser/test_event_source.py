"""A browser's own `EventSource` follows a real bridge: it resumes by itself after the bridge was stopped or killed."""

import signal
from typing import Any

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import Page

from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import bridge_process, unique
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

FOLLOW = """(query) => {
    window.seen = [];
    window.source = new EventSource("/updates" + query);
    source.onmessage = ({ lastEventId, data }) => seen.push([lastEventId, JSON.parse(data)]);
}"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("query", ["", "?last=50"])
async def test_event_source_gets_each_update_once_across_a_restart_of_the_bridge(
    page: Page, broker: Broker, amqp: AbstractConnection, exchange: str, ending: signal.Signals, query: str
) -> None:
    stream = unique("event-source")
    settings = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HISTORY": "stream",
        "BRIDGE_HISTORY_STREAM": stream,
        "BRIDGE_HOST": "localhost",
        "BRIDGE_PORT": str(port := free_port()),
    }

    async def seen() -> list[Any]:
        found: list[Any] = await page.evaluate("window.seen")
        return found

    async def numbers() -> list[int]:
        return [message["data"]["killmailId"] for _, message in await seen() if "id" in message]

    async def has(last: int) -> bool:
        return last in await numbers()

    async with bridge_process(broker.url, **settings) as bridge:
        await bridge.consuming()
        await publish(amqp, exchange, *(orjson.dumps(killmail(number)) for number in range(1, 4)))
        await page.goto(f"http://localhost:{port}/healthz")
        await page.evaluate(FOLLOW, query)
        await eventually("the stream is open", lambda: page.evaluate("source.readyState === EventSource.OPEN"))
        await publish(amqp, exchange, orjson.dumps(killmail(4)))
        await eventually("the update arrives", lambda: has(4))
        bridge.process.send_signal(ending)
        await bridge.ended()
    await publish(amqp, exchange, *(orjson.dumps(killmail(number)) for number in range(5, 8)))
    async with bridge_process(broker.url, **settings) as bridge:
        await bridge.consuming()
        await eventually("the browser has reconnected", lambda: has(7), limit_s=30)
        await publish(amqp, exchange, orjson.dumps(killmail(8)))
        await eventually("the update arrives", lambda: has(8))
        messages = await seen()
        await page.evaluate("source.close()")
    assert await numbers() == list(range(1 if query else 4, 9))
    resumes = [message["data"]["complete"] for _, message in messages if message["type"] == "resume"]
    assert resumes == [True, True]
    own_ids = [(last, message.get("id") or message["data"].get("id")) for last, message in messages]
    assert all(last == own for last, own in own_ids if own is not None)
    channel = await amqp.channel()
    await channel.queue_delete(stream)
    await channel.close()
