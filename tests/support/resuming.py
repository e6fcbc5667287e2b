"""A client that never stays away: it reconnects at once and asks for everything after the last id that it has.

It keeps what it was told: each update with its id, each answer to a resume, each gap. What that must add up to is for
the test to say.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

import orjson

from bridge.contract import ids
from bridge.demo.ports import LOOPBACK
from tests.support.clients import CLOSE, PING, PONG, TEXT, RawClient, client_frame, request
from tests.support.waiting import LIMIT_S, eventually

PAUSE_S = 0.2
"""Between two attempts to connect, at most; each pause is another one."""

ANSWER_LIMIT_S = 10.0
"""A load balancer holds a connection for as long as it looks for a server."""


@dataclass(frozen=True, slots=True)
class Update:
    """An update, as far as order and completeness go."""

    id: str
    number: int
    """Of its killmail."""


class Resuming:
    """One client. `query` holds further parameters of its handshake: its filter."""

    def __init__(self, port: int, **query: str) -> None:
        self.updates: list[Update] = []
        self.resumes: list[dict[str, Any]] = []
        """The data of each first message."""
        self.gaps: list[dict[str, Any]] = []
        self.refusals: Counter[str] = Counter()
        """How attempts to connect ended that led to nothing."""
        self._port = port
        self._query = query
        self._after = ""
        self._writer: asyncio.StreamWriter | None = None
        self._running = asyncio.create_task(self._run())

    @property
    def numbers(self) -> list[int]:
        """Of the killmails that came, in their order."""
        return [update.number for update in self.updates]

    @property
    def places(self) -> list[int]:
        """Of the updates' ids the part that grows. Clients can't see it: this is a test."""
        found = [ids.read(update.id) for update in self.updates]
        assert None not in found, self.updates
        return [each.number for each in found if each is not None]

    def has(self, numbers: set[int]) -> bool:
        """Whether all these killmails have come."""
        return len(self.updates) >= len(numbers) and numbers <= set(self.numbers)

    async def resumed(self, times: int = 1) -> None:
        """Returns when it has had that many answers to a resume. Raises what has ended it, if something has."""
        await eventually(f"the client has resumed {times} times", lambda: len(self.resumes) >= times or self._ended())
        if self._ended():
            self._running.result()

    def drop(self) -> None:
        """Ends the connection that it has, if it has one, with whatever is on its way."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def stop(self) -> None:
        """Ends it. Raises what has ended it before: a message that no client should get."""
        self._running.cancel()
        await asyncio.wait([self._running])
        if not self._running.cancelled():
            self._running.result()

    def _ended(self) -> bool:
        return self._running.done()

    async def _run(self) -> None:
        while True:
            try:
                await self._connection()
            except (OSError, EOFError, TimeoutError) as error:
                self.refusals[type(error).__name__] += 1
            await asyncio.sleep(random.uniform(0, PAUSE_S))

    async def _connection(self) -> None:
        """One connection, from its handshake to its end."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
        self._writer = writer
        try:
            path = f"/updates?{urlencode({**self._query, 'after': self._after})}"
            writer.write(request(self._port, path))
            async with asyncio.timeout(ANSWER_LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101 "):
                self.refusals[head.partition(b"\r\n")[0].decode()] += 1
                return
            await self._read(RawClient(reader, writer))
        finally:
            self._writer = None
            writer.transport.abort()

    async def _read(self, client: RawClient) -> None:
        first = True
        while True:
            opcode, payload = await client.frame()
            if opcode == TEXT:
                self._take(orjson.loads(payload), first)
                first = False
            elif opcode == PING:
                client.send(client_frame(PONG, payload))
            else:
                assert opcode == CLOSE, (opcode, payload)
                client.send(client_frame(CLOSE, payload))
                return

    def _take(self, message: dict[str, Any], first: bool) -> None:
        kind, data = message["type"], message["data"]
        assert first == (kind == "resume"), f"{message} is {'the first' if first else 'no first'} message"
        if kind == "resume":
            assert list(message) == ["type", "data", "timestamp"], message
            self.resumes.append(data)
            self._after = data["id"]
        elif kind == "gap":
            assert list(message) == ["type", "data", "timestamp"], message
            self.gaps.append(data)
        else:
            assert list(message) == ["type", "data", "timestamp", "id"], message
            self.updates.append(Update(message["id"], data["killmailId"]))
            self._after = message["id"]


async def have_all(clients: Iterable[Resuming], numbers: set[int], limit_s: float = LIMIT_S) -> None:
    """Returns when every client has all these killmails, however late."""
    for client in clients:
        await eventually(f"a client has all {len(numbers)} updates", partial(client.has, numbers), limit_s)


def assert_exactly_once(clients: Iterable[Resuming], confirmed: set[int]) -> None:
    """Every client has exactly these killmails, in the order of their ids, and was never told of a loss."""
    for client in clients:
        numbers, places = client.numbers, client.places
        twice = [number for number, times in Counter(numbers).items() if times > 1]
        assert twice == [], f"{len(twice)} updates came twice: {twice[:20]}"
        missing = sorted(confirmed.difference(numbers))
        assert missing == [], f"{len(missing)} of {len(confirmed)} updates are missing: {missing[:20]}"
        assert set(numbers) == confirmed, "updates came that this client has not asked for"
        back = [(one, next_one) for one, next_one in pairwise(places) if next_one <= one]
        assert back == [], f"ids do not grow: {back[:20]}"
        assert [answer for answer in client.resumes if not answer["complete"]] == []
        assert client.gaps == []


@asynccontextmanager
async def resuming(port: int, count: int, **query: str) -> AsyncIterator[list[Resuming]]:
    """So many clients, each of which has been told that everything from now on follows."""
    clients = [Resuming(port, **query) for _ in range(count)]
    try:
        for client in clients:
            await client.resumed()
        yield clients
    finally:
        await asyncio.gather(*(client.stop() for client in clients))
