"""A fetcher in Python with `bridge.Publisher`: what the broker gets, and which errors the fetcher gets."""

import asyncio
import contextlib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_type
from urllib.parse import urlsplit

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from bridge import BrokerRefusal, ExchangeNotFound, InvalidUpdate, NotConfirmed, Publisher
from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.killmail import ESI, EXAMPLE, killmail, redisq
from tests.support.proxy import proxy
from tests.support.publishing import bind, depth, take
from tests.support.running import port_of, running
from tests.support.waiting import eventually, no_task_left

WRONG_PASSWORD = "correct-horse"  # no message contains this text by chance


def ids(messages: list[AbstractIncomingMessage]) -> list[int]:
    return [orjson.loads(message.body)["killmailId"] for message in messages]


async def test_update_arrives_persistent_and_with_its_type(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    async with Publisher(broker.url, exchange) as publisher:
        assert assert_type(await publisher.broadcast("killmail", EXAMPLE), bool) is True
    [message] = await take(amqp, queue, 1)
    assert orjson.loads(message.body) == EXAMPLE
    assert (message.type, message.content_type, message.delivery_mode) == ("killmail", "application/json", 2)
    assert not message.headers


async def test_update_that_no_queue_gets_returns_false(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    async with Publisher(broker.url, exchange, declare=True) as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE) is False
        await bind(amqp, exchange, queue)
        assert await publisher.broadcast("killmail", EXAMPLE) is True


async def test_client_of_a_bridge_gets_published_updates(broker: Broker, exchange: str) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=statistics") as bridge,
        Publisher(broker.url, exchange) as publisher,
    ):
        client = await RawClient.open(port_of(bridge))
        assert await publisher.broadcast("killmail", EXAMPLE)
        update = orjson.loads(await client.text())
        assert (update["type"], update["data"]) == ("killmail", EXAMPLE)
        assert await publisher.broadcast("killmail", {**ESI, "killmail_id": 7})
        update = orjson.loads(await client.text())
        assert update["data"]["killmailId"] == 7
        assert update["data"]["attackerCount"] == len(ESI["attackers"])
        await client.close()


