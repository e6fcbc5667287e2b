"""Writes that bypass the transports: the test compares the bytes that the clients receive.

The bridge runs as a process, with the same event loop as an operator's bridge. The bytes that a client receives must
begin with a whole frame. The bytes that each client receives must also be a contiguous part of the bytes that the first
client receives.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, Self

import aio_pika
import orjson
import uvloop

from bridge.metrics import Metrics
from bridge.server.server import Limits, Server
from bridge.server.tls import Tls
from tests.support.certificates import certificate
from tests.support.clients import TEXT, frame_size, get, request, server_frames
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import UNPINGED, bridge_process, port_of, running
from tests.support.waiting import LIMIT_S, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from aio_pika.abc import AbstractConnection

    from tests.support.broker.find import Broker

TINY = 2304
"""The size of the smallest receive buffer that Linux allows, in bytes."""

LARGE = 200_000
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with 0 s: closing the socket resets the connection, even if there is unsent data."""


class ByteStream(Protocol):
    """A client's end of a connection."""

    async def read(self, max_bytes: int) -> bytes:
        """Waits for data, and returns at most `max_bytes` bytes. Returns empty bytes if the connection has ended."""


class Plain:
    """A socket without a read buffer: only `read` takes bytes from the kernel."""

    def __init__(self, client_socket: socket.socket) -> None:
        self.socket = client_socket

    async def read(self, max_bytes: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, max_bytes)


class Client:
    """Stores each byte that it reads."""

    def __init__(self, stream: ByteStream, client_socket: socket.socket) -> None:
        self._stream = stream
        self.socket = client_socket
        self.received = bytearray()
        """The bytes after the handshake."""
        self.head = b""
        self.updates = 0
        """The number of complete frames."""
        self._at = 0

    async def read(self, max_bytes: int = 2**18) -> int:
        """Reads once, and returns the number of bytes that it read."""
        data = await self._stream.read(max_bytes)
        if not self.head.endswith(b"\r\n\r\n"):
            head, separator, rest = (self.head + data).partition(b"\r\n\r\n")
            self.head = head + separator
            self.received += rest
        else:
            self.received += data
        while (size := frame_size(self.received, self._at)) and self._at + size <= len(self.received):
            self._at += size
            self.updates += 1
        return len(data)

    async def read_until(self, updates: int, piece: int = 2**18) -> None:
        """Reads in pieces of `piece` bytes until `updates` updates are complete."""
        async with asyncio.timeout(LIMIT_S):
            while self.updates < updates:
                assert await self.read(piece), "the connection has ended"

    async def upgraded(self) -> None:
        """Reads until the response to the handshake is complete."""
        async with asyncio.timeout(LIMIT_S):
            while not self.head.endswith(b"\r\n\r\n"):
                assert await self.read(), "the connection has ended"

    def leave(self, *, reset: bool = False) -> None:
        """Closes the TCP connection."""
        if reset and self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.socket.close()


