"""A small web site on loopback: somebody else's, as a page of it would come to a browser beside the bridge."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

REDIRECT = "/redirect?"
"""A path that leads to whatever URL follows."""


class File(NamedTuple):
    """What a path of the site answers."""

    content_type: str
    body: str


class Site:
    """Answers each request with a file, and ends its connection: a name that moves takes no connection along."""

    def __init__(self, files: Mapping[str, File]) -> None:
        self._files = files
        self._server: asyncio.Server | None = None
        self.port = 0
        self.asked: list[str] = []
        """What was asked for, as it came."""

    async def open(self) -> None:
        """Listens on a free port of 127.0.0.1."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Frees the port."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            self.asked.append(target)
            if target.startswith(REDIRECT):
                lines, body = ["307 Temporary Redirect", f"Location: {target.removeprefix(REDIRECT)}"], b""
            elif (file := self._files.get(target)) is not None:
                lines, body = ["200 OK", f"Content-Type: {file.content_type}; charset=utf-8"], file.body.encode()
            else:
                lines, body = ["404 Not Found"], b""
            lines += [f"Content-Length: {len(body)}", "Connection: close"]
            writer.write("\r\n".join([f"HTTP/1.1 {lines[0]}", *lines[1:], "", ""]).encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # A browser connects ahead of need, and goes again.
        finally:
            writer.close()


@asynccontextmanager
async def serving(files: Mapping[str, File]) -> AsyncIterator[Site]:
    """A site that is open."""
    site = Site(files)
    await site.open()
    try:
        yield site
    finally:
        await site.close()
