"""Well-behaved clients, and a stream of updates that they must receive completely while other clients misbehave."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractConnection

from tests.support.clients import CLOSE, PING, PONG, TEXT, Collector, client_frame, collectors, frame_size
from tests.support.killmail import killmail
from tests.support.waiting import eventually

COUNT = 3
"""The number of healthy clients. With three clients, a test is less likely to pass by luck than with one client."""

PAUSE_S = 0.01
"""The pause between two updates."""


class Healthy(Collector):
    """A client that reads at once and answers every ping. The client records the number and the time of each update."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.arrivals: list[tuple[int, float]] = []
        self.close_frames = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        now_s = time.monotonic()
        while (size := frame_size(self.received, 0)) and size <= len(self.received):
            frame = bytes(self.received[:size])
            del self.received[:size]
            opcode, payload = frame[0] & 15, frame[size - _payload_size(frame) :]
            if opcode == TEXT:
                self.arrivals.append((orjson.loads(payload)["data"]["killmailId"], now_s))
            elif opcode == PING and self.transport is not None:
                self.transport.write(client_frame(PONG, payload))
            elif opcode == CLOSE:
                self.close_frames += 1

    @property
    def numbers(self) -> list[int]:
        """The numbers of the received updates, in order."""
        return [number for number, _ in self.arrivals]


class Stream:
    """Publishes numbered killmails, starting at 0, while the test does something else."""

    def __init__(self, clients: list[Healthy], channel: AbstractChannel, exchange: str, padding: str) -> None:
        self.clients = clients
        self.verified = False
        """True after the test has called `verify`."""
        self._padding = padding
        self._stopping = False
        self._sent_s: list[float] = []
        self._publishing = asyncio.create_task(self._publish(channel, exchange))

    @property
    def published(self) -> int:
        """The number of updates that were published so far."""
        return len(self._sent_s)

    def delays_s(self, first: int = 0) -> list[float]:
        """Returns how long each update took to reach each healthy client, the shortest delay first.

        Updates with a number below `first` are ignored.
        """
        return sorted(
            at_s - self._sent_s[number]
            for client in self.clients
            for number, at_s in client.arrivals
            if number >= first
        )

    async def further(self, count: int) -> None:
        """Waits until `count` more updates have arrived."""
        enough = self.published + count
        await eventually(
            "healthy clients get more updates", lambda: all(len(client.arrivals) >= enough for client in self.clients)
        )

    async def verify(self) -> None:
        """Ends the stream. Checks that each client got each update once and in order, and is still connected."""
        self.verified = True
        self._stopping = True
        await self._publishing
        everything = list(range(self.published))
        await eventually(
            "the last update arrives", lambda: all(len(client.arrivals) >= len(everything) for client in self.clients)
        )
        for client in self.clients:
            assert client.numbers == everything, "an update is missing, duplicate or out of order"
            assert not client.lost.done(), "a healthy client lost its connection"
            assert not client.close_frames, "a healthy client was closed"

    async def abandon(self) -> None:
        """Ends the stream and its clients at once."""
        self._publishing.cancel()
        await asyncio.wait([self._publishing])
        for client in self.clients:
            if client.transport is not None:
                client.transport.abort()
        await asyncio.gather(*(client.lost for client in self.clients))

    async def _publish(self, channel: AbstractChannel, exchange: str) -> None:
        target = await channel.get_exchange(exchange, ensure=False)
        while not self._stopping:
            body = orjson.dumps(killmail(self.published, padding=self._padding))
            self._sent_s.append(time.monotonic())
            await target.publish(aio_pika.Message(body), routing_key="")
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def healthy_clients(
    amqp: AbstractConnection, exchange: str, port: int, padding: str = ""
) -> AsyncIterator[Stream]:
    """Runs a stream of updates, and clients that read it. The test must call the stream's `verify` at the end."""
    clients = await collectors(port, COUNT, Healthy)
    healthy = [client for client in clients if isinstance(client, Healthy)]
    channel = await amqp.channel(publisher_confirms=True)
    stream = Stream(healthy, channel, exchange, padding)
    try:
        yield stream
        if not stream.verified:
            raise RuntimeError("the test must call `verify` of the stream")
    finally:
        await stream.abandon()
        await channel.close()


def _payload_size(frame: bytes) -> int:
    """Returns the size of the payload of a complete server frame."""
    head = {126: 4, 127: 10}.get(frame[1], 2)
    return len(frame) - head
