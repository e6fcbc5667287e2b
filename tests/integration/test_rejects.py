"""Events that can't become an update: where they go, and what is said of them."""

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from bridge.demo.broker import Broker
from tests.support.clients import RawClient
from tests.support.killmail import EXAMPLE, killmail
from tests.support.publishing import depth, publish, take
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually


def said(message: AbstractIncomingMessage) -> dict[str, object]:
    return {name.removeprefix("x-reject-"): value for name, value in message.headers.items() if "x-reject" in name}


@pytest.mark.parametrize(
    ("body", "properties", "reason", "pointer", "words"),
    [
        (b"{", {}, "not-json", "", "not JSON"),
        (b'{"killmailId": NaN}', {}, "not-json", "", "not JSON"),
        (b"[" * 2000, {}, "not-json", "", "depth"),
        (b"x" * 5000, {}, "too-large", "", "5000 bytes; BRIDGE_MAX_MESSAGE_BYTES allows 4096"),
        (b"{}", {"type": "nonsense"}, "unknown-type", "", "'nonsense'"),
        (b"{}", {"content_encoding": "gzip"}, "unsupported-encoding", "", "'gzip'"),
        (
            orjson.dumps(killmail(1, systemId="Jita")),
            {},
            "schema-violation",
            "/systemId",
            '"Jita" is not of type "integer"',
        ),
        (orjson.dumps(killmail(2**53)), {}, "schema-violation", "/killmailId", "maximum of 9007199254740991"),
        (orjson.dumps(killmail(1, timestamp="noon")), {}, "schema-violation", "/timestamp", '"noon" does not match'),
        (
            orjson.dumps({"type": "killmail", "data": {**EXAMPLE, "shipTypeId": None}}),
            {},
            "schema-violation",
            "/data/shipTypeId",
            'null is not of type "integer"',
        ),
        (b"{}", {}, "schema-violation", "/killmailId", "'killmailId' is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_rejected_event_is_published_with_its_reason(
    broker: Broker,
    amqp: AbstractConnection,
    body: bytes,
    properties: dict[str, object],
    reason: str,
    pointer: str,
    words: str,
    exchange: str,
    rejects: str,
) -> None:
    flags = {
        "exchanges": f"{exchange}=killmail",
        "reject_exchange": rejects,
        "instance": "here",
        "max_message_bytes": 4096,
    }
    async with running(broker.url, **flags) as bridge:
        await publish(amqp, exchange, body, **properties)
        [message] = await take(amqp, rejects, 1)
        assert message.body == body
        reasons = said(message)
        assert (reasons["reason"], reasons["pointer"]) == (reason, pointer)
        assert words in str(reasons["detail"])
        assert (reasons["exchange"], reasons["instance"]) == (exchange, "here")
        assert reasons["schema"] == ("urn:edk-bridge:schema:killmail" if reason == "schema-violation" else "")
        assert str(reasons["time"]).endswith("+00:00")
        assert sample(bridge, "bridge_rejects_total", reason=reason) == 1


async def test_rejected_event_keeps_its_properties(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    came = {
        "headers": {"source": "fetcher-1", "attempt": 3, "nested": {"a": [1, None, True]}},
        "content_type": "application/json",
        "delivery_mode": 2,
        "priority": 4,
        "correlation_id": "c-1",
        "reply_to": "answers",
        "message_id": "m-1",
        "app_id": "edk",
        "type": "killmail",
    }
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        await publish(amqp, exchange, b"[]", **came)
        [message] = await take(amqp, rejects, 1)
        assert {name: getattr(message, name) for name in came if name != "headers"} == {
            name: value for name, value in came.items() if name != "headers"
        }
        assert {k: v for k, v in message.headers.items() if not k.startswith("x-reject")} == came["headers"]


async def test_headers_too_large_to_publish_again_are_left_out_and_said_so(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        await publish(amqp, exchange, b"[]", headers={"much": "x" * 120_000})
        [message] = await take(amqp, rejects, 1)
        assert "much" not in message.headers
        assert "left out" in str(message.headers["x-reject-headers"])
        assert message.headers["x-reject-reason"] == "schema-violation"


async def test_user_id_that_the_broker_would_refuse_becomes_a_header(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        await publish(amqp, exchange, b"[]", user_id="guest")
        [message] = await take(amqp, rejects, 1)
        assert message.user_id is None
        assert message.headers["x-reject-user-id"] == "guest"


async def test_event_that_would_expire_is_kept_and_its_expiration_becomes_a_header(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        # In seconds here, in milliseconds on the line: long enough to be delivered.
        await publish(amqp, exchange, b"[]", expiration=60)
        [message] = await take(amqp, rejects, 1)
        assert message.expiration is None
        assert message.headers["x-reject-expiration"] == "60000"


async def test_reasons_are_the_bridges_own_whatever_the_event_says(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    said = {
        "x-reject-user-id": "root",
        "x-reject-reason": "placeholder",
        "x-reject-headers": "?",
        "source": "fetcher-1",
    }
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        await publish(amqp, exchange, b"[]", headers=said)
        [message] = await take(amqp, rejects, 1)
        assert message.headers["x-reject-reason"] == "schema-violation"
        assert message.headers["source"] == "fetcher-1"
        assert not {"x-reject-user-id", "x-reject-headers"} & set(message.headers)


async def test_valid_events_overtake_rejected_ones_in_their_own_order(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    count = 500
    events = [event for number in range(count) for event in (killmail(number), b"poison")]
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, *events)
        ids = [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(count)]
        assert ids == list(range(count))
        assert len(await take(amqp, rejects, count)) == count
        await client.close()


async def test_off_only_counts(broker: Broker, amqp: AbstractConnection, exchange: str, queue: str) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "reject_exchange": "off"}
    async with running(broker.url, **flags) as bridge:
        await publish(amqp, exchange, b"poison")
        await eventually("it is counted", lambda: sample(bridge, "bridge_rejects_total", reason="not-json") == 1)
    assert await depth(amqp, queue) == 0


async def test_rejects_queue_that_is_deleted_is_made_again(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """An event that the broker returns, because no queue is bound, is held and published again."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        channel = await amqp.channel()
        await channel.queue_delete(rejects)
        await publish(amqp, exchange, b"poison")

        async def arrived() -> bool:
            try:
                return await depth(amqp, rejects) == 1
            except aio_pika.exceptions.ChannelNotFoundEntity:
                return False

        await eventually("the event is in a new queue", arrived)


async def test_topic_exchange_for_rejects_takes_events_of_any_routing_key(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """An exchange for rejects that exists is used as it is, and its queue is bound for everything."""
    channel = await amqp.channel()
    await channel.declare_exchange(rejects, aio_pika.ExchangeType.TOPIC, durable=True)
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        target = await channel.get_exchange(exchange)
        await target.publish(aio_pika.Message(b"poison"), routing_key="kill.lowsec")
        [message] = await take(amqp, rejects, 1)
        assert message.routing_key == "kill.lowsec"
