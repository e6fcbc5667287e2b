"""Tests that clients that join during a storm miss no update, with real sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest

from bridge.broadcast import join_storm
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

    from tests.support.broker.find import Broker

CLIENTS = 20
LAST = 200


@pytest.fixture(autouse=True)
def each_connection_joins_in_a_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_storm, "MAX_JOINS", 0)


async def numbers(client: RawClient) -> list[int]:
    """Returns the numbers of the updates up to the last one."""
    received: list[int] = []
    while received[-1:] != [LAST]:
        message = orjson.loads(await client.text())
        if message["type"] == "killmail":
            received.append(message["data"]["killmailId"])
    return received


@pytest.mark.parametrize("path", ["/updates", "/updates?after=", "/updates?type=killmail"])
async def test_clients_get_every_update_after_their_handshake_once(
    broker: Broker, amqp: AbstractConnection, exchange: str, path: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
        published = 0
        clients: list[tuple[RawClient, int]] = []

        async def join() -> None:
            client = await RawClient.open(port_of(bridge), path=path)
            clients.append((client, published + 1))

        while len(clients) < CLIENTS:
            joining = [asyncio.create_task(join()) for _ in range(2)]
            published += 1
            await publish(amqp, exchange, killmail(published))
            await asyncio.gather(*joining)
        await publish(amqp, exchange, *map(killmail, range(published + 1, LAST + 1)))
        for client, next_number in clients:
            received = await numbers(client)
            assert received == list(range(received[0], LAST + 1))
            assert received[0] <= next_number
            await client.close()
        assert sample(bridge, "bridge_sends_total", outcome="enqueued") > 0
