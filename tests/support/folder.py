"""A proxy that has the bridge in a folder of its own: it takes the folder off each request, and forwards the rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PIECE_BYTES = 2**16


@asynccontextmanager
async def folded(folder: str, port: int) -> AsyncIterator[int]:
    """Forwards to `port` of loopback, and yields its own; ends what is not in the folder without a word."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        task.add_done_callback(serving.discard)
        with suppress(OSError, asyncio.IncompleteReadError):
            line = await reader.readuntil(b"\n")
            before, found, after = line.partition(f" {folder}/".encode())
            if found:
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
                up_writer.write(before + b" /" + after)
                await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Writes what is read until there is no more, and then ends the line."""
    try:
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
