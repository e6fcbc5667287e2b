"""A real browser, and a foreign web site. Playwright drives Debian's Chromium, which reaches only loopback."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from playwright.async_api import Browser, async_playwright

from tests.support.broker.session import unavailable
from tests.support.prepare import CHROMIUM, WHOLE_CHROMIUM

FOREIGN_SUFFIX = ".example"
"""The ending of host names that the browser resolves to this machine, but does not treat as local."""

# The browser also applies its rules for host names to IP addresses.
_RULES = [
    f"MAP *{FOREIGN_SUFFIX} 127.0.0.1",
    "MAP * ~NOTFOUND",
    *(
        f"EXCLUDE {host}"
        for host in ("localhost", "localhost.", "*.localhost", "127.0.0.1", "0.0.0.0", "::1", "::ffff:7f00:1")
    ),
]

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--host-resolver-rules={', '.join(_RULES)}",
]


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """Runs the browser with additional flags. Each context of the browser is a fresh profile."""
    command = shutil.which(CHROMIUM) or shutil.which(WHOLE_CHROMIUM)
    if command is None:
        unavailable(f"{CHROMIUM} is not installed; `make prepare` installs it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=command, args=[*_FLAGS, *flags])
        try:
            yield browser
        finally:
            await browser.close()


REDIRECT = "/redirect?"
"""A path of a foreign site that redirects to the URL after the `?`."""


class File(NamedTuple):
    """The response for a path of a foreign site."""

    content_type: str
    body: str


class ForeignSite:
    """A web site that does not belong to the bridge.

    The site answers each request with a file and ends the connection, so that the browser keeps no old connection when
    a host name moves to another server.
    """

    def __init__(self, files: Mapping[str, File], tls: ssl.SSLContext | None = None) -> None:
        self._files = files
        self._tls = tls
        self._server: asyncio.Server | None = None
        self.port = 0
        self.asked: list[str] = []
        """The request targets (paths with queries) of all requests."""

    async def open(self) -> None:
        """Listens on a free port of 127.0.0.1."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._tls)
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
            pass  # a browser may connect in advance, and disconnect without a request
        finally:
            writer.close()


@asynccontextmanager
async def foreign_site(files: Mapping[str, File], tls: ssl.SSLContext | None = None) -> AsyncIterator[ForeignSite]:
    """Runs a small web site on loopback that does not belong to the bridge."""
    site = ForeignSite(files, tls)
    await site.open()
    try:
        yield site
    finally:
        await site.close()
