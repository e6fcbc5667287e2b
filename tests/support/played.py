"""A server that answers each request with exact bytes, in the given pieces."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

End = Literal["end", "reset", "open"]
"""What happens after the last piece: the end of the connection, a reset, or nothing until the client disconnects."""

_TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS connection. A server without TLS answers with an error of HTTP."""


class Player:
    """A server on 127.0.0.1. Each connection gets the next answer. All further connections get the last answer."""

    def __init__(self, answers: Sequence[tuple[Iterable[bytes], End]], *, tls: bool) -> None:
        """Each answer has its pieces, and its end."""
        self.requests: list[str] = []
        """The heads of the requests."""
        self.asked_at: list[float] = []
        """The time of each request, in seconds on the clock of the event loop."""
        self.port = 0
        self.released = asyncio.Event()
        """While this event is not set, the server waits at each empty piece."""
        self._answers = answers
        self._scheme = "https" if tls else "http"

    @property
    def url(self) -> str:
        """The URL of the endpoint."""
        return f"{self._scheme}://127.0.0.1:{self.port}/updates"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        try:
            first = await reader.readexactly(1)
            if first == _TLS_HANDSHAKE:
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return
            self.requests.append((first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            self.asked_at.append(asyncio.get_running_loop().time())
            pieces, end = self._answers[min(len(self.requests), len(self._answers)) - 1]
            for piece in pieces:
                if piece:
                    writer.write(piece)
                    await writer.drain()
                    # The loop runs once, so that the kernel has sent this piece before the next one is written.
                    await asyncio.sleep(0)
                else:
                    await self.released.wait()
            if end == "open":
                await reader.read()
            elif end == "reset":
                # Without this option, `abort` would end the connection in order.
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # A client may connect only to look, or end a connection early.
        finally:
            writer.close()


@asynccontextmanager
async def playing(*answers: tuple[Iterable[bytes], End], tls: ssl.SSLContext | None = None) -> AsyncIterator[Player]:
    """Runs a server with these answers."""
    player = Player(answers, tls=tls is not None)
    async with await asyncio.start_server(player.answer, "127.0.0.1", 0, ssl=tls) as server:
        player.port = server.sockets[0].getsockname()[1]
        yield player
        player.released.set()
