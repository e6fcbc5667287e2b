"""Updates from a real RabbitMQ to real WebSocket clients, compared byte by byte where the contract requires it."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aio_pika
import orjson
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection
from websockets.asyncio.client import connect

from bridge.app import Bridge
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.clients import TEXT, RawClient, close_all, collectors, server_frames
from tests.support.killmail import EXAMPLE, killmail
from tests.support.publishing import depth, publish
from tests.support.running import UNPINGED, bridge_process, port_of, running, sample
from tests.support.waiting import eventually

SCHEMA = '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["kills"]}'


pytestmark = module_loop.MARK
amqp, exchange, queue, rejects = module_loop.amqp, module_loop.exchange, module_loop.queue, module_loop.rejects


@dataclass(frozen=True, slots=True)
class Shared:
    """A bridge with three exchanges, for all tests that need no other settings."""

    bridge: Bridge
    declared: str
    """An exchange that the bridge has declared."""
    topic: str
    """A topic exchange that existed before the bridge started."""
    sightings: str
    """An exchange with a default type from an operator's schema."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    broker: Broker, amqp: AbstractConnection, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shared]:
    """Starts one bridge for all tests, with an operator's schema."""
    schemas = tmp_path_factory.mktemp("schemas")
    (schemas / "sightings.json").write_text(SCHEMA)
    async with AsyncExitStack() as stack:
        declared, topic, sightings = [
            await stack.enter_async_context(module_loop.own(amqp, "exchange")) for _ in range(3)
        ]
        channel = await amqp.channel()
        await channel.declare_exchange(topic, aio_pika.ExchangeType.TOPIC, auto_delete=True)
        exchanges = f"{declared}=killmail,{topic}=killmail,{sightings}=sightings"
        bridge = await stack.enter_async_context(running(broker.url, exchanges=exchanges, schemas=schemas))
        yield Shared(bridge, declared, topic, sightings)


async def test_specification_example_arrives_byte_by_byte_as_a_text_message(
    shared: Shared, amqp: AbstractConnection
) -> None:
    async with connect(f"ws://localhost:{port_of(shared.bridge)}/updates") as client:
        before_ms = time.time_ns() // 1_000_000
        await publish(amqp, shared.declared, EXAMPLE)
        text = await client.recv()
        after_ms = time.time_ns() // 1_000_000
    assert isinstance(text, str)
    timestamp_ms = orjson.loads(text)["timestamp"]
    assert before_ms <= timestamp_ms <= after_ms
    assert text.encode() == b'{"type":"killmail","data":%s,"timestamp":%d}' % (orjson.dumps(EXAMPLE), timestamp_ms)


async def test_type_is_from_the_message_or_the_default_of_its_exchange(
    shared: Shared, amqp: AbstractConnection
) -> None:
    client = await RawClient.open(port_of(shared.bridge))
    await publish(amqp, shared.declared, {"kills": 7}, type="sightings")
    await publish(amqp, shared.declared, killmail(1))
    await publish(amqp, shared.sightings, {"kills": 1})
    updates = [orjson.loads(await client.text()) for _ in range(3)]
    assert [(update["type"], update["data"]) for update in updates] == [
        ("sightings", {"kills": 7}),
        ("killmail", killmail(1)),
        ("sightings", {"kills": 1}),
    ]
    await client.close()


async def test_missing_exchange_is_declared_as_a_durable_fanout(shared: Shared, amqp: AbstractConnection) -> None:
    channel = await amqp.channel()
    # The broker refuses this declaration if the existing exchange has different properties.
    await channel.declare_exchange(shared.declared, aio_pika.ExchangeType.FANOUT, durable=True)


async def test_existing_topic_exchange_delivers_each_routing_key(shared: Shared, amqp: AbstractConnection) -> None:
    client = await RawClient.open(port_of(shared.bridge))
    channel = await amqp.channel()
    target = await channel.get_exchange(shared.topic)
    await target.publish(aio_pika.Message(orjson.dumps(killmail(2))), routing_key="any.key")
    assert orjson.loads(await client.text())["data"] == killmail(2)
    await client.close()


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_thousands_of_events_reach_a_hundred_clients_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str, count: int
) -> None:
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **UNPINGED) as process:
        await process.consuming()
        clients = await collectors(await process.port(), 100)
        await publish(amqp, exchange, *(killmail(number) for number in range(count)))
        frames: list[tuple[int, bytes]] = []

        def first_has_all() -> bool:
            nonlocal frames
            # Parsing all frames takes a long time, so the test first waits for the last frame.
            if b'"killmailId":%d,' % (count - 1) not in clients[0].received[-400:]:
                return False
            frames = server_frames(bytes(clients[0].received))
            return len(frames) == count

        await eventually("the first client has everything", first_has_all, limit_s=120)
        assert [orjson.loads(payload)["data"]["killmailId"] for opcode, payload in frames if opcode == TEXT] == list(
            range(count)
        )
        # All clients get the same frames, so all streams have the same bytes.
        expected = clients[0].received
        size = len(expected)
        await eventually("all clients have everything", lambda: all(len(client.received) >= size for client in clients))
        assert all(client.received == expected for client in clients)
        close_all(clients)


async def test_named_queue_keeps_events_while_the_bridge_is_stopped(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue}
    async with running(broker.url, **flags) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, killmail(1))
        assert b'"killmailId":1,' in await client.text()
        await client.close()
    # The bridge acknowledged all events before it stopped.
    assert await depth(amqp, queue) == 0
    await publish(amqp, exchange, killmail(2), killmail(3))
    async with running(broker.url, **flags) as bridge:
        await eventually(
            "both events are delivered", lambda: sample(bridge, "bridge_updates_total", type="killmail") == 2
        )
        await eventually(
            "both events are acknowledged", lambda: sample(bridge, "bridge_receipt_to_flush_seconds_count") == 2
        )
    assert await depth(amqp, queue) == 0


async def test_unsettled_events_never_exceed_the_prefetch(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """An event is unsettled until its reject is confirmed, so the broker delivers no more events than the prefetch."""
    channel = await amqp.channel()
    # The queue refuses every message, so the broker answers each publish with a nack.
    await channel.declare_exchange(rejects, aio_pika.ExchangeType.FANOUT, durable=True)
    full = await channel.declare_queue(
        rejects, durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
    )
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "prefetch": 5, "reject_exchange": rejects}
    async with running(broker.url, **flags) as bridge:
        await publish(amqp, exchange, *([b"not json"] * 20))
        await eventually("the prefetch is used up", lambda: bridge._rejects.waiting == 5)
        assert await depth(amqp, queue) == 15
        await channel.queue_delete(full.name)
        await eventually(
            "all events are rejected", lambda: sample(bridge, "bridge_rejects_total", reason="not-json") >= 20
        )
        await eventually("all rejects are confirmed", lambda: bridge.readiness.report()[1]["rejects"]["waiting"] == 0)  # type: ignore[index]  # JSON: an object
    assert await depth(amqp, queue) == 0
