"""A TCP proxy before the broker: a line that can be cut, and that need not be there from the start."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from bridge.demo.ports import free_port


class Proxy:
    """Forwards to the first node of a broker's URL, once it is open."""

    def __init__(self, broker_url: str) -> None:
        parts = urlsplit(broker_url.split(",", maxsplit=1)[0])
        self._target = parts.hostname or "localhost", parts.port or 5672
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.alteration: Callable[[], Callable[[bytes], bytes]] = lambda: bytes
        """Makes, for each connection, what the broker's bytes go through on their way to the client."""
        self.url = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self._port}").geturl()
        """The broker's, by way of this proxy."""

    async def open(self) -> None:
        """Takes connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Takes none any more, and cuts those that are there."""
        self._flowing.set()
        if self._server is not None:
            self._server.close()
            self._server = None
        while self._serving:
            self.cut()
            await asyncio.wait(self._serving)

    def cut(self) -> None:
        """Ends all connections, without a word to either side."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Reads nothing more from either side, as a broker does that is short of memory."""
        self._flowing.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection(*self._target)
            self._writers.add(up_writer)
            pumps = [
                asyncio.create_task(self._pump(reader, up_writer, bytes)),
                asyncio.create_task(self._pump(up_reader, writer, self.alteration())),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            writer.transport.abort()
            up_writer.transport.abort()
            await asyncio.wait(pumps)
            self._writers.discard(up_writer)
        writer.transport.abort()
        self._writers.discard(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alter: Callable[[bytes], bytes]
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(alter(data))
                await writer.drain()
                await self._flowing.wait()


@asynccontextmanager
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    """A proxy that is not open yet; closed at the end."""
    line = Proxy(broker_url)
    try:
        yield line
    finally:
        await line.close()
