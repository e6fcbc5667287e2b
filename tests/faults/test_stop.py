"""The bridge stops under load: what reading clients still get, and how long other clients delay the stop."""

import asyncio
import signal
import socket
import time
from collections import Counter

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.clients import (
    CLOSE,
    TEXT,
    ClosingCollector,
    RawClient,
    close_all,
    close_code,
    collectors,
    get,
    request,
    server_frames,
)
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import bridge_process
from tests.support.waiting import eventually

READERS, STALLED = 990, 10

SHUTDOWN_TIMEOUT_S, GRACE_S = 4, 1

PAUSE_S = 0.02
"""The pause between two events.

A rate of fifty events per second is enough load, because all thousand clients run in this one process.
"""


async def metric(port: int, name: str) -> float:
    """Returns the value of a metric from `/metrics`. `name` includes the labels."""
    _, body = await get(port, "/metrics")
    return next(float(line.split()[1]) for line in body.decode().splitlines() if line.startswith(f"{name} "))


@pytest.mark.usefixtures("many_files")
@pytest.mark.alone  # the test measures the duration of the stop
async def test_sigterm_under_load_closes_every_reader_with_1001_and_ends_in_time(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """After SIGTERM, the bridge ends with the exit code 0 within its shutdown timeout, even if few clients read.

    Each reader gets all updates, and then the close code 1001.
    """
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_SHUTDOWN_TIMEOUT": f"{SHUTDOWN_TIMEOUT_S}s",
        # The log is so large that it keeps every update, so clients that don't read lag but are not evicted.
        "BRIDGE_LOG_BYTES": "64 MiB",
    }
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        port = await process.port()
        stalled = [await RawClient.open(port, receive_bytes=4096) for _ in range(STALLED)]
        for client in stalled:
            client.pause()
        number = 0

        async def all_are_stuck() -> bool:
            nonlocal number
            number += 10
            await publish(amqp, exchange, *(killmail(number + i, padding="x" * 100_000) for i in range(10)))
            return await metric(port, 'bridge_connections_lagging{transport="websocket"}') == STALLED

        await eventually("the sockets of the other clients are full", all_are_stuck)
        readers = await collectors(port, READERS, ClosingCollector)

        async def fetch() -> None:
            channel = await amqp.channel(publisher_confirms=True)
            target = await channel.get_exchange(exchange, ensure=False)
            for killmail_id in range(1_000_000, 2_000_000):
                await target.publish(aio_pika.Message(orjson.dumps(killmail(killmail_id))), routing_key="")
                await asyncio.sleep(PAUSE_S)

        fetching = asyncio.create_task(fetch())
        await eventually("every reader reads", lambda: all(len(client.received) > 5000 for client in readers))
        assert await metric(port, 'bridge_connections{transport="websocket"}') == READERS + STALLED
        assert await metric(port, 'bridge_connections_lagging{transport="websocket"}') >= STALLED
        since_s = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
        took_s = time.monotonic() - since_s
        assert took_s <= SHUTDOWN_TIMEOUT_S + GRACE_S, f"{took_s:.1f} s"
        assert not fetching.done()
        fetching.cancel()
        await asyncio.gather(*(client.lost for client in readers))
        everything = [server_frames(bytes(client.received)) for client in readers]
        ends = [frames[-1] for frames in everything]
        assert {(opcode, close_code(payload)) for opcode, payload in ends} == {(CLOSE, 1001)}
        lasts = {[payload for opcode, payload in frames if opcode == TEXT][-1] for frames in everything}
        assert len(lasts) == 1, "some readers got less than others"
        close_all(readers)
        for client in stalled:
            await client.close()


class Newcomers:
    """Clients that repeatedly connect, send a request, read the beginning of the answer, and leave."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self.outcomes: Counter[str] = Counter()
        """How often each status was received, and how often each error occurred instead of an answer."""
        self._coming = [asyncio.create_task(self._come(place)) for place in range(count)]

    async def _come(self, place: int) -> None:
        readiness = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError as error:
                self.outcomes[repr(error)] += 1
                continue
            try:
                writer.write(request(self._port) if place % 2 else readiness)
                line = await reader.readline()
                self.outcomes[line.split()[1].decode() if line else "nothing"] += 1
            except OSError as error:
                self.outcomes[repr(error)] += 1
            finally:
                writer.transport.abort()

    async def further(self, count: int) -> None:
        """Waits until `count` more clients have connected and disconnected."""
        until = self.outcomes.total() + count
        await eventually("clients connect", lambda: self.outcomes.total() >= until)

    async def stop(self) -> None:
        for task in self._coming:
            task.cancel()
        await asyncio.gather(*self._coming, return_exceptions=True)


async def test_no_client_is_reset_when_one_of_two_bridges_on_a_port_stops() -> None:
    """The stopping bridge answers the clients that the kernel has assigned to it.

    The other bridge answers all other clients.
    """
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        variables = {
            "BRIDGE_PORT": str(port),
            "BRIDGE_REUSE_PORT": "true",
            "BRIDGE_EXCHANGES": "killmails=killmail",
            # The broker can't be reached. With this setting, the bridge serves clients even without a broker.
            "BRIDGE_WAIT": "true",
        }
        nowhere = "amqp://guest:guest@127.0.0.1:1/"
        async with bridge_process(nowhere, **variables) as first, bridge_process(nowhere, **variables) as second:
            await first.port()
            await second.port()
            newcomers = Newcomers(port, 40)
            await newcomers.further(200)
            first.process.send_signal(signal.SIGTERM)
            assert await first.ended() == 0
            await newcomers.further(200)
            await newcomers.stop()
    assert set(newcomers.outcomes) == {"101", "503"}, newcomers.outcomes
