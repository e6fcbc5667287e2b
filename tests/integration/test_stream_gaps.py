"""Ids of gaps with a stream: a client that resumes after such an id gets this gap from no bridge again."""

from typing import Any

import orjson
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import port_of, running
from tests.support.waiting import eventually


async def follow(bridge: Bridge, after: str, wanted: str = "") -> RawClient:
    return await RawClient.open(port_of(bridge), path=f"/updates?after={after}{wanted}")


async def read(client: RawClient, count: int) -> list[Any]:
    """Returns the next messages, except heartbeats."""
    return [orjson.loads(await client.text()) for _ in range(count)]


async def is_ready(*bridges: Bridge) -> None:
    await eventually("the bridges consume", lambda: all(bridge.readiness.report()[0] for bridge in bridges))


async def test_client_resumes_after_the_gap_of_a_recreated_stream_on_every_bridge(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    async with running(broker.url, **flags) as one, running(broker.url, **flags) as other:
        clients = [await follow(bridge, "", wanted) for bridge in (one, other) for wanted in ("", "&type=event")]
        resumes = [(await read(client, 1))[0] for client in clients]
        assert all(resume["data"]["complete"] for resume in resumes)
        channel = await amqp.channel()
        await channel.queue_delete(queue)
        await channel.close()
        gaps = [(await read(client, 1))[0] for client in clients]
        assert {(gap["type"], gap["data"]["reason"]) for gap in gaps} == {("gap", "stream-recreated")}
        await is_ready(one, other)
        await publish(amqp, exchange, orjson.dumps(killmail(1)))
        # This bridge has never seen the deleted stream.
        async with running(broker.url, **flags) as late:
            await is_ready(late)
            for gap in gaps:
                for bridge in (one, other, late):
                    client = await follow(bridge, gap["data"]["id"])
                    [resume] = await read(client, 1)
                    assert resume["data"]["complete"], (gap, bridge is late)
                    [update] = await read(client, 1)
                    assert update["data"].get("killmailId") == 1, "the gap is not sent again"
                    await client.close()
            again = await follow(one, gaps[1]["data"]["id"], "&type=event")
            [resume] = await read(again, 1)
            assert resume["data"]["complete"]
            await again.close()
        for client in clients:
            await client.close()


async def test_id_from_before_the_first_entry_of_the_log_resumes_on_every_bridge(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    async with running(broker.url, **flags) as one, running(broker.url, **flags) as other:
        await is_ready(one, other)
        for after, complete in (("unknown", False), ("earliest", True)):
            client = await follow(one, after)
            [resume] = await read(client, 1)
            assert resume["data"]["complete"] is complete
            for bridge in (one, other):
                back = await follow(bridge, resume["data"]["id"])
                [again] = await read(back, 1)
                assert again["data"]["complete"]
                await back.close()
            await client.close()