class Crowd:
    """Clients that are connected to one port, and are closed at the end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.clients: list[Client] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.leave()

    async def join(self, receive_bytes: int | None = None) -> Client:
        """Connects a client that has sent its handshake and has not read anything."""
        client_socket = new_socket(receive_bytes)
        client = Client(Plain(client_socket), client_socket)
        self.clients.append(client)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client_socket, ("127.0.0.1", self._port))
        await loop.sock_sendall(client_socket, request(self._port))
        return client


@asynccontextmanager
async def encrypted(port: int, chain: Path, receive_bytes: int | None = None) -> AsyncIterator[Client]:
    """Connects a client over TLS. The client has sent its handshake and has not read anything."""
    client_socket = new_socket(receive_bytes)
    context = ssl.create_default_context(cafile=chain)
    await asyncio.get_running_loop().sock_connect(client_socket, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(
        sock=client_socket, ssl=context, server_hostname="127.0.0.1", limit=receive_bytes or 2**16
    )
    writer.write(request(port))
    yield Client(reader, client_socket)
    writer.transport.abort()


def new_socket(receive_bytes: int | None) -> socket.socket:
    """Returns a socket that is not connected yet."""
    client_socket = socket.socket()
    client_socket.setblocking(False)
    if receive_bytes is not None:
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    return client_socket


def event(number: int) -> dict[str, object]:
    """Returns a killmail whose padding depends on its number: of every eight, one is large and one is medium."""
    size = LARGE if number % 8 == 3 else 30_000 if number % 8 == 6 else number % 300
    return killmail(number, padding=f"{number:06d}" * (size // 6))


def frame_starts(stream: bytearray, events: Sequence[object]) -> list[int]:
    """Checks that a stream contains exactly `events`, in order. Returns the position of each frame."""
    frames = server_frames(bytes(stream))
    assert [opcode for opcode, _ in frames] == [TEXT] * len(events)
    for (_, payload), published in zip(frames, events, strict=True):
        update = orjson.loads(payload)
        assert (update["type"], update["data"]) == ("killmail", published)
    heads = [2 if len(payload) < 126 else 4 if len(payload) < 65536 else 10 for _, payload in frames]
    starts = [0, *accumulate(head + len(payload) for head, (_, payload) in zip(heads, frames, strict=True))]
    assert starts.pop() == len(stream)
    return starts


def is_part(stream: bytearray, whole: bytearray, starts: Sequence[int]) -> bool:
    """Whether the stream is a part of `whole` and begins where a frame begins."""
    return any(whole.startswith(stream, start) for start in starts)


async def metric(port: int, name: str) -> float:
    """Returns the value of a metric. `name` includes the labels."""
    async with asyncio.timeout(LIMIT_S):
        _, body = await get(port, "/metrics")
    return next(float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith(name + " "))


async def test_clients_that_read_in_small_pieces_get_the_same_bytes_as_others(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Each socket accepts a different part of a large update.

    The next write must continue where the accepted part ends.
    """
    events = [event(number) for number in range(160)]
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **UNPINGED) as process:
        await process.consuming()
        port = await process.port()
        pieces = {TINY: 700, 4096: 1500, 9000: 3001, 30_000: 5000}
        with Crowd(port) as crowd:
            fast = [await crowd.join() for _ in range(3)]
            slow = {await crowd.join(receive_bytes): piece for receive_bytes, piece in pieces.items()}
            for client in crowd.clients:
                await client.upgraded()
            reading = [client.read_until(len(events)) for client in fast]
            reading += [client.read_until(len(events), piece) for client, piece in slow.items()]
            await asyncio.gather(publish(amqp, exchange, *events), *reading)
            frame_starts(fast[0].received, events)
            for client in crowd.clients:
                assert client.received == fast[0].received
        assert await metric(port, 'bridge_sends_total{outcome="enqueued"}') > len(events)


async def test_clients_that_connect_and_disconnect_during_a_flood_get_only_their_own_bytes(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """As soon as a descriptor is closed, the kernel reuses it for the next client."""
    chance = random.Random(7)
    published = 0
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **UNPINGED) as process:
        await process.consuming()
        with Crowd(await process.port()) as crowd:
            witness = await crowd.join()
            await witness.upgraded()

            async def connect_repeatedly() -> None:
                """Connects clients one after another.

                Each client reads a random number of bytes at a random speed, and then leaves.
                """
                while True:
                    client = await crowd.join(chance.choice([TINY, 8192, 65536]))
                    quota, piece = chance.choice([0, 500, 20_000, 400_000]), chance.choice([500, 4000, 2**18])
                    while len(client.received) < quota and await client.read(piece):
                        pass
                    client.leave(reset=chance.random() < 0.5)

            tasks = [asyncio.create_task(connect_repeatedly()) for _ in range(12)]
            while len(crowd.clients) < 400:
                await publish(amqp, exchange, *(event(number) for number in range(published, published + 8)))
                published += 8
                await witness.read_until(published)
                assert not any(task.done() for task in tasks), tasks
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            starts = frame_starts(witness.received, [event(number) for number in range(published)])
            for client in crowd.clients:
                assert client.head.startswith(b"HTTP/1.1 101 ") or not client.head
                assert is_part(client.received, witness.received, starts)
            assert sum(client.updates > 0 for client in crowd.clients) > 100


