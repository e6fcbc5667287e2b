"""A scripted bridge that sends Server-Sent Events, for faults that a real bridge or a proxy shows only by chance."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson

from tests.support.followers import ScriptedLog, message

RETRY_MS = 20
"""The time after which EventSource reconnects."""


class Asked(NamedTuple):
    """What a request for events asked for."""

    query: str
    last_event_id: str


class ScriptedEvents(ScriptedLog):
    """A server on 127.0.0.1 that a test controls. A test can change the attributes, which then apply to later requests.

    Each request that accepts `text/event-stream` gets events. All other requests are answered as a bridge does if
    nothing is wrong with them, with 426.
    """

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self.asked: list[Asked] = []
        """The requests for events."""
        self.diagnoses = 0
        """The number of other requests."""
        self.connections: list[asyncio.StreamWriter] = []
        """The open connections that get events."""
        self.refusal: tuple[int, str] | None = None
        """The status and the text with which all requests are answered."""
        self.closing: tuple[int, str] | None = None
        """The code and the reason of the `close` message with which each new connection is ended."""
        self.content_type = "text/event-stream"
        self.cross_origin = True
        """Whether pages of other origins may read the responses."""
        self.resumes = True
        """If false, a new connection receives the headers only."""
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The URL of the endpoint."""
        return f"http://127.0.0.1:{self.port}/updates"

    async def start(self) -> None:
        """Starts to listen on a free port, or on the same port as before."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops to listen, and ends all connections."""
        assert self._server is not None
        self._server.close()
        self.drop()
        await self._server.wait_closed()

    def drop(self) -> None:
        """Ends the connections without a `close` message."""
        for writer in self.connections:
            writer.transport.abort()
        self.connections.clear()

    def send(self, text: bytes) -> None:
        """Sends a message to all clients."""
        for writer in self.connections:
            writer.write(_block(text))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target = head.split(" ", 2)[1]
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])
            }
            is_for_events = headers.get("accept") == "text/event-stream"
            if is_for_events:
                self.asked.append(Asked(urlsplit(target).query, headers.get("last-event-id", "")))
            else:
                self.diagnoses += 1
            if self.refusal is not None:
                self._respond(writer, *self.refusal)
            elif not is_for_events:
                self._respond(writer, HTTPStatus.UPGRADE_REQUIRED, "This is the endpoint.")
            else:
                await self._send_events(reader, writer, *self.asked[-1])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # A browser may connect in advance, and disconnect without a request.
        finally:
            writer.close()

    async def _send_events(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, query: str, last_event_id: str
    ) -> None:
        self._respond(writer, HTTPStatus.OK, ":\n", self.content_type)
        if self.closing is not None:
            code, reason = self.closing
            writer.write(f"retry: {RETRY_MS}\n".encode() + _block(message("close", {"code": code, "reason": reason})))
            return
        if self.resumes:
            asked = parse_qs(query, keep_blank_values=True)
            [after], [last] = asked["after"], asked.get("last", [""])
            # The header replaces both parameters, because EventSource reconnects with its original URL.
            after, last = (last_event_id, "") if last_event_id else (after, last)
            texts = self.resume(after, last)
            writer.write(f"retry: {RETRY_MS}\n".encode() + b"".join(_block(text) for text in texts))
        self.connections.append(writer)
        await reader.read()
        with suppress(ValueError):
            self.connections.remove(writer)

    def _respond(self, writer: asyncio.StreamWriter, status: int, body: str, content_type: str = "text/plain") -> None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {content_type}", "Connection: close"]
        lines += ["Access-Control-Allow-Origin: *"] * self.cross_origin
        writer.write("\r\n".join([*lines, "", body]).encode())


def _block(text: bytes) -> bytes:
    """Returns the block of a message. The block of a `close` message has no id."""
    decoded = orjson.loads(text)
    data = decoded["data"]
    block_id = decoded.get("id") or (data.get("id") if isinstance(data, dict) else None)
    return (f"id: {block_id}\n".encode() if block_id else b"") + b"data: " + text + b"\n\n"


@asynccontextmanager
async def scripted_events() -> AsyncIterator[ScriptedEvents]:
    """Runs a scripted bridge that listens."""
    bridge = ScriptedEvents()
    await bridge.start()
    try:
        yield bridge
    finally:
        await bridge.stop()
