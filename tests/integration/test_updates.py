"""From a real RabbitMQ to real WebSocket clients: what arrives, to the byte where the contract says so."""

import time
from pathlib import Path

import aio_pika
import orjson
from aio_pika.abc import AbstractConnection
from websockets.asyncio.client import connect

from bridge.demo.broker import Broker
from tests.support.clients import TEXT, RawClient, close_all, collectors, server_frames
from tests.support.killmail import EXAMPLE, killmail
from tests.support.publishing import depth, publish
from tests.support.running import bridge_process, port_of, running, sample, unique
from tests.support.waiting import eventually

SCHEMA = '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["kills"]}'


async def test_specification_example_arrives_to_the_byte(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        before_ms = time.time_ns() // 1_000_000
        await publish(amqp, exchange, EXAMPLE)
        text = await client.text()
        after_ms = time.time_ns() // 1_000_000
        await client.close()
    timestamp_ms = orjson.loads(text)["timestamp"]
    assert before_ms <= timestamp_ms <= after_ms
    assert text == b'{"type":"killmail","data":%s,"timestamp":%d}' % (orjson.dumps(EXAMPLE), timestamp_ms)


async def test_websockets_client_receives_a_text_message(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail") as bridge,
        connect(f"ws://localhost:{port_of(bridge)}/updates") as client,
    ):
        await publish(amqp, exchange, EXAMPLE)
        message = await client.recv()
        assert isinstance(message, str)
        assert orjson.loads(message)["data"] == EXAMPLE


async def test_ten_thousand_events_reach_a_hundred_clients_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    count = 10_000
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        clients = await collectors(await process.port(), 100)
        await publish(amqp, exchange, *(killmail(number) for number in range(count)))
        frames: list[tuple[int, bytes]] = []

        def first_has_all() -> bool:
            nonlocal frames
            # To take all of it apart is dear: not before the last is there.
            if b'"killmailId":%d,' % (count - 1) not in clients[0].received[-400:]:
                return False
            frames = server_frames(bytes(clients[0].received))
            return len(frames) == count

        await eventually("the first client has everything", first_has_all, limit_s=60)
        assert [orjson.loads(payload)["data"]["killmailId"] for opcode, payload in frames if opcode == TEXT] == list(
            range(count)
        )
        # One frame for all, so all streams are the same bytes.
        expected = clients[0].received
        await eventually(
            "all have the same", lambda: all(client.received == expected for client in clients), limit_s=60
        )
        close_all(clients)


async def test_type_property_chooses_the_schema(
    broker: Broker, amqp: AbstractConnection, tmp_path: Path, exchange: str
) -> None:
    (tmp_path / "sightings.json").write_text(SCHEMA)
    async with running(broker.url, exchanges=f"{exchange}=killmail", schemas=tmp_path) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, {"kills": 7}, type="sightings")
        await publish(amqp, exchange, EXAMPLE)
        update = orjson.loads(await client.text())
        assert (update["type"], update["data"]) == ("sightings", {"kills": 7})
        assert orjson.loads(await client.text())["type"] == "killmail"
        await client.close()


async def test_each_exchange_has_its_default_type(broker: Broker, amqp: AbstractConnection, tmp_path: Path) -> None:
    (tmp_path / "sightings.json").write_text(SCHEMA)
    killmails, sightings = unique("exchange"), unique("exchange")
    both = f"{killmails}=killmail,{sightings}=sightings"
    async with running(broker.url, exchanges=both, schemas=tmp_path) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, sightings, {"kills": 1})
        assert orjson.loads(await client.text())["type"] == "sightings"
        await publish(amqp, killmails, EXAMPLE)
        assert orjson.loads(await client.text())["type"] == "killmail"
        await client.close()


async def test_wrapped_event_gets_a_timestamp_of_the_bridges_own(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, {"type": "killmail", "data": EXAMPLE, "timestamp": 1})
        update = orjson.loads(await client.text())
        assert update["data"] == EXAMPLE
        assert abs(update["timestamp"] - time.time() * 1000) < 60_000
        await client.close()


async def test_missing_exchange_is_made_a_durable_fanout(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail"):
        channel = await amqp.channel()
        # Declared otherwise, the broker would refuse this.
        await channel.declare_exchange(exchange, aio_pika.ExchangeType.FANOUT, durable=True)


async def test_existing_topic_exchange_is_used_as_it_is(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    channel = await amqp.channel()
    target = await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, auto_delete=True)
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        await target.publish(aio_pika.Message(orjson.dumps(EXAMPLE)), routing_key="any.key")
        assert orjson.loads(await client.text())["data"] == EXAMPLE
        await client.close()


async def test_second_update_with_the_same_identity_is_not_sent_again(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, killmail(1), killmail(1, attackerCount=2), killmail(2))
        ids = [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(2)]
        assert ids == [1, 2]
        assert sample(bridge, "bridge_duplicates_total", type="killmail") == 1
        await client.close()


async def test_named_queue_keeps_events_while_the_bridge_is_away(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue}
    async with running(broker.url, **flags) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, killmail(1))
        assert b'"killmailId":1,' in await client.text()
        await client.close()
    # Everything was acknowledged before the bridge went.
    assert await depth(amqp, queue) == 0
    await publish(amqp, exchange, killmail(2), killmail(3))
    async with running(broker.url, **flags) as bridge:
        await eventually("both are delivered", lambda: sample(bridge, "bridge_updates_total", type="killmail") == 2)
        await eventually("both are acknowledged", lambda: sample(bridge, "bridge_receipt_to_flush_seconds_count") == 2)
    assert await depth(amqp, queue) == 0


async def test_no_more_than_the_prefetch_is_unsettled(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """A rejected event without a confirm holds its place: the broker sends the prefetch, and not one more."""
    channel = await amqp.channel()
    # A queue that refuses every message: the broker answers each publish with a nack.
    await channel.declare_exchange(rejects, aio_pika.ExchangeType.FANOUT, durable=True)
    full = await channel.declare_queue(
        rejects, durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
    )
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "prefetch": 5, "reject_exchange": rejects}
    async with running(broker.url, **flags) as bridge:
        await publish(amqp, exchange, *([b"not json"] * 20))
        await eventually("as many as the prefetch are held", lambda: bridge._rejects.waiting == 5)
        assert await depth(amqp, queue) == 15
        await channel.queue_delete(full.name)
        await eventually("all are through", lambda: sample(bridge, "bridge_rejects_total", reason="not-json") >= 20)
        await eventually("and confirmed", lambda: bridge.readiness.report()[1]["rejects"]["waiting"] == 0)  # type: ignore[index]  # JSON: an object
    assert await depth(amqp, queue) == 0
