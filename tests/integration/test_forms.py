"""Killmails as sources give them, through a real RabbitMQ, to a real client."""

import json
from typing import Any

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.demo.broker import Broker
from tests.support.clients import RawClient
from tests.support.killmail import CORPUS, CORPUS_INDEX, ESI, EXAMPLE, INDEXED, packaged, r2z2, redisq, wrapped
from tests.support.publishing import depth, publish, take
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually


def esi(killmail_id: int) -> dict[str, Any]:
    """A raw killmail with this id."""
    return {**ESI, "killmail_id": killmail_id}


async def test_every_form_arrives_as_the_same_update(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    forms = [esi(1), redisq(esi(2)), packaged(redisq(esi(3))), r2z2(esi(4)), wrapped(packaged(redisq(esi(5))))]
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, *forms)
        for number in range(1, 6):
            update = orjson.loads(await client.text())
            assert update["type"] == "killmail"
            expected = {**EXAMPLE, "killmailId": number, "attackerCount": 2, "killmailTime": "2024-10-22T10:14:51Z"}
            assert {**update["data"], "timestamp": EXAMPLE["timestamp"]} == expected
        await client.close()


async def test_same_killmail_from_fetchers_of_different_sources_is_sent_once(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    same = [EXAMPLE, ESI, redisq(ESI), packaged(redisq(ESI)), r2z2(ESI), wrapped(EXAMPLE)]
    async with running(broker.url, exchanges=f"{exchange}=killmail", queue=queue) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, *same, esi(7))
        ids = [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(2)]
        assert ids == [EXAMPLE["killmailId"], 7]
        assert sample(bridge, "bridge_duplicates_total", type="killmail") == len(same) - 1
        await client.close()
    assert await depth(amqp, queue) == 0


async def test_window_that_forgot_an_identity_sends_it_again(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", duplicate_window=2) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, *map(esi, (1, 2, 1, 3, 2, 1)))
        ids = [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(4)]
        # A third identity pushes out the oldest, 1; a duplicate does not make its identity young again.
        assert ids == [1, 2, 3, 1]
        await eventually("all are counted", lambda: sample(bridge, "bridge_duplicates_total", type="killmail") == 2)
        await client.close()


@pytest.mark.parametrize(
    ("event", "pointer", "schema", "says"),
    [
        (packaged(None), "/package", "redisq-package", "an empty RedisQ package"),
        (packaged({"killID": 1, "zkb": {}}), "/package/killmail", "redisq-package", "without its killmail"),
        ({"killID": 1, "killmail": None}, "/killmail", "redisq-package", "without its killmail"),
        (dict.fromkeys(r2z2(ESI)), "/esi", "r2z2-document", "esi is empty"),
    ],
)
async def test_placeholder_is_rejected_as_one(
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    rejects: str,
    event: object,
    pointer: str,
    schema: str,
    says: str,
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        await publish(amqp, exchange, event)
        [message] = await take(amqp, rejects, 1)
    assert message.body == orjson.dumps(event)
    assert message.headers["x-reject-reason"] == "placeholder"
    assert message.headers["x-reject-pointer"] == pointer
    assert message.headers["x-reject-schema"] == f"urn:edk-bridge:schema:{schema}"
    assert says in str(message.headers["x-reject-detail"])


async def test_real_killmails_become_the_right_updates(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    if not CORPUS_INDEX.is_file():
        pytest.skip("there are no real killmails on this machine")
    index = json.loads(CORPUS_INDEX.read_text())
    bodies = [(CORPUS / entry["file"]).read_bytes() for entry in index]
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, *bodies)
        for entry in index:
            data = orjson.loads(await client.text())["data"]
            assert {ours: data.get(ours) for ours in INDEXED} == {ours: entry[key] for ours, key in INDEXED.items()}
            assert data.keys() == {ours for ours, key in INDEXED.items() if entry[key] is not None} | {
                "timestamp",
                "killmailTime",
            }
        await client.close()
