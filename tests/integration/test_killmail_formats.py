"""Killmails in the formats of their sources, through a real RabbitMQ, to a real client."""

from typing import Any

import orjson
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.killmail import ESI, EXAMPLE, packaged, r2z2, redisq, wrapped
from tests.support.publishing import depth, publish
from tests.support.running import port_of, running, sample

MANY = 4_000
"""The number of attackers in a killmail whose body needs several AMQP frames."""


def esi(killmail_id: int, attackers: int = 2) -> dict[str, Any]:
    """Returns a raw killmail with this id and this number of attackers."""
    return {**ESI, "killmail_id": killmail_id, "attackers": ESI["attackers"] * (attackers // 2)}


async def test_each_format_becomes_the_same_update_and_the_duplicate_window_has_the_configured_size(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    same = [EXAMPLE, ESI, redisq(ESI), packaged(redisq(ESI)), r2z2(ESI), wrapped(EXAMPLE)]
    others = [esi(1, MANY), redisq(esi(2)), packaged(redisq(esi(3))), r2z2(esi(4)), wrapped(packaged(redisq(esi(5))))]
    async with running(broker.url, exchanges=f"{exchange}=killmail", queue=queue, duplicate_window=5) as bridge:
        client = await RawClient.open(port_of(bridge))
        # The window of duplicates holds the first killmail and four others. One more killmail evicts the first killmail
        # from the window.
        await publish(amqp, exchange, *same, *others[:4], *same, others[4], EXAMPLE)
        updates = [orjson.loads(await client.text()) for _ in range(7)]
        assert {update["type"] for update in updates} == {"killmail"}
        first, *converted, last = [update["data"] for update in updates]
        assert first == last == EXAMPLE
        expected = [
            {**EXAMPLE, "killmailId": number, "attackerCount": count, "killmailTime": ESI["killmail_time"]}
            for number, count in zip(range(1, 6), (MANY, 2, 2, 2, 2), strict=True)
        ]
        assert [{**data, "timestamp": EXAMPLE["timestamp"]} for data in converted] == expected
        assert sample(bridge, "bridge_duplicates_total", type="killmail") == 2 * len(same) - 1
        await client.close()
    assert await depth(amqp, queue) == 0
