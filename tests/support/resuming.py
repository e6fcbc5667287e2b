"""Clients of each transport that reconnect at once, ask for everything after their last id, and record what they get.

A client follows the contract to the letter, and fails if the bridge does not: a message of an unknown form ends the
client with an error, which `verify` raises. `exactly_once` judges what the clients have recorded.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson

from bridge.contract.filters import MAX_WAIT_S
from bridge.contract.update_id import UpdateId
from tests.support.broker.ports import LOOPBACK
from tests.support.clients import CLOSE, PING, PONG, TEXT, RawClient, client_frame, close_code, request
from tests.support.event_streams import StreamClient, stream_request
from tests.support.waiting import LIMIT_S, eventually

RECONNECT_PAUSE_S = 0.2
"""The longest pause between two attempts to connect. Each pause is random."""

ANSWER_LIMIT_S = 10.0
"""The maximum time until the head of the response, in addition to the time that the client asked the bridge to wait.

While a load balancer looks for a server, it keeps the client's connection open.
"""

SILENCE_LIMIT_S = 60.0
"""The maximum time without a byte from the bridge. It is above the interval of pings, comments and heartbeats."""

WAIT_S = 1
"""How long the response to a poll waits for the first update, in seconds.

A short wait lets a test see polls that find nothing.
"""

LIMIT = 100
"""The maximum number of updates in the response to a poll."""

_MEMBERS = {
    "resume": {"complete", "replayed", "id"},
    "gap": {"since", "until", "reason", "id"},
    "heartbeat": {"id", "consuming"},
    "close": {"code", "reason"},
}
"""The members of the data of each own message."""


@dataclass(frozen=True, slots=True)
class Update:
    """The part of an update that is needed to check that all updates have arrived in order."""

    id: str
    number: int
    """The number of the update's killmail."""


def _place(text: str) -> float:
    """Returns the sequence number of an id, less a half if the id is from before the update."""
    update_id = UpdateId.parse(text)
    assert update_id is not None, text
    return update_id.sequence - update_id.before / 2