@pytest.mark.parametrize(
    ("update_type", "data", "reason", "pointer", "schema", "words"),
    [
        (
            "killmail",
            killmail(1, systemId="Jita"),
            "schema-violation",
            "/systemId",
            "killmail",
            'not of type "integer"',
        ),
        ("killmail", {}, "schema-violation", "/killmailId", "killmail", "is missing"),
        ("killmail", killmail(2**53), "schema-violation", "/killmailId", "killmail", "maximum"),
        ("killmail", {**ESI, "killmail_id": None}, "schema-violation", "/killmail_id", "esi-killmail", "null"),
        ("killmail", {"package": None}, "placeholder", "/package", "redisq-package", "no new killmail"),
        ("nonsense", {}, "unknown-type", "", "", "'nonsense'"),
        ("killmail", killmail(1, note="x" * 5000), "too-large", "", "", "4096"),
        ("killmail", killmail(1, price=Decimal(1)), "not-json", "", "", "Decimal"),
        ("killmail", killmail(1, tags={1}), "not-json", "", "", "set"),
        ("killmail", killmail(1, by={1: 2}), "not-json", "", "", "key"),
        ("killmail", killmail(2**64), "not-json", "", "", "64-bit"),
        ("killmail", killmail(1, note="\ud800"), "not-json", "", "", "surrogates"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
async def test_invalid_update_raises_and_is_not_published(
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    queue: str,
    update_type: str,
    data: object,
    reason: str,
    pointer: str,
    schema: str,
    words: str,
) -> None:
    await bind(amqp, exchange, queue)
    async with Publisher(broker.url, exchange, max_message_bytes=4096) as publisher:
        with pytest.raises(InvalidUpdate) as refused:
            await publisher.broadcast(update_type, data)
        assert await publisher.broadcast("killmail", killmail(7))
    error = refused.value
    assert (error.reason, error.pointer) == (reason, pointer)
    assert error.schema == (f"urn:edk-bridge:schema:{schema}" if schema else "")
    assert words in error.detail
    assert str(error) == f"{reason}: {error.detail}"
    assert isinstance(error, ValueError)
    assert ids(await take(amqp, queue, 1)) == [7]
    assert await depth(amqp, queue) == 0


async def test_datetime_is_written_as_a_date_time(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    moment = datetime(2024, 10, 22, 10, 30, tzinfo=UTC)
    async with Publisher(broker.url, exchange) as publisher:
        await publisher.broadcast("killmail", killmail(1, timestamp=moment, victimId=None))
    [message] = await take(amqp, queue, 1)
    data = orjson.loads(message.body)
    assert datetime.fromisoformat(data["timestamp"]) == moment
    assert data["victimId"] is None


@pytest.mark.parametrize("data", [ESI, redisq(ESI)], ids=["ESI", "RedisQ"])
async def test_source_format_is_published_unchanged(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, data: object
) -> None:
    await bind(amqp, exchange, queue)
    async with Publisher(broker.url, exchange) as publisher:
        assert await publisher.broadcast("killmail", data)
    [message] = await take(amqp, queue, 1)
    assert (message.type, orjson.loads(message.body)) == ("killmail", data)


async def test_additional_type_is_validated_by_its_schema(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "duel.json").write_text('{"type": "object", "required": ["winner"]}')
    await bind(amqp, exchange, queue)
    async with Publisher(broker.url, exchange, schemas=tmp_path) as publisher:
        with pytest.raises(InvalidUpdate, match="'winner' is missing"):
            await publisher.broadcast("duel", {})
        await publisher.broadcast("duel", {"winner": 1})
        await publisher.broadcast("killmail", EXAMPLE)
    assert [message.type for message in await take(amqp, queue, 2)] == ["duel", "killmail"]


async def test_wrapped_event_contains_its_type(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    body = b' {"type": "killmail", "data": %s} ' % orjson.dumps(EXAMPLE)
    async with Publisher(broker.url, exchange) as publisher:
        assert await publisher.publish(body)
        with pytest.raises(InvalidUpdate, match="unknown-type"):
            await publisher.publish(orjson.dumps(EXAMPLE))
        with pytest.raises(InvalidUpdate, match="not-json"):
            await publisher.publish(b"{", "killmail")
    [message] = await take(amqp, queue, 1)
    assert (message.type, message.body) == ("killmail", body)


async def test_thousand_updates_at_once_arrive_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    async with Publisher(broker.url, exchange) as publisher:
        confirmed = await asyncio.gather(*(publisher.broadcast("killmail", killmail(n)) for n in range(1000)))
    assert confirmed == [True] * 1000
    assert ids(await take(amqp, queue, 1000)) == list(range(1000))


async def test_updates_published_while_it_connects_arrive_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """Later updates do not overtake updates that wait for the connection."""
    await bind(amqp, exchange, queue)
    async with Publisher(broker.url, exchange) as publisher, asyncio.TaskGroup() as tasks:
        sent = [tasks.create_task(publisher.broadcast("killmail", killmail(0)))]
        while not sent[0].done():
            # In each turn of the event loop, the test begins to publish one update.
            sent.append(tasks.create_task(publisher.broadcast("killmail", killmail(len(sent)))))
            await asyncio.sleep(0)
    assert ids(await take(amqp, queue, len(sent))) == list(range(len(sent)))


@no_task_left
async def test_missing_exchange_raises_an_error_with_its_name_and_is_not_declared(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with Publisher(broker.url, exchange) as publisher:
        for _ in range(2):
            with pytest.raises(ExchangeNotFound, match=f"there is no exchange '{exchange}': .*declare=True"):
                await publisher.broadcast("killmail", EXAMPLE)
        # If an exchange is missing, the broker closes the channel that asked for it.
        missed = await amqp.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await missed.get_exchange(exchange)
        await missed.close()
        # The test declares the exchange as a bridge does when it starts.
        channel = await amqp.channel()
        await channel.declare_exchange(exchange, aio_pika.ExchangeType.FANOUT, durable=True)
        await channel.close()
        assert await publisher.broadcast("killmail", EXAMPLE) is False


async def test_missing_exchange_is_declared_as_a_durable_fanout_on_demand(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with Publisher(broker.url, exchange, declare=True) as publisher:
        await publisher.broadcast("killmail", EXAMPLE)
    # The broker refuses this declaration if the existing exchange has different properties.
    await (await amqp.channel()).declare_exchange(exchange, aio_pika.ExchangeType.FANOUT, durable=True)


@pytest.mark.parametrize(
    "options",
    [
        {"type": aio_pika.ExchangeType.TOPIC, "durable": True},
        {"type": aio_pika.ExchangeType.FANOUT, "durable": False},
        {"type": aio_pika.ExchangeType.FANOUT, "auto_delete": True},
    ],
    ids=["topic", "transient", "auto-delete"],
)
async def test_existing_exchange_is_used_as_it_is(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, options: dict[str, Any]
) -> None:
    channel = await amqp.channel()
    target = await channel.declare_exchange(exchange, **options)
    await (await channel.declare_queue(queue, exclusive=True)).bind(target, "#")
    async with Publisher(broker.url, exchange) as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
    assert await depth(amqp, queue) == 1
    await channel.declare_exchange(exchange, **options)


async def test_several_publishers_do_not_disturb_each_other(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    publishers = [Publisher(broker.url, exchange) for _ in range(4)]
    await asyncio.gather(*(publisher.broadcast("killmail", killmail(n)) for publisher in publishers for n in range(50)))
    await publishers[0].close()
    assert await publishers[1].broadcast("killmail", killmail(50))
    for publisher in publishers[1:]:
        await publisher.close()
    arrived = ids(await take(amqp, queue, 201))
    assert sorted(arrived) == sorted([*range(50)] * 4 + [50])


@no_task_left
async def test_close_does_not_wait_for_a_silent_broker(exchange: str) -> None:
    accepted = asyncio.Event()

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set()

    server = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0)
    publisher = Publisher(f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/", exchange)
    waiting = asyncio.create_task(publisher.broadcast("killmail", EXAMPLE))
    await accepted.wait()
    async with asyncio.timeout(4):  # the publisher waits 5 s for the broker's answer
        await publisher.close()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    server.close()


@no_task_left
async def test_close_ends_updates_that_wait_for_a_confirm(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """An update that a full queue refuses is published again and again, until the publisher is closed."""
    await bind(amqp, exchange, queue, **FULL)
    publisher = Publisher(broker.url, exchange)
    assert await publisher.broadcast("killmail", EXAMPLE)
    waiting = asyncio.create_task(publisher.broadcast("killmail", EXAMPLE))
    await eventually("the update was refused", lambda: publisher._exchange.error is not None)
    await publisher.close()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting


FULL = {"x-overflow": "reject-publish", "x-max-length": 1}


async def test_full_queue_is_reported_and_gets_the_update_once_there_is_room(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue, **FULL)
    async with Publisher(broker.url, exchange) as publisher:
        assert await publisher.broadcast("killmail", killmail(1))
    async with Publisher(broker.url, exchange, timeout_s=1) as publisher:
        with pytest.raises(
            NotConfirmed, match=r"within 1 s: the broker does not accept the message \(nack\): a queue may be full"
        ):
            await publisher.broadcast("killmail", killmail(2))
    async with Publisher(broker.url, exchange) as publisher:
        waiting = asyncio.create_task(publisher.broadcast("killmail", killmail(3)))
        await eventually("the update was refused", lambda: publisher._exchange.error is not None)
        assert ids(await take(amqp, queue, 1)) == [1]
        assert await waiting is True
        assert ids(await take(amqp, queue, 1)) == [3]


async def test_stopped_broker_is_reported_and_used_once_it_runs(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    async with proxy(broker.url) as stopped, Publisher(stopped.url, exchange, timeout_s=0.5) as publisher:
        with pytest.raises(NotConfirmed, match=r"within 0\.5 s: amqp://.*:\*\*\*@127\.0\.0\.1:\d+/.*: ") as failed:
            await publisher.broadcast("killmail", killmail(1))
        assert isinstance(failed.value, ConnectionError)
        assert str(urlsplit(stopped.url).password) + "@" not in str(failed.value)
        await stopped.open()
        await eventually("the update is published", lambda: is_published(publisher, 2))
        assert ids(await take(amqp, queue, 1)) == [2]


async def is_published(publisher: Publisher, number: int) -> bool:
    with contextlib.suppress(NotConfirmed):
        return await publisher.broadcast("killmail", killmail(number))
    return False


async def test_silent_broker_raises_not_confirmed(exchange: str) -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    url = f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with Publisher(url, exchange, timeout_s=0.2) as publisher:
        with pytest.raises(NotConfirmed, match="it may be short of memory or disk"):
            await publisher.broadcast("killmail", EXAMPLE)
    server.close()


async def raises_at_once_and_again(url: str, exchange: str, words: str) -> None:
    """Checks that each attempt to publish an update raises an error that contains `words` but not the password."""
    async with Publisher(url, exchange) as publisher:
        for _ in range(2):
            with pytest.raises(BrokerRefusal) as refused:
                await publisher.broadcast("killmail", EXAMPLE)
            assert words in str(refused.value)
            assert WRONG_PASSWORD not in str(refused.value)
        both = await asyncio.gather(
            *(publisher.broadcast("killmail", killmail(n)) for n in range(2)), return_exceptions=True
        )
        assert [type(error) for error in both] == [BrokerRefusal] * 2


@no_task_left
async def test_wrong_password_raises_at_once_and_again_with_the_next_update(broker: Broker, exchange: str) -> None:
    parts = urlsplit(broker.url.split(",", maxsplit=1)[0])
    wrong = parts._replace(netloc=f"{parts.username}:{WRONG_PASSWORD}@{parts.hostname}:{parts.port}").geturl()
    await raises_at_once_and_again(wrong, exchange, "refuses the user name or the password")


@no_task_left
async def test_missing_virtual_host_raises_at_once_and_again(broker: Broker, exchange: str) -> None:
    parts = urlsplit(broker.url.split(",", maxsplit=1)[0])
    await raises_at_once_and_again(parts._replace(path="/nowhere").geturl(), exchange, "the virtual host 'nowhere'")


@no_task_left
async def test_internal_exchange_raises_at_once_and_again(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    channel = await amqp.channel()
    await channel.declare_exchange(exchange, aio_pika.ExchangeType.FANOUT, durable=True, internal=True)
    await channel.close()
    await raises_at_once_and_again(broker.url, exchange, f"the exchange '{exchange}' can't be used: ACCESS_REFUSED")


async def test_first_of_several_nodes_that_answers_is_used(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    async with proxy(broker.url) as away, Publisher(f"{away.url},{broker.url}", exchange) as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
