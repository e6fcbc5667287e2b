"""Clients of each transport that find the killmail's number in each update with little processor time."""

import array
import asyncio
import random
import re
import socket
import struct
from collections import Counter
from typing import Any, TypeVar, cast

import orjson

from bridge.contract.filters import MAX_WAIT_S
from tests.support.clients import CLOSE, PING, PONG, TEXT, client_frame, close_code, request
from tests.support.event_streams import StreamClient, stream_request

LOOPBACK = "127.0.0.1"
HEAD_END = b"\r\n\r\n"
UPDATE = re.compile(rb'\{"type":"killmail","data":\{"killmailId":(\d+),')
EVENT = re.compile(rb"(?::\n)*(?:retry: [0-9]+\n)?(?:id: [^\n]+\n)?data: (.*)")
"""A block of an event stream, with the comments before it."""

WHOLE_TEXT = 0x80 | TEXT
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for a socket that is closed with a reset."""


class Tally:
    """The updates of a client that follows the bridge for the whole run. It counts how often each update arrived."""

    def __init__(self, first: int = 0) -> None:
        """`first` is the number of the first update that the client must get."""
        self.first = first
        self.counts = bytearray()
        """How often each update arrived. The index is the number of the update."""
        self.numbers = array.array("I")
        """The numbers of all updates in order."""
        self.newest = 0
        self.late = 0
        """The number of updates that arrived after newer updates, because the broker delivered them again."""

    def add(self, number: int) -> None:
        """Records an update."""
        counts = self.counts
        if number >= len(counts):
            counts.extend(bytes(number + 1000 - len(counts)))
        counts[number] = min(255, counts[number] + 1)
        if number > self.newest:
            self.newest = number
        else:
            self.late += 1
        self.numbers.append(number)


class Reader(asyncio.Protocol):
    """A WebSocket client that reads everything, and answers pings and the server's close frame.

    The client records the updates in `numbers`.
    """

    STATUS = b"HTTP/1.1 101 "
    """The start of the response to a client that is admitted."""

    def __init__(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._port = port
        self._rest = b""
        self.opened: asyncio.Future[None] = loop.create_future()
        """A future that is done after the head of the response. The future has an error if the bridge refuses the
        client or closes the connection before."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        """A future that is done when the bridge closes the connection. The future's result is the close code, or 0."""
        self.numbers = array.array("I")
        self.pongs = 0
        self.transport: asyncio.Transport | None = None
        # Marks the exception as retrieved, because it is possible that no task awaits the future.
        self.opened.add_done_callback(lambda future: future.cancelled() or future.exception())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not a subclass of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.send_handshake(self.transport)

    def send_handshake(self, transport: asyncio.Transport) -> None:
        """Sends the handshake."""
        transport.write(request(self._port))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        at = 0
        if not self.opened.done():
            end = data.find(HEAD_END)
            if end < 0:
                self._rest = data
                return
            at = end + len(HEAD_END)
            if data.startswith(self.STATUS):
                self.opened.set_result(None)
            else:
                self.opened.set_exception(ConnectionError(data.partition(b"\r\n")[0].decode()))
                return
        self._rest = data[self._messages(data, at) :]

    def _messages(self, data: bytes, at: int) -> int:
        """Processes the complete messages, beginning at the position `at`.

        Returns the start of the first incomplete message.
        """
        end = len(data)
        while at + 2 <= end:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[start : at + 4], "big"), at + 4
            elif length == 127:
                length, start = int.from_bytes(data[start : at + 10], "big"), at + 10
            if start + length > end:
                break
            if data[at] == WHOLE_TEXT:
                update = UPDATE.match(data, start, start + length)
                assert update is not None, data[start : start + length]
                self.update(int(update[1]))
            else:
                self._control(data[at] & 15, data[start : start + length])
            at = start + length
        return at

    def update(self, number: int) -> None:
        """Records an update."""
        self.numbers.append(number)

    def _control(self, opcode: int, payload: bytes) -> None:
        assert self.transport is not None
        if opcode == PING:
            self.transport.write(client_frame(PONG, payload))
        elif opcode == PONG:
            self.pongs += 1
        elif opcode == CLOSE:
            if not self.ended.done():
                self.ended.set_result(close_code(payload))
            self.transport.write(client_frame(CLOSE, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("ended before the head of the response"))
        if not self.ended.done():
            self.ended.set_result(0)
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def own_port(self) -> int:
        """The client's port, which the bridge's log names."""
        assert self.transport is not None
        port: int = self.transport.get_extra_info("sockname")[1]
        return port

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        assert self.transport is not None
        if not self.transport.is_closing():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    async def leave(self) -> None:
        """Ends the connection, whatever its state."""
        if self.transport is not None:
            self.transport.abort()
            await self.lost


class EventReader(Reader):
    """A client of Server-Sent Events that reads everything, and records the updates in `numbers`."""

    STATUS = b"HTTP/1.1 200 "

    def send_handshake(self, transport: asyncio.Transport) -> None:
        transport.write(stream_request(self._port))

    def _messages(self, data: bytes, at: int) -> int:
        while (end := data.find(b"\n\n", at)) >= 0:
            event = EVENT.fullmatch(data, at, end)
            assert event is not None, data[at:end]
            update = UPDATE.match(event[1])
            if update is not None:
                self.update(int(update[1]))
            else:
                self._own_message(orjson.loads(event[1]))
            at = end + 2
        return at

    def _own_message(self, message: dict[str, Any]) -> None:
        assert message["type"] in {"resume", "heartbeat", "close"}, message
        if message["type"] == "close" and not self.ended.done():
            self.ended.set_result(message["data"]["code"])


class Healthy(Reader):
    """A WebSocket client that is connected for the whole run."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.tally = Tally()

    def update(self, number: int) -> None:
        self.tally.add(number)


class HealthyStream(EventReader):
    """A client of Server-Sent Events that is connected for the whole run."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.tally = Tally()

    def update(self, number: int) -> None:
        self.tally.add(number)


async def poll(port: int, query: str) -> dict[str, Any]:
    """Returns the response to a request for JSON. Raises ConnectionError if the bridge refuses it."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        client = await StreamClient.over(reader, writer, stream_request(port, f"/updates?format=json&{query}"))
        body = await client.rest()
    finally:
        writer.transport.abort()
    if client.status != 200 or client.header("Content-Length") != str(len(body)):
        raise ConnectionError(f"status {client.status}, {len(body)} bytes")
    response: dict[str, Any] = orjson.loads(body)
    return response


def numbers_in(response: dict[str, Any]) -> "array.array[int]":
    """Returns the numbers of the killmails in a response."""
    return array.array("I", [update["data"]["killmailId"] for update in response["updates"]])


class Poller:
    """A client that polls for the whole run, each time after the id of the last response."""

    PAUSE_S = 0.2
    """The longest pause between two requests. Each pause is random."""

    def __init__(self, port: int, first: int) -> None:
        """`first` is the number of the next update."""
        self.tally = Tally(first)
        self.started = asyncio.Event()
        """Set after the first response."""
        self.wrong: Counter[str] = Counter()
        self._port = port
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        after, wait_s = "", 0
        while True:
            try:
                response = await poll(self._port, f"after={after}&wait={wait_s}&limit=1000")
            except (OSError, EOFError, TimeoutError) as error:
                self.wrong[f"a request for JSON failed: {error or type(error).__name__}"] += 1
                await asyncio.sleep(self.PAUSE_S)
                continue
            if not response["complete"] or response["gaps"]:
                self.wrong["a request for JSON missed updates"] += 1
            for number in numbers_in(response):
                self.tally.add(number)
            after, wait_s = response["id"], MAX_WAIT_S
            self.started.set()
            await asyncio.sleep(random.uniform(0, self.PAUSE_S))

    async def leave(self) -> None:
        """Ends the client."""
        self._running.cancel()
        await asyncio.wait([self._running])


class Slow(Reader):
    """A WebSocket client that pauses after each read."""

    PAUSE_S = 0.05

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(self.PAUSE_S, self._read_on)

    def _read_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()


class SlowStream(Slow, EventReader):
    """A client of Server-Sent Events that pauses after each read."""


class Stalled(Reader):
    """A WebSocket client that reads nothing after its handshake, until the test calls `read_on`."""

    def data_received(self, data: bytes) -> None:
        before = self.opened.done()
        super().data_received(data)
        if not before and self.opened.done() and self.transport is not None:
            self.transport.pause_reading()

    def read_on(self) -> None:
        """Reads again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()


class StalledStream(Stalled, EventReader):
    """A client of Server-Sent Events that reads nothing after the head of the response."""


Kind = TypeVar("Kind", bound=Reader)


async def connect(kind: type[Kind], port: int, receive_bytes: int | None = None, **more: Any) -> Kind:
    """Connects a client, which sends its handshake. `receive_bytes` is the size of the socket's receive buffer."""
    loop = asyncio.get_running_loop()
    client_socket = socket.socket()
    client_socket.setblocking(False)
    try:
        if receive_bytes is not None:
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await loop.sock_connect(client_socket, (LOOPBACK, port))
        _, client = await loop.create_connection(lambda: kind(port, **more), sock=client_socket)
    except BaseException:
        client_socket.close()
        raise
    return client