class ResumingClient(ABC):
    """A client with ids. It adopts the id of each message, and resumes after the last one on its next connection."""

    def __init__(self, port: int, *, after: str = "", **query: str) -> None:
        """`after` is where the client begins, and `query` is its filter."""
        self.updates: list[Update] = []
        self.resumes: list[dict[str, Any]] = []
        """For each connection, the data of its `resume`. A response to a poll is a connection of its own."""
        self.gaps: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        """The data of each heartbeat. A response to a poll without updates and gaps is the heartbeat of a poll."""
        self.closes: Counter[int] = Counter()
        """The number of connections that the bridge closed, for each code."""
        self.refusals: Counter[str] = Counter()
        """The number of failed attempts to connect, for each status or type of error."""
        self.reconnects = 0
        """How often the client got an answer again after it had lost its connection or was refused."""
        self.replayed = 0
        """The number of updates in these answers."""
        self.ids: list[str] = []
        """All adopted ids in order: those of updates, and those of own messages and of responses to polls."""
        self._port = port
        self._query = query
        self._first_after = self._after = after
        self._writer: asyncio.StreamWriter | None = None
        self._is_cut_off = False
        """Whether the last connection was lost or refused."""
        self._may_connect = asyncio.Event()
        self._may_connect.set()
        self._running = asyncio.create_task(self._run())

    # What the client has received

    @property
    def numbers(self) -> list[int]:
        """The numbers of the received killmails, in order."""
        return [update.number for update in self.updates]

    @property
    def places(self) -> list[float]:
        """The place of each adopted id in the log. Real clients must not parse ids."""
        return [_place(each) for each in self.ids]

    @property
    def update_places(self) -> list[float]:
        """The place of each update in the log."""
        return [_place(update.id) for update in self.updates]

    @property
    def last_id(self) -> str:
        """The id after which the client resumes."""
        return self._after

    @property
    def keepalives(self) -> int:
        """The number of pings, or of comments in an event stream, on the current connection. A poll has none."""
        return 0

    async def has(self, numbers: set[int], limit_s: float = LIMIT_S) -> None:
        """Waits until all these killmails have arrived. Raises the error that ended the client, if there is one."""
        await eventually(
            f"a client has received all {len(numbers)} updates",
            lambda: (len(self.updates) >= len(numbers) and numbers <= set(self.numbers)) or self._running.done(),
            limit_s,
        )
        self.verify()

    async def resumed(self, times: int = 1) -> None:
        """Waits until the client has resumed `times` times. Raises the error that ended the client, if there is one."""
        await eventually(
            f"the client has resumed {times} times", lambda: len(self.resumes) >= times or self._running.done()
        )
        self.verify()

    def verify(self) -> None:
        """Raises the error that ended the client, if there is one.

        A message that no client should get ends the client with an error.
        """
        if self._running.done():
            self._running.result()

    # What a test does with the client

    def drop(self) -> None:
        """Aborts the connection, if there is one. Data in flight is lost."""
        self._is_cut_off = True
        if self._writer is not None:
            self._writer.transport.abort()

    def leave(self) -> None:
        """Aborts the connection, and connects again only after `come_back`."""
        self._may_connect.clear()
        self.drop()

    def come_back(self, port: int) -> None:
        """Connects again, maybe to another bridge."""
        self._port = port
        self._may_connect.set()

    async def abandon(self) -> None:
        """Ends the client at once."""
        self._running.cancel()
        await asyncio.wait([self._running])

    # The connections

    async def _run(self) -> None:
        while True:
            await self._may_connect.wait()
            has_ended_well = False
            try:
                has_ended_well = await self._connection()
            except (OSError, EOFError, TimeoutError) as error:
                self.refusals[type(error).__name__] += 1
            if not has_ended_well:
                self._is_cut_off = True
                await asyncio.sleep(random.uniform(0, RECONNECT_PAUSE_S))

    async def _connection(self) -> bool:
        """Runs one connection, from its request to its end. Returns whether the next one begins without a pause."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
        self._writer = writer
        try:
            return await self._follow(reader, writer)
        finally:
            self._writer = None
            writer.transport.abort()

    @abstractmethod
    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Sends the request of a connection, and reads the response. Returns the same value as `_connection`."""

    def _path(self, **parameters: str) -> str:
        return f"/updates?{urlencode({**self._query, **parameters})}"

    # The messages

    def _resumed(self, data: dict[str, Any]) -> None:
        self.resumes.append(data)
        if self._is_cut_off:
            self._is_cut_off = False
            self.reconnects += 1
            self.replayed += data["replayed"]

    def _adopt(self, update_id: str) -> None:
        self._after = update_id
        self.ids.append(update_id)

    def _take(self, message: dict[str, Any], *, first: bool) -> str:
        """Records a message. `first` is whether it is the first one of its connection. Returns the adopted id."""
        kind, data = message["type"], message["data"]
        if kind not in _MEMBERS:
            assert not first, f"{message} comes before `resume`"
            return self._take_update(message)
        assert list(message) == ["type", "data", "timestamp"], message
        assert set(data) == _MEMBERS[kind], message
        if kind == "close":
            self.closes[data["code"]] += 1
            return ""
        assert first == (kind == "resume"), f"{message} is {'the first' if first else 'not the first'} message"
        if kind == "resume":
            self._resumed(data)
        else:
            {"gap": self.gaps, "heartbeat": self.heartbeats}[kind].append(data)
        self._adopt(data["id"])
        return str(data["id"])

    def _take_update(self, message: dict[str, Any]) -> str:
        assert list(message) == ["type", "data", "timestamp", "id"], message
        self.updates.append(Update(message["id"], message["data"]["killmailId"]))
        self._adopt(message["id"])
        return str(message["id"])


