"""WebSocket clients for what the package websockets can't do: send raw bytes, show frames, or stop reading."""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence

READ_LIMIT_S = 60.0
"""The time in which a client must receive what it waits for. Without this limit, a failing test would wait forever."""

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def request(port: int, path: str = "/updates", headers: Sequence[str] = (), host: str = "localhost") -> bytes:
    """Returns the bytes of a handshake."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def client_frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """Returns a masked frame."""
    first = opcode | (0x80 if fin else 0)
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", first, 0x80 | length)
    elif length < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, length)
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Returns the complete frames at the start of a server's bytes, each as opcode and payload."""
    frames = []
    at = 0
    while at + 2 <= len(data):
        length, start = data[at + 1], at + 2
        if length == 126:
            [length], start = struct.unpack_from("!H", data, start), start + 2
        elif length == 127:
            [length], start = struct.unpack_from("!Q", data, start), start + 8
        if start + length > len(data):
            break
        frames.append((data[at] & 15, data[start : start + length]))
        at = start + length
    return frames


def frame_size(data: bytes | bytearray, at: int) -> int:
    """Returns the size in bytes of the server's frame at `at`, or 0 if its header is incomplete."""
    if at + 2 > len(data):
        return 0
    length, head = data[at + 1], 2
    if length >= 126:
        head = 4 if length == 126 else 10
        if at + head > len(data):
            return 0
        length = int.from_bytes(data[at + 2 : at + head], "big")
    return head + length


def close_code(payload: bytes) -> int:
    """Returns the code in the payload of a close frame."""
    return int.from_bytes(payload[:2], "big")


HEARTBEAT = b'{"type":"heartbeat",'


class RawClient:
    """A client that reads one frame with each call."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(
        cls,
        port: int,
        *,
        host: str = "127.0.0.1",
        path: str = "/updates",
        headers: Sequence[str] = (),
        receive_bytes: int | None = None,
    ) -> "RawClient":
        """Connects, and upgrades the connection to WebSocket.

        `receive_bytes` limits the kernel's receive buffer, so that few bytes fill it.
        """
        client_socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        client_socket.setblocking(False)
        if receive_bytes is not None:
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(client_socket, (host, port))
        reader, writer = await asyncio.open_connection(sock=client_socket, limit=4096 if receive_bytes else 2**16)
        client = cls(reader, writer)
        client.send(request(port, path, headers))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return client

    def send(self, data: bytes) -> None:
        """Writes bytes without a frame around them."""
        self._writer.write(data)

    async def frame(self, limit_s: float | None = READ_LIMIT_S) -> tuple[int, bytes]:
        """Returns the next frame of any kind. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            return await self._frame()

    async def _frame(self) -> tuple[int, bytes]:
        first, length = await self._reader.readexactly(2)
        assert first & 0x70 == 0, "a reserved bit is set"
        assert length < 128, "a server frame must not be masked"
        if length == 126:
            length = int.from_bytes(await self._reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self._reader.readexactly(8), "big")
        return first & 15, await self._reader.readexactly(length)

    async def text(self, limit_s: float | None = READ_LIMIT_S, *, heartbeats: bool = False) -> bytes:
        """Returns the next text message, and skips heartbeats unless `heartbeats` is True. Raises TimeoutError.

        Skips pings, and does not answer them.
        """
        while True:
            opcode, payload = await self.frame(limit_s)
            if opcode == TEXT and (heartbeats or not payload.startswith(HEARTBEAT)):
                return payload
            assert opcode in (TEXT, PING), (opcode, payload)

    async def closed(self) -> int:
        """Reads until the server's close frame, answers it, and returns its code."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                self.send(client_frame(CLOSE, payload))
                return close_code(payload)

    async def read_available(self) -> bytes:
        """Waits until bytes arrive, and returns them."""
        async with asyncio.timeout(READ_LIMIT_S):
            data = await self._reader.read(2**18)
        assert data, "the server has ended the connection"
        return data

    async def read_to_end(self) -> bytes:
        """Returns all bytes until the server ends the connection."""
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                return await self._reader.read(-1)
        except ConnectionResetError:
            return b""

    def pause(self) -> None:
        """Stops reading from the socket."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # declared as a write transport only

    def resume(self) -> None:
        """Reads from the socket again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]  # declared as a write transport only

    async def close(self) -> None:
        """Ends the TCP connection."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Collector(asyncio.Protocol):
    """A client that stores all bytes after the handshake. A test can have a thousand such clients."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._head = b""
        self.open = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()
        self.received = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(request(self._port))

    def data_received(self, data: bytes) -> None:
        if self.open.done():
            self.received += data
            return
        self._head += data
        head, separator, rest = self._head.partition(b"\r\n\r\n")
        if separator:
            assert head.startswith(b"HTTP/1.1 101 "), head
            self.received += rest
            self.open.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        if not self.open.done():
            self.open.set_exception(ConnectionError("lost before the end of the handshake"))


class ClosingCollector(Collector):
    """A collector that answers the server's close frame, so that the server does not wait for an answer."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._at = 0
        """The start of the first frame that is incomplete."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        while (size := frame_size(self.received, self._at)) and self._at + size <= len(self.received):
            frame = self.received[self._at : self._at + size]
            self._at += size
            if frame[0] & 15 == CLOSE and self.transport is not None:
                self.transport.write(client_frame(CLOSE, bytes(frame[2:4])))


async def collectors(port: int, count: int, kind: type[Collector] = Collector) -> list[Collector]:
    """Returns `count` connected clients."""
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(count):
        _, client = await loop.create_connection(lambda: kind(port), "127.0.0.1", port)
        clients.append(client)
    await asyncio.gather(*(client.open for client in clients))
    return clients


def close_all(clients: Sequence[Collector]) -> None:
    """Ends the TCP connections."""
    for client in clients:
        if client.transport is not None:
            client.transport.abort()


async def get(
    port: int,
    path: str,
    *headers: str,
    method: str = "GET",
    host: str = "localhost",
    address: str = "127.0.0.1",
    context: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Sends an HTTP request, over TLS if there is a `context`, and returns the status and the body.

    A header `Host` in `headers` replaces the default header.
    """
    reader, writer = await asyncio.open_connection(address, port, ssl=context)
    if not any(header.lower().startswith("host:") for header in headers):
        headers = (f"Host: {host}:{port}", *headers)
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode())
    async with asyncio.timeout(READ_LIMIT_S):
        answer = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PENDING = 5
"""The limit on connections without a complete request, in tests of this limit."""


@contextlib.asynccontextmanager
async def silent_clients(port: int, count: int) -> AsyncIterator[list[Streams]]:
    """Clients that connect and send nothing."""
    made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    yield made
    for _, writer in made:
        writer.transport.abort()


async def read_all(streams: Streams) -> bytes:
    """Returns all bytes that the bridge sends until it ends the connection."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(READ_LIMIT_S):
            return await streams[0].read(-1)
    return b""


def distrust(port: int) -> None:
    """Starts a TLS handshake as a client that does not trust the certificate.

    The client does not use asyncio, which would send no TLS alert.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        ssl.create_default_context().wrap_socket(sock, server_hostname="127.0.0.1")