def test_encrypted_and_plain_clients_of_one_hub_get_the_same_bytes(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    """Writes to TLS clients go through the transports. Writes to other clients bypass the transports."""
    uvloop.run(_encrypted_and_plain(broker, exchange, tmp_path))


async def _encrypted_and_plain(broker: Broker, exchange: str, folder: Path) -> None:
    events = [event(number) for number in range(80)]
    chain, key = certificate(folder, "hub")
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        plain = bridge._server
        limits = Limits(
            100,
            overflow=100,
            max_connections_per_address=100,
            handshake_timeout_s=5,
            idle_timeout_s=120,
            ping_interval_s=30,
        )
        secure = Server(
            bridge._hub,
            plain._polls,
            plain._access,
            plain._handshake_context.router,
            limits,
            Metrics(),
            plain._turn,
            lambda: 0,
            Tls(chain, key),
        )
        [(_, secure_port)] = secure.listen(("127.0.0.1",), 0, reuse_port=False)
        with Crowd(port_of(bridge)) as crowd:
            async with (
                encrypted(secure_port, chain) as first,
                encrypted(secure_port, chain, 4096) as second,
                await aio_pika.connect(broker.url, timeout=10) as amqp,
            ):
                third, fourth = await crowd.join(), await crowd.join(4096)
                pieces = {first: 2**18, second: 1500, third: 2**18, fourth: 1500}
                for client in pieces:
                    await client.upgraded()
                reading = [client.read_until(len(events), piece) for client, piece in pieces.items()]
                await asyncio.gather(publish(amqp, exchange, *events), *reading)
                frame_starts(third.received, events)
                for client in pieces:
                    assert client.received == third.received
        secure.stop_listening()
        await secure.drain(5)


async def test_client_that_connects_during_a_flood_and_reads_late_gets_a_complete_stream(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Until the client reads, the kernel holds the first bytes, and the log holds the updates after them."""
    published = 0
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **UNPINGED) as process:
        await process.consuming()
        port = await process.port()
        with Crowd(port) as crowd:
            witness = await crowd.join()
            await witness.upgraded()

            async def lagging() -> float:
                """Publishes more events. Returns the number of lagging clients."""
                nonlocal published
                await publish(amqp, exchange, *(event(number) for number in range(published, published + 8)))
                published += 8
                await witness.read_until(published)
                return await metric(port, 'bridge_connections_lagging{transport="websocket"}')

            await lagging()
            flooding = asyncio.create_task(lagging())
            silent = [await crowd.join(TINY) for _ in range(5)]
            await flooding

            async def all_lag() -> bool:
                return await lagging() == len(silent)

            await eventually("no socket accepts more data", all_lag)
            await lagging()
            starts = frame_starts(witness.received, [event(number) for number in range(published)])
            for client in silent:
                async with asyncio.timeout(LIMIT_S):
                    while not client.received.endswith(witness.received[starts[-1] :]):
                        assert await client.read(5000), "the connection has ended"
                assert client.head.startswith(b"HTTP/1.1 101 ")
                assert len(client.received) < len(witness.received)
                assert is_part(client.received, witness.received, starts)

            async def none_lags() -> bool:
                return await metric(port, 'bridge_connections_lagging{transport="websocket"}') == 0

            await eventually("all clients have caught up", none_lags)
            await publish(amqp, exchange, event(published))
            for client in crowd.clients:
                await client.read_until(client.updates + 1)
                assert witness.received.endswith(client.received)