class WebSocketClient(ResumingClient):
    """A client that upgrades to WebSocket."""

    _pings = 0

    @property
    def keepalives(self) -> int:
        return self._pings

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(request(self._port, self._path(after=self._after)))
        async with asyncio.timeout(ANSWER_LIMIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            self.refusals[head.split(b" ", 2)[1].decode()] += 1
            return False
        client, first = RawClient(reader, writer), True
        self._pings = 0
        while True:
            opcode, payload = await client.frame(SILENCE_LIMIT_S)
            if opcode == TEXT:
                message = orjson.loads(payload)
                assert message["type"] != "close", "only an event stream has a message of the type `close`"
                self._take(message, first=first)
                first = False
            elif opcode == PING:
                self._pings += 1
                client.send(client_frame(PONG, payload))
            else:
                assert opcode == CLOSE, (opcode, payload)
                self.closes[close_code(payload)] += 1
                client.send(client_frame(CLOSE, payload))
                return False


class EventStreamClient(ResumingClient):
    """A client of Server-Sent Events that puts its last id into the URL, as a program does."""

    _remembers_id_in_header = False
    _stream: StreamClient | None = None

    @property
    def keepalives(self) -> int:
        return 0 if self._stream is None else self._stream.comments

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            self._stream = client = await StreamClient.over(reader, writer, self._request())
        if client.status != 200:
            self.refusals[str(client.status)] += 1
            # `EventSource` gives up for good, so the bridge must never send such a status to a client that it can
            # serve later.
            assert not self._remembers_id_in_header, f"the client gives up after the status {client.status}"
            return False
        assert client.header("Content-Type") == "text/event-stream", client.headers
        first = True
        while True:
            # A block that the end of the body cuts off is dropped, with its id.
            event = await client.event()
            is_last = event.message["type"] == "close"
            assert (event.retry is not None) == first or is_last, event
            assert self._take(event.message, first=first) == (event.id or ""), event
            first = False

    def _request(self) -> bytes:
        headers = ["Accept: text/event-stream", "Cache-Control: no-cache"]
        after = self._after
        if self._remembers_id_in_header:
            after = self._first_after
            if self.ids:
                headers.append(f"Last-Event-ID: {self._after}")
        return stream_request(self._port, self._path(after=after), headers)


class EventSourceClient(EventStreamClient):
    """A client that reconnects as `EventSource` does: with its original URL, and its last id in `Last-Event-ID`.

    Any status but 200 ends the client with an error, because `EventSource` never connects again after such a status.
    """

    _remembers_id_in_header = True


class PollingClient(ResumingClient):
    """A client that asks for JSON again and again, each time after the id of the last response."""

    wait_s = WAIT_S
    limit = LIMIT

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        # The first response must not wait, because it tells the client where it begins.
        wait_s = self.wait_s if self.ids else 0
        path = self._path(format="json", after=self._after, wait=str(wait_s), limit=str(self.limit))
        async with asyncio.timeout(ANSWER_LIMIT_S + wait_s):
            response = await StreamClient.over(reader, writer, stream_request(self._port, path, ["Connection: close"]))
        body = await response.rest()
        if len(body) != int(response.header("Content-Length") or 0):
            raise EOFError("the end of the response is missing")
        if response.status != 200:
            self.refusals[str(response.status)] += 1
            # Only the bridge itself, and no proxy, sends this header `Vary`.
            is_from_bridge = response.header("Vary") == "Accept, Origin"
            assert response.header("Retry-After") or not is_from_bridge, (response.status, response.headers)
            return False
        assert response.header("Content-Type") == "application/json", response.headers
        self._take_response(orjson.loads(body))
        return True

    def _take_response(self, response: dict[str, Any]) -> None:
        updates, gaps = response["updates"], response["gaps"]
        assert list(response) == ["updates", "gaps", "id", "complete", "more", "consuming"], response
        assert len(updates) <= self.limit, len(updates)
        self._resumed({"complete": response["complete"], "replayed": len(updates), "id": response["id"]})
        for update in updates:
            self._take_update(update)
        for gap in gaps:
            assert set(gap) == _MEMBERS["gap"], gap
            self.gaps.append(gap)
        if not updates and not gaps:
            self.heartbeats.append({"id": response["id"], "consuming": response["consuming"]})
        self._adopt(response["id"])


class PatientPollingClient(PollingClient):
    """A client that waits for its response for as long as it may."""

    wait_s = MAX_WAIT_S


KINDS: Mapping[str, type[ResumingClient]] = {
    "websocket": WebSocketClient,
    "sse": EventStreamClient,
    "eventsource": EventSourceClient,
    "json": PollingClient,
}
"""The kinds of clients, by the names that tests show."""

CONNECTED = [kind for kind in KINDS.values() if not issubclass(kind, PollingClient)]
"""The kinds of clients whose connections last."""


@asynccontextmanager
async def resuming_clients(
    port: int, count: int, *kinds: type[ResumingClient], **query: str
) -> AsyncIterator[list[ResumingClient]]:
    """Starts `count` clients of each kind, and waits until each has resumed for the first time.

    Without `kinds`, the clients use WebSocket. At the end, the test must call the method `verify` of each client.
    """
    clients = [kind(port, **query) for kind in kinds or (WebSocketClient,) for _ in range(count)]
    try:
        for client in clients:
            await client.resumed()
        yield clients
    finally:
        await asyncio.gather(*(client.abandon() for client in clients))


async def have_all(clients: Iterable[ResumingClient], numbers: set[int], limit_s: float = LIMIT_S) -> None:
    """Waits until every client has received all these killmails."""
    for client in clients:
        await client.has(numbers, limit_s)
