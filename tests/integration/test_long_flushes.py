"""Tests flushes that take several turns of the event loop, with real sockets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import orjson
import pytest

from bridge.broadcast import live_set
from bridge.loop_turn import LoopTurn
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

    from tests.support.broker.find import Broker

CLIENTS, UPDATES = 20, 50


@pytest.fixture(autouse=True)
def one_socket_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends each turn after a write to one socket, as if each write took 20 ms."""
    monkeypatch.setattr(live_set, "GROUP_SOCKETS", 1)
    monkeypatch.setattr(LoopTurn, "is_over", lambda *_: True)


async def numbers(client: RawClient) -> list[int]:
    """Returns the numbers of the next updates."""
    return [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(UPDATES)]


async def test_each_client_gets_each_update_once_and_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge,
        AsyncExitStack() as stack,
    ):
        clients = [await RawClient.open(port_of(bridge)) for _ in range(CLIENTS)]
        for client in clients:
            stack.push_async_callback(client.close)
        reading = [asyncio.create_task(numbers(client)) for client in clients]
        for number in range(UPDATES):
            await publish(amqp, exchange, killmail(number))
        assert await asyncio.gather(*reading) == [list(range(UPDATES))] * CLIENTS
        await eventually(
            "all deliveries are settled", lambda: sample(bridge, "bridge_receipt_to_flush_seconds_count") == UPDATES
        )


async def test_clients_that_leave_and_join_during_flushes_do_not_affect_others(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
        staying = [await RawClient.open(port_of(bridge)) for _ in range(CLIENTS)]
        leaving = [await RawClient.open(port_of(bridge)) for _ in range(CLIENTS)]
        reading = [asyncio.create_task(numbers(client)) for client in staying]
        for number in range(UPDATES):
            await publish(amqp, exchange, killmail(number))
            if leaving:
                await leaving.pop().close()
                staying.append(await RawClient.open(port_of(bridge)))
        assert await asyncio.gather(*reading) == [list(range(UPDATES))] * CLIENTS
        for client in staying:
            await client.close()
