"""Floods of requests for JSON, and thousands of requests that wait, cost other clients no update and little memory."""

import asyncio
import multiprocessing
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import Streams
from tests.support.event_streams import stream_request
from tests.support.exactly_once import assert_exactly_once
from tests.support.healthy import healthy_clients
from tests.support.killmail import killmail
from tests.support.process_stats import MB, Memory, metric, sockets
from tests.support.publishing import pour, publish
from tests.support.resuming import PatientPollingClient, have_all, resuming_clients
from tests.support.running import bridge_process
from tests.support.waiting import eventually

KEPT = 8000
"""The number of updates in the log when a flood begins."""

ASKING = 50
"""The number of clients that flood the bridge with requests. Each has one request at a time."""

FLOOD_S = 3.0
"""The duration of a flood."""

MEMORY_BYTES = 12 * MB
"""The bridge may grow by this much memory, in addition to the memory of its requests and its log."""

RESPONSE_BYTES = 32 * 1024
"""The memory that a response may take while it is sent."""

WAITING = 3000
"""The number of requests that wait at the same time."""

WAITING_BYTES = 4096
"""The memory that a waiting request may take."""

SYSTEMS = 30
"""The number of different filters of the waiting requests."""

COMING_BACK = 500
"""The number of clients that ask again as soon as they have a response."""


def answers(port: int, paths: list[str], seconds: float) -> Counter[bytes]:
    """Sends requests for `seconds`, with one client for each path. Returns the number of responses of each status."""
    statuses: Counter[bytes] = Counter()
    until_s = time.monotonic() + seconds

    async def ask(path: str) -> None:
        while time.monotonic() < until_s:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(stream_request(port, path))
            response = await reader.read(-1)
            statuses[response[9:12]] += 1
            writer.transport.abort()

    async def flood() -> None:
        await asyncio.gather(*map(ask, paths))

    asyncio.run(flood())
    return statuses


@pytest.mark.alone  # the flood would disturb other tests
@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("the newest 1000 updates", "/updates?format=json&last=1000&limit=1000"),
        ("updates that do not exist", "/updates?format=json&after=earliest&victimId={number}"),
    ],
    ids=["newest", "nothing"],
)
async def test_flood_of_requests_costs_other_clients_no_update(
    what: str, path: str, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Each request is answered, while the other clients get their updates."""
    paths = [path.format(number=number) for number in range(ASKING)]
    # The flood runs in another process, because in a thread it would delay the healthy clients of this process.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
            await process.consuming()
            port, pid = await process.port(), process.process.pid
            events = [orjson.dumps(killmail(1_000_000 + number)) for number in range(KEPT)]
            await asyncio.to_thread(pour, broker.url, exchange, events)

            async def all_are_read() -> bool:
                return await metric(port, "bridge_update_log_updates") == KEPT

            await eventually("the log is filled", all_are_read)
            async with healthy_clients(amqp, exchange, port) as stream:
                await stream.further(20)
                memory, before, first = Memory(pid), sockets(pid), stream.published
                statuses = await asyncio.get_running_loop().run_in_executor(pool, answers, port, paths, FLOOD_S)
                await stream.further(1)
                await eventually("the connections are closed", lambda: sockets(pid) == before)
                await stream.verify()
            assert set(statuses) == {b"200"}
            assert memory.look() <= MEMORY_BYTES + ASKING * RESPONSE_BYTES, f"{memory.look() / MB:.1f} MB"
            delays_s = stream.delays_s(first)
            figures.record(
                f"{ASKING} clients ask for {what}, with JSON, as fast as they can",
                f"answers {statuses[b'200'] / FLOOD_S:,.0f} requests a second",
                f"0 of {stream.published}, for the other clients; 90% within"
                f" {delays_s[len(delays_s) * 9 // 10] * 1000:.0f} ms",
            )


async def waiting_requests(port: int, count: int) -> list[Streams]:
    """Sends requests that wait for an update of one of SYSTEMS systems, in turn."""
    requests: list[Streams] = []
    for number in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        path = f"/updates?format=json&after=&wait=30&systemId={number % SYSTEMS}"
        writer.write(stream_request(port, path))
        requests.append((reader, writer))

    async def all_wait() -> bool:
        return await metric(port, 'bridge_connections{transport="poll"}') == count

    await eventually("all requests wait", all_wait)
    return requests


async def numbers_of(request: Streams) -> list[int]:
    """Returns the numbers of the killmails in a response."""
    head, _, body = (await request[0].read(-1)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    request[1].transport.abort()
    return [update["data"]["killmailId"] for update in orjson.loads(body)["updates"]]


@pytest.mark.usefixtures("many_files")
async def test_thousands_of_waiting_requests_take_little_memory_and_an_update_wakes_only_those_that_match(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A bridge that stops answers all of them at once."""
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        # For its first requests, the bridge loads modules and fills caches, and it keeps this memory.
        first = await waiting_requests(port, SYSTEMS)
        await publish(amqp, exchange, *(killmail(system, systemId=system) for system in range(SYSTEMS)))
        assert [await numbers_of(request) for request in first] == [[system] for system in range(SYSTEMS)]
        memory = Memory(pid)
        requests = await waiting_requests(port, WAITING)
        grown = memory.look()
        assert grown <= WAITING * WAITING_BYTES + MEMORY_BYTES, f"{grown / MB:.1f} MB"
        await publish(amqp, exchange, killmail(1000, systemId=7))
        assert [await numbers_of(request) for request in requests[7::SYSTEMS]] == [[1000]] * (WAITING // SYSTEMS)
        assert await metric(port, 'bridge_connections{transport="poll"}') == WAITING - WAITING // SYSTEMS
        del requests[7::SYSTEMS]
        process.process.send_signal(signal.SIGTERM)
        assert [await numbers_of(request) for request in requests] == [[]] * len(requests)
        assert await process.ended() == 0
        assert process.texts == []
        figures.record(
            f"{WAITING:,} requests for JSON wait, with {SYSTEMS} filters, and the bridge is stopped (SIGTERM)",
            f"answers them at once; had grown by {grown / MB:.0f} MB",
            "0",
        )


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
async def test_hundreds_of_clients_that_ask_again_after_each_response_get_each_update_once(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """With each update, all clients connect at the same time."""
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        async with resuming_clients(await process.port(), COMING_BACK, PatientPollingClient) as clients:
            for number in range(10):
                await publish(amqp, exchange, killmail(number))
                await have_all(clients, set(range(number + 1)))
            assert_exactly_once(clients, set(range(10)))
            assert [client.refusals for client in clients if client.refusals] == []
