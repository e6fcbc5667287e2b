"""Events that can't become an update: their queue, and the reasons in their headers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import aio_pika
import orjson
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import depth, publish, take
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

pytestmark = module_loop.MARK
amqp, exchange, queue, rejects = module_loop.amqp, module_loop.exchange, module_loop.queue, module_loop.rejects


@dataclass(frozen=True, slots=True)
class Shared:
    """A bridge for all tests that need no other settings. Each test takes its rejected events from the queue."""

    bridge: Bridge
    exchange: str
    rejects: str


@pytest_asyncio.fixture(loop_scope="module")
async def shared(amqp: AbstractConnection, shared_by_all: Shared) -> Shared:
    """The bridge that all tests share.

    The queue of rejected events is empty at the start of each test, even if an earlier test failed.
    """
    channel = await amqp.channel()
    await (await channel.get_queue(shared_by_all.rejects, ensure=False)).purge()
    await channel.close()
    return shared_by_all


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_by_all(broker: Broker, amqp: AbstractConnection) -> AsyncIterator[Shared]:
    """Starts one bridge for all tests. The bridge declares the exchange and the queue of rejected events itself."""
    async with module_loop.own(amqp, "exchange") as exchange, module_loop.own(amqp, "rejects") as rejects:
        flags = {"reject_exchange": rejects, "instance": "here", "max_message_bytes": 4096}
        async with running(broker.url, exchanges=f"{exchange}=killmail", **flags) as bridge:
            yield Shared(bridge, exchange, rejects)


@pytest.mark.parametrize(
    ("body", "properties", "reason", "pointer", "detail"),
    [
        (b"[" * 2000, {}, "not-json", "", "depth"),
        (b"x" * 5000, {}, "too-large", "", "5000 bytes; BRIDGE_MAX_MESSAGE_BYTES allows 4096"),
        (b"{}", {"type": "nonsense"}, "unknown-type", "", "'nonsense'"),
        (b"{}", {"content_encoding": "gzip"}, "unsupported-encoding", "", "'gzip'"),
        (
            orjson.dumps({"type": "killmail", "data": killmail(1, systemId="Jita")}),
            {},
            "schema-violation",
            "/data/systemId",
            '"Jita" is not of type "integer"',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_rejected_event_is_published_with_its_reason(
    shared: Shared,
    amqp: AbstractConnection,
    body: bytes,
    properties: dict[str, object],
    reason: str,
    pointer: str,
    detail: str,
) -> None:
    before = sample(shared.bridge, "bridge_rejects_total", reason=reason)
    await publish(amqp, shared.exchange, body, **properties)
    [message] = await take(amqp, shared.rejects, 1)
    assert message.body == body
    headers = {name.removeprefix("x-reject-"): value for name, value in message.headers.items()}
    assert (headers["reason"], headers["pointer"]) == (reason, pointer)
    assert detail in str(headers["detail"])
    assert (headers["exchange"], headers["instance"]) == (shared.exchange, "here")
    assert headers["schema"] == ("urn:edk-bridge:schema:killmail" if reason == "schema-violation" else "")
    assert str(headers["time"]).endswith("+00:00")
    assert sample(shared.bridge, "bridge_rejects_total", reason=reason) == before + 1


async def test_rejected_event_keeps_its_properties(shared: Shared, amqp: AbstractConnection) -> None:
    properties = {
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
    await publish(amqp, shared.exchange, b"[]", **properties)
    [message] = await take(amqp, shared.rejects, 1)
    assert {name: getattr(message, name) for name in properties if name != "headers"} == {
        name: value for name, value in properties.items() if name != "headers"
    }
    assert {k: v for k, v in message.headers.items() if not k.startswith("x-reject")} == properties["headers"]


async def test_headers_that_are_too_large_to_publish_are_omitted_and_named_in_a_header(
    shared: Shared, amqp: AbstractConnection
) -> None:
    await publish(amqp, shared.exchange, b"[]", headers={"much": "x" * 130_900})
    [message] = await take(amqp, shared.rejects, 1)
    assert "much" not in message.headers
    assert "omitted" in str(message.headers["x-reject-headers"])
    assert message.headers["x-reject-reason"] == "schema-violation"


async def test_user_id_and_expiration_become_headers_and_forged_reasons_are_replaced(
    shared: Shared, amqp: AbstractConnection
) -> None:
    """The broker would refuse a reject with the event's user id, and drop a reject with the event's expiration."""
    forged = {"x-reject-user-id": "root", "x-reject-reason": "placeholder", "x-reject-headers": "?", "source": "f-1"}
    # aio-pika takes the expiration in seconds and sends it in milliseconds. 60 s is long enough for the delivery.
    await publish(amqp, shared.exchange, b"[]", headers=forged, user_id="guest", expiration=60)
    await publish(amqp, shared.exchange, b"[]", headers=forged)
    first, last = await take(amqp, shared.rejects, 2)
    assert (first.user_id, first.expiration) == (None, None)
    assert first.headers["x-reject-user-id"] == "guest"
    assert first.headers["x-reject-expiration"] == "60000"
    assert last.headers["x-reject-reason"] == "schema-violation"
    assert last.headers["source"] == "f-1"
    assert not {"x-reject-user-id", "x-reject-headers"} & set(last.headers)


async def test_valid_events_overtake_rejected_ones_and_keep_their_order(
    shared: Shared, amqp: AbstractConnection
) -> None:
    count = 500
    events = [event for number in range(count) for event in (killmail(number), b"not JSON")]
    client = await RawClient.open(port_of(shared.bridge))
    await publish(amqp, shared.exchange, *events)
    ids = [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(count)]
    assert ids == list(range(count))
    assert len(await take(amqp, shared.rejects, count)) == count
    await client.close()


async def test_events_are_only_counted_if_the_reject_exchange_is_off(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "reject_exchange": "off"}
    async with running(broker.url, **flags) as bridge:
        await publish(amqp, exchange, b"not JSON")
        await eventually("the event is counted", lambda: sample(bridge, "bridge_rejects_total", reason="not-json") == 1)
    assert await depth(amqp, queue) == 0


async def test_deleted_rejects_queue_is_declared_again(shared: Shared, amqp: AbstractConnection) -> None:
    """If no queue is bound, the broker returns the event. The bridge holds a returned event and publishes it again."""
    channel = await amqp.channel()
    await channel.queue_delete(shared.rejects)
    await publish(amqp, shared.exchange, b"not JSON")

    async def arrived() -> bool:
        try:
            return await depth(amqp, shared.rejects) == 1
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False

    await eventually("the event is in a new queue", arrived)
    await take(amqp, shared.rejects, 1)


async def test_topic_exchange_for_rejects_accepts_each_routing_key(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """The bridge uses an existing topic exchange, and binds its queue with `#`."""
    channel = await amqp.channel()
    await channel.declare_exchange(rejects, aio_pika.ExchangeType.TOPIC, durable=True)
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        target = await channel.get_exchange(exchange)
        await target.publish(aio_pika.Message(b"not JSON"), routing_key="kill.lowsec")
        [message] = await take(amqp, rejects, 1)
        assert message.routing_key == "kill.lowsec"
