"""The bridge uses an exchange of any type as it is, and declares a missing exchange as its owner would."""

from typing import Any

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import delete_until_missed, publish
from tests.support.running import consumer_of, port_of, running, sample, unique
from tests.support.waiting import eventually


async def checked(bridge: Bridge) -> None:
    """Waits for the next topology check."""
    status = consumer_of(bridge).status
    before_s = status.last_answered_s
    await eventually("the topology is checked", lambda: status.last_answered_s != before_s)


KINDS: list[dict[str, Any]] = [
    {"type": "fanout", "durable": False},
    {"type": "topic", "durable": True},
    {"type": "topic", "durable": False},
    {"type": "headers", "durable": True},
    {"type": "fanout", "durable": True, "arguments": {"alternate-exchange": "amq.fanout"}},
]


async def test_exchange_of_any_kind_that_delivers_is_used_as_it_is(broker: Broker, amqp: AbstractConnection) -> None:
    """Promise: topology checks do not change an exchange, and do not interrupt updates."""
    exchanges = {unique("exchange"): kind for kind in KINDS}
    channel = await amqp.channel()
    for name, kind in exchanges.items():
        await channel.declare_exchange(name, **kind)
    async with running(broker.url, exchanges=",".join(f"{name}=killmail" for name in exchanges)) as bridge:
        client = await RawClient.open(port_of(bridge))
        for _ in range(2):
            await checked(bridge)
        for number, name in enumerate(exchanges):
            await publish(amqp, name, killmail(number))
            assert orjson.loads(await client.text())["data"]["killmailId"] == number
        assert sample(bridge, "bridge_broker_losses_total") == 0
        await client.close()
    for name, kind in exchanges.items():
        await channel.declare_exchange(name, **kind)
        await channel.exchange_delete(name)


OWNED: list[dict[str, Any]] = [each for each in KINDS if "arguments" not in each]


@pytest.mark.parametrize("kind", OWNED, ids=lambda kind: f"{kind['type']}-{kind['durable']}")
async def test_exchange_that_is_declared_again_has_the_properties_of_its_owner(
    kind: dict[str, Any], broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Promise: if the bridge has declared a deleted exchange again, the owner can still declare it as before."""
    channel = await amqp.channel()
    await channel.declare_exchange(exchange, **kind)
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        await delete_until_missed(amqp, exchange, lambda: sample(bridge, "bridge_broker_losses_total") > 0)
        await eventually("the bridge is ready", lambda: bridge.readiness.report()[0])
        await channel.declare_exchange(exchange, **kind)
        await publish(amqp, exchange, killmail(1))
        assert orjson.loads(await client.text())["data"]["killmailId"] == 1
        await client.close()


async def test_exchange_that_only_its_owner_can_declare_is_waited_for(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Promise: if an exchange with arguments is deleted, the bridge does not declare it itself.

    `/readyz` names the exchange until it is back.
    """
    kind: dict[str, Any] = {"type": "fanout", "durable": True, "arguments": {"alternate-exchange": "amq.fanout"}}
    channel = await amqp.channel()
    await channel.declare_exchange(exchange, **kind)
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        await channel.exchange_delete(exchange)
        words = f"the exchange '{exchange}' is gone"

        def named() -> bool:
            report = bridge.readiness.report()[1]["broker"]
            return isinstance(report, dict) and words in str(report["last_error"])

        await eventually("/readyz names the exchange", named)
        await channel.declare_exchange(exchange, **kind)
        await eventually("the bridge is ready", lambda: bridge.readiness.report()[0])
        await publish(amqp, exchange, killmail(1))
        assert orjson.loads(await client.text())["data"]["killmailId"] == 1
        await client.close()
