"""A TCP proxy in front of the broker.

The proxy may start later than its clients, and a test can break its connections. The proxy forwards in two directions:
up, from the client to the broker, and down. A test can stop the data in either direction.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from urllib.parse import urlsplit

from tests.support.broker.ports import free_port

PIECE_BYTES = 2**16
SLOW_PIECES_S = 20
"""The number of pieces that the proxy forwards in a second on a slow connection."""


class Direction(Enum):
    """The direction in which bytes are sent."""

    UP = "to the broker"
    DOWN = "from the broker"


class Proxy:
    """Forwards to the first node of a broker's URL, after `open`."""

    def __init__(self, broker_url: str) -> None:
        parts = urlsplit(broker_url.split(",", maxsplit=1)[0])
        self._target = parts.hostname or "localhost", parts.port or 5672
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._flowing = {direction: asyncio.Event() for direction in Direction}
        self._piece_bytes, self._pause_s = PIECE_BYTES, 0.0
        self._half_open: set[asyncio.StreamWriter] = set()
        self.release()
        self.alteration: Callable[[], Callable[[bytes], bytes]] = lambda: bytes
        """A function that is called for each connection, and that returns another function.

        This other function changes the bytes from the broker to the client.
        """
        self.accepted = 0
        """The number of connections that the proxy has accepted so far."""
        self.url = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self._port}").geturl()
        """The URL of the broker through this proxy."""

    async def open(self) -> None:
        """Starts to accept connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Stops accepting connections, and aborts the open connections."""
        self.release()
        if self._server is not None:
            self._server.close()
            self._server = None
        while self._serving:
            self.cut()
            await asyncio.wait(self._serving)
        self.cut()

    def cut(self) -> None:
        """Aborts all connections, both to the clients and to the broker."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def cut_client_side(self) -> None:
        """Aborts all connections on the client's side only.

        On the broker's side, the connections stay open and silent.
        """
        self._half_open |= self._clients
        for writer in self._half_open:
            writer.transport.abort()

    def hold(self, *directions: Direction) -> None:
        """Stops forwarding in the named directions, or in both directions if none is named, also on new connections."""
        for direction in directions or Direction:
            self._flowing[direction].clear()

    def release(self) -> None:
        """Forwards all data at full speed again, beginning with the bytes that the proxy has held back."""
        self._piece_bytes, self._pause_s = PIECE_BYTES, 0.0
        for flowing in self._flowing.values():
            flowing.set()

    def slow(self, bytes_s: int) -> None:
        """Limits the rate of bytes, on each connection and in each direction."""
        self._piece_bytes, self._pause_s = bytes_s // SLOW_PIECES_S, 1 / SLOW_PIECES_S

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._clients.add(writer)
        with suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection(*self._target)
            self._writers.add(up_writer)
            pumps = [
                asyncio.create_task(self._pump(Direction.UP, reader, up_writer, bytes)),
                asyncio.create_task(self._pump(Direction.DOWN, up_reader, writer, self.alteration())),
            ]
            _, running = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            writer.transport.abort()
            if writer in self._half_open:
                # The connection to the broker stays open, but is not read any more.
                for pump in running:
                    pump.cancel()
                await asyncio.wait(pumps)
            else:
                up_writer.transport.abort()
                await asyncio.wait(pumps)
                self._writers.discard(up_writer)
        writer.transport.abort()
        self._writers.discard(writer)
        self._clients.discard(writer)
        self._half_open.discard(writer)

    async def _pump(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        alter: Callable[[bytes], bytes],
    ) -> None:
        # uvloop raises RuntimeError for a write to a closed transport.
        with suppress(OSError, RuntimeError):
            while data := await reader.read(self._piece_bytes):
                await self._flowing[direction].wait()
                writer.write(alter(data))
                await writer.drain()
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)


@asynccontextmanager
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    """Yields a proxy that is not open yet, and closes it at the end."""
    line = Proxy(broker_url)
    try:
        yield line
    finally:
        await line.close()
