"""A bridge that does what a test tells it: for faults that a real one can't be made to have when they are wanted.

It speaks what a client sees of `?after=`: the message `resume`, updates with ids, gaps, close codes, refusals. It
judges no update and knows no broker.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

CHECK = "9f86d081"
UNKNOWN = f"7-{'0' * 8}"
"""An id that it has never given out."""


class ScriptedBridge:
    """Listens on 127.0.0.1. What it does is set between a test's steps, and holds for whoever comes then."""

    def __init__(self, ping_interval_s: float | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.asked: list[str] = []
        """The query of each handshake, as it came."""
        self.connections: list[ServerConnection] = []
        """Those that are open, and those that went without a word."""
        self.ready = asyncio.Event()
        self.ready.set()
        """Not set: who connects is told nothing yet."""
        self.refusal: tuple[HTTPStatus, str] | None = None
        """What a handshake is answered with."""
        self.closing: int | None = None
        """The code with which a connection is closed as soon as it is there."""
        self.resumes = True
        """Whether a connection is told where it begins; without, it is up, and nothing comes."""
        self._log: list[bytes] = []
        """The newest updates: what is kept."""
        self._number = 0
        self._muted: set[ServerConnection] = set()
        self._ping_interval_s = ping_interval_s
        self._tls = tls
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Of its endpoint."""
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self.port}/updates"

    @property
    def last_id(self) -> str:
        """That of the newest update."""
        return f"{self._number}-{CHECK}"

    async def start(self) -> None:
        """Listens: on a free port at first, on the same one later."""
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            ssl=self._tls,
            process_request=self._refuse,
            compression=None,
            ping_interval=self._ping_interval_s,
            ping_timeout=None,
            close_timeout=1,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As a bridge stops: every connection is closed with 1001."""
        assert self._server is not None
        for connection in self._muted:
            # Whoever hears nothing does not answer the close either.
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    def emit(self, data: object, update_type: str = "killmail") -> bytes:
        """An update to all that hear; its text."""
        self._number += 1
        text = _text(update_type, data, id=self.last_id)
        self._log.append(text)
        self.say(text)
        return text

    def tell_gap(self, **data: str) -> None:
        """Events may have been missed."""
        self.say(_text("gap", data))

    def say(self, text: bytes) -> None:
        """A message to all that hear, whatever it is."""
        broadcast([connection for connection in self.connections if connection not in self._muted], text.decode())

    def forget(self) -> None:
        """Nothing is kept any more of what there was until now."""
        self._log.clear()

    def mute(self) -> None:
        """Nothing goes to or comes from the connections that there are, as over a line that is dead."""
        for connection in self.connections:
            connection.transport.pause_reading()
            if connection.keepalive_task is not None:
                connection.keepalive_task.cancel()
        self._muted.update(self.connections)

    def unmute(self) -> None:
        """They hear again what is emitted from now on."""
        for connection in self._muted & set(self.connections):
            connection.transport.resume_reading()
        self._muted.clear()

    def drop(self) -> None:
        """Ends the connections without a word, as a proxy that is killed does."""
        for connection in self.connections:
            connection.transport.abort()

    async def close(self, code: int) -> None:
        """Closes the connections with a code."""
        for connection in list(self.connections):
            await connection.close(code)

    def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append(urlsplit(request.path).query)
        if self.refusal is None:
            return None
        status, sentence = self.refusal
        body = sentence.encode() + b"\n"
        headers = Headers({"Content-Length": str(len(body)), "Content-Type": "text/plain", "Connection": "close"})
        return Response(status.value, status.phrase, headers, body)

    async def _serve(self, connection: ServerConnection) -> None:
        if self.closing is not None:
            await connection.close(self.closing)
            return
        await self.ready.wait()
        assert connection.request is not None
        if self.resumes:
            [after] = parse_qs(urlsplit(connection.request.path).query, keep_blank_values=True)["after"]
            for text in self._resume(after):
                broadcast([connection], text.decode())
        self.connections.append(connection)
        await connection.wait_closed()
        self.connections.remove(connection)

    def _resume(self, after: str) -> list[bytes]:
        """The message that says where a client begins, and what follows of what is kept."""
        oldest = self._number - len(self._log)
        known = [f"{number}-{CHECK}" for number in range(oldest, self._number + 1)]
        begin = known.index(after) if after in known else 0 if after else len(self._log)
        replayed = self._log[begin:]
        data = {"complete": not after or after in known, "replayed": len(replayed), "id": known[begin]}
        return [_text("resume", data), *replayed]


@asynccontextmanager
async def scripted_bridge(
    ping_interval_s: float | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedBridge]:
    """One that listens."""
    bridge = ScriptedBridge(ping_interval_s, tls)
    await bridge.start()
    try:
        yield bridge
    finally:
        await bridge.stop()


def _text(message_type: str, data: object, **more: Any) -> bytes:
    return orjson.dumps({"type": message_type, "data": data, "timestamp": time.time_ns() // 1_000_000, **more})
