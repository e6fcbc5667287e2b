"""A client whose filter rarely matches stays connected while the log is replaced several times, and is then cut off.

Its id is nevertheless among the kept ones: heartbeats and responses without updates moved it on.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.contract.update_id import UpdateId
from tests.faults.test_several_bridges import on_stream
from tests.support.broker.find import Broker
from tests.support.clients import get
from tests.support.exactly_once import assert_exactly_once
from tests.support.killmail import killmail
from tests.support.process_stats import metric
from tests.support.publishing import pour, publish
from tests.support.resuming import KINDS, have_all, resuming_clients
from tests.support.running import bridge_process
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

EVENTS = 100_000
"""The number of events of which one matches the filter. EVE Online has 15,000 to 25,000 killmails a day."""

BATCH = 10_000
"""The number of events that are published at once. The log has room for more.

At full speed, the log would be replaced several times in a second, which no poll could follow.
"""

AWAY = 1000
"""The number of events while the clients are away."""

RARE_SYSTEM = 31000005

VARIABLES = {
    "BRIDGE_LOG_BYTES": "6 MiB",
    "BRIDGE_MAX_MESSAGE_BYTES": "64 KiB",
    "BRIDGE_HEARTBEAT_INTERVAL": "200ms",
}


def events(first: int, count: int, match: int) -> list[bytes]:
    """Returns numbered events. Only the event with the number `match` matches the filter."""
    systems = {match: RARE_SYSTEM}
    return [
        orjson.dumps(killmail(number, systemId=systems.get(number, 30000142))) for number in range(first, first + count)
    ]


@asynccontextmanager
async def two_bridges(broker: Broker, exchange: str, stream: str) -> AsyncIterator[list[int]]:
    """Yields the ports of two bridges on one stream."""
    async with AsyncExitStack() as stack:
        ports = []
        for _ in range(2):
            process = await stack.enter_async_context(
                bridge_process(broker.url, **on_stream(exchange, stream), **VARIABLES)
            )
            await process.consuming()
            ports.append(await process.port())
        yield ports


@asynccontextmanager
async def one_bridge(broker: Broker, exchange: str, _: str) -> AsyncIterator[list[int]]:
    """Yields the port of a bridge without a stream."""
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **VARIABLES) as process:
        await process.consuming()
        yield [await process.port()]


Bridges: TypeAlias = Callable[[Broker, str, str], AbstractAsyncContextManager[list[int]]]


async def poll(port: int, after: str) -> dict[str, object]:
    """Returns the response to a poll."""
    status, body = await get(port, f"/updates?format=json&after={after}")
    assert status == 200
    response: dict[str, object] = orjson.loads(body)
    return response


def is_past(last_id: str, newest_id: str) -> bool:
    """Whether a client knows this id or a later one: a bridge adds markers to the stream at any time."""
    last, newest = UpdateId.parse(last_id), UpdateId.parse(newest_id)
    assert newest is not None
    return last is not None and last.sequence >= newest.sequence


async def read_by_all(ports: Iterable[int], count: int) -> None:
    """Waits until each bridge has sent this number of updates since its start."""

    async def all_are_read() -> bool:
        updates = [await metric(port, 'bridge_updates_total{type="killmail"}') for port in ports]
        return min(updates) == count

    await eventually(f"{count} events are read", all_are_read)


@pytest.mark.parametrize("bridges", [one_bridge, two_bridges])
async def test_client_with_a_rare_filter_resumes_completely_after_the_log_was_replaced_many_times(
    bridges: Bridges, broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """With a stream, the clients resume on another instance."""
    async with (
        bridges(broker, exchange, queue) as ports,
        resuming_clients(ports[0], 1, *KINDS.values(), systemId=str(RARE_SYSTEM)) as clients,
    ):
        first_id = (await poll(ports[0], ""))["id"]
        for first in range(0, EVENTS, BATCH):
            await asyncio.to_thread(pour, broker.url, exchange, events(first, BATCH, match=EVENTS // 2))
            await read_by_all(ports, first + BATCH)
            newest_id = (await poll(ports[0], ""))["id"]
            await eventually(
                "each client knows the end of the log",
                lambda: all(is_past(client.last_id, str(newest_id)) for client in clients),  # noqa: B023 - the wait ends within this iteration
            )
        assert BATCH < await metric(ports[0], "bridge_update_log_updates") < EVENTS / 4
        assert (await poll(ports[0], str(first_id)))["complete"] is False, "the log still has the first update"
        assert [client.numbers for client in clients] == [[EVENTS // 2]] * len(clients)
        assert [client.reconnects for client in clients] == [0] * len(clients)
        for client in clients:
            client.leave()
        await publish(amqp, exchange, *events(EVENTS, AWAY, match=EVENTS + AWAY // 2))
        for client in clients:
            client.come_back(ports[-1])
        await have_all(clients, {EVENTS + AWAY // 2})
        assert_exactly_once(clients, {EVENTS // 2, EVENTS + AWAY // 2})
