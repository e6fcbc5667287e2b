"""A client of Server-Sent Events that shows each line of the response, or stops reading."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from tests.support.clients import READ_LIMIT_S


def stream_request(
    port: int,
    path: str = "/updates?format=sse",
    headers: Sequence[str] = (),
    *,
    method: str = "GET",
    version: str = "1.1",
    host: str = "localhost",
) -> bytes:
    """Returns the bytes of a request for an event stream."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", f"Host: {host}:{port}", *headers, "", ""]).encode()


class Event(NamedTuple):
    """A block of an event stream."""

    id: str | None
    data: bytes
    retry: str | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The message, as a JSON object."""
        found: dict[str, Any] = orjson.loads(self.data)
        return found


class StreamClient:
    """A client that reads one line or one block with each call."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_chunked = False
        """Whether a proxy has divided the body into chunks (RFC 9112, section 7.1)."""
        self._unread = bytearray()
        """The bytes of chunks that no call has returned yet."""
        self.comments = 0
        """The number of comments that `event` has skipped."""
        self.status = 0
        self.headers: list[tuple[str, str]] = []

    @classmethod
    async def open(
        cls,
        port: int,
        path: str = "/updates?format=sse",
        headers: Sequence[str] = (),
        *,
        method: str = "GET",
        version: str = "1.1",
        receive_bytes: int | None = None,
        context: ssl.SSLContext | None = None,
    ) -> "StreamClient":
        """Connects to 127.0.0.1, and reads the head of the response.

        `receive_bytes` limits the kernel's receive buffer, so that few bytes fill it.
        """
        client_socket = socket.socket()
        client_socket.setblocking(False)
        if receive_bytes is not None:
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(client_socket, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(
            sock=client_socket,
            limit=2**24,
            ssl=context,
            server_hostname="localhost" if context else None,
        )
        return await cls.over(reader, writer, stream_request(port, path, headers, method=method, version=version))

    @classmethod
    async def over(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> "StreamClient":
        """Sends the request over an existing connection, and reads the head of the response."""
        client = cls(reader, writer)
        writer.write(request)
        async with asyncio.timeout(READ_LIMIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        client.status = int(first.split(" ")[1])
        client.headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
        client._is_chunked = client.header("Transfer-Encoding") == "chunked"
        return client

    def header(self, name: str) -> str | None:
        """Returns the value of a header, or None."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)

    def send(self, data: bytes) -> None:
        """Writes bytes after the request."""
        self._writer.write(data)

    async def line(self) -> bytes:
        """Returns the next line without its LF. Raises TimeoutError, or EOFError at the end of the body."""
        async with asyncio.timeout(READ_LIMIT_S):
            if not self._is_chunked:
                return (await self._reader.readuntil(b"\n"))[:-1]
            while b"\n" not in self._unread:
                self._unread += await self._chunk()
        line, _, self._unread = self._unread.partition(b"\n")
        return bytes(line)

    async def _chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        chunk = await self._reader.readexactly(size + 2)
        if not size:
            raise EOFError
        return chunk[:-2]

    async def event(self) -> Event:
        """Returns the next block, and skips comments."""
        fields: dict[str, bytes] = {}
        while line := await self.line():
            name, _, value = line.partition(b":")
            if not name:
                self.comments += 1
                continue
            assert name.decode() not in fields, line
            fields[name.decode()] = value.removeprefix(b" ")
        assert set(fields) <= {"id", "data", "retry"}, fields
        texts = {name: fields[name].decode() if name in fields else None for name in ("id", "retry")}
        return Event(texts["id"], fields["data"], texts["retry"])

    async def update(self) -> Event:
        """Returns the next block with an update, and skips the bridge's own messages."""
        while True:
            event = await self.event()
            if "id" in event.message:
                return event

    async def rest(self) -> bytes:
        """Returns all bytes until the bridge ends the body."""
        async with asyncio.timeout(READ_LIMIT_S):
            return await self._reader.read(-1)

    async def ended(self) -> bool:
        """Reads until the bridge ends the connection. Returns True if it was ended, and False if it was reset."""
        try:
            await self.rest()
        except ConnectionResetError:
            return False
        return True

    def pause(self) -> None:
        """Stops reading from the socket."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # declared as a write transport only

    def resume(self) -> None:
        """Reads from the socket again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]  # declared as a write transport only

    def end(self) -> None:
        """Ends the client's side."""
        self._writer.write_eof()

    def abort(self) -> None:
        """Ends the TCP connection at once, without the end of TLS."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Ends the TCP connection."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
