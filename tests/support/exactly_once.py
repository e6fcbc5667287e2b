"""A fetcher and clients that lose no event, whatever fault occurs between them. Each event must arrive exactly once.

The fetcher publishes an event again, on any node that answers, until the broker has confirmed it. A stream may contain
an event that was published twice, and the bridge detects the duplicate by the killmail's identity. The clients
reconnect at once, and ask for everything after their last id.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

import aio_pika
import aiormq
import orjson
from aio_pika.abc import AbstractExchange

from bridge.contract.update_id import UpdateId
from tests.support.broker.ports import LOOPBACK
from tests.support.clients import CLOSE, PING, PONG, TEXT, RawClient, client_frame, request
from tests.support.killmail import killmail
from tests.support.publishing import connect
from tests.support.waiting import LIMIT_S, eventually

PUBLISH_PAUSE_S = 0.02
"""The pause between two events, which gives fifty events a second."""

MAX_UNCONFIRMED = 50
"""The maximum number of unconfirmed events."""

CONFIRM_LIMIT_S = 5.0
"""The maximum time for a confirm.

While a node waits for the leader of a stream to be elected, it sends neither a confirm nor an error.
"""

CONNECT_LIMIT_S = 2.0

FURTHER_LIMIT_S = 60.0
"""The maximum time for further confirms. While the fetcher waits, the nodes may be down, one after another."""

SYSTEMS = (30000142, 30002187)
"""The two solar systems between which the killmails alternate."""

LOST = (aiormq.exceptions.AMQPError, OSError, RuntimeError, TimeoutError, asyncio.CancelledError)
"""The exceptions that publishing on a lost connection can raise.

A cancellation may come from aiormq instead of the test.
"""


class ConfirmingFetcher:
    """Publishes killmails, numbered from 1, to an existing exchange.

    `url` can have several nodes, separated by commas.
    """

    def __init__(self, url: str, exchange: str) -> None:
        self.confirmed: set[int] = set()
        self.again = 0
        """The number of events that were published again."""
        self._nodes = itertools.cycle(url.split(","))
        self._exchange = exchange
        self._number = 0
        self._unconfirmed: list[int] = []
        """The numbers of published events with an unknown outcome. These events are published again."""
        self._pace = asyncio.Lock()
        self._stopping = False
        self._running = asyncio.create_task(self._run())

    async def further(self, count: int) -> None:
        """Waits until `count` more events are confirmed."""
        enough = len(self.confirmed) + count
        await eventually(
            f"{count} more events are confirmed",
            lambda: len(self.confirmed) >= enough or self._running.done(),
            FURTHER_LIMIT_S,
        )
        if self._running.done():
            self._running.result()

    async def stop(self) -> None:
        """Stops publishing new events, and waits until all published events are confirmed."""
        self._stopping = True
        async with asyncio.timeout(FURTHER_LIMIT_S):
            await self._running

    async def abandon(self) -> None:
        """Ends the fetcher at once after a failed test, if it still runs."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def _run(self) -> None:
        for node in self._nodes:
            try:
                await self._publish_on(node)
            except LOST:
                # Only a cancellation by the test ends the fetcher. A cancellation by aiormq means a lost connection.
                if self._running.cancelling():
                    raise
            if self._stopping and not self._unconfirmed:
                return
            await asyncio.sleep(PUBLISH_PAUSE_S)

    async def _publish_on(self, node: str) -> None:
        """Publishes on one node until the connection is lost or the fetcher stops."""
        connection = await connect(node, CONNECT_LIMIT_S)
        try:
            channel = await connection.channel(publisher_confirms=True)
            target = await channel.get_exchange(self._exchange, ensure=False)
            publishing = [asyncio.create_task(self._publish(target)) for _ in range(MAX_UNCONFIRMED)]
            try:
                ended, _ = await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
                if self._stopping:
                    ended, _ = await asyncio.wait(publishing, timeout=CONFIRM_LIMIT_S)
            finally:
                for each in publishing:
                    each.cancel()
                await asyncio.wait(publishing)
            for each in ended:
                with suppress(*LOST):
                    each.result()
        finally:
            closing = asyncio.ensure_future(connection.close())
            await asyncio.wait([closing], timeout=CONNECT_LIMIT_S)
            closing.cancel()

    async def _publish(self, target: AbstractExchange) -> None:
        while (number := await self._next()) is not None:
            body = orjson.dumps(killmail(number, systemId=SYSTEMS[number % 2]))
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            try:
                async with asyncio.timeout(CONFIRM_LIMIT_S):
                    await target.publish(message, routing_key="")
            except BaseException:
                # After any error or cancellation, the broker may or may not have the event.
                self._unconfirmed.append(number)
                raise
            self.confirmed.add(number)

    async def _next(self) -> int | None:
        """Returns the number of the next event to publish, or None if there is no such event."""
        async with self._pace:
            await asyncio.sleep(PUBLISH_PAUSE_S)
        if self._unconfirmed:
            self.again += 1
            # The oldest event comes first.
            self._unconfirmed.sort()
            return self._unconfirmed.pop(0)
        if self._stopping:
            return None
        self._number += 1
        return self._number


@asynccontextmanager
async def confirming_fetcher(url: str, exchange: str) -> AsyncIterator[ConfirmingFetcher]:
    """A running fetcher."""
    fetcher = ConfirmingFetcher(url, exchange)
    try:
        yield fetcher
    finally:
        await fetcher.abandon()


RECONNECT_PAUSE_S = 0.2
"""The longest pause between two attempts to connect. Each pause is random."""

ANSWER_LIMIT_S = 10.0
"""The maximum time until the first message.

While a load balancer looks for a server, it keeps the client's connection open.
"""


@dataclass(frozen=True, slots=True)
class Update:
    """The part of an update that is needed to check that all updates have arrived in order."""

    id: str
    number: int
    """The number of the update's killmail."""


class ResumingClient:
    """A client that reconnects at once. `query` is the filter in the client's handshake.

    The client records each update with its id, each `resume` message, and each gap.
    """

    def __init__(self, port: int, **query: str) -> None:
        self.updates: list[Update] = []
        self.resumes: list[dict[str, Any]] = []
        """The data of the first message of each connection."""
        self.gaps: list[dict[str, Any]] = []
        self.refusals: Counter[str] = Counter()
        """The number of failed attempts to connect, for each status line or type of error."""
        self._port = port
        self._query = query
        self._after = ""
        self._writer: asyncio.StreamWriter | None = None
        self._running = asyncio.create_task(self._run())

    @property
    def numbers(self) -> list[int]:
        """The numbers of the received killmails, in order."""
        return [update.number for update in self.updates]

    @property
    def places(self) -> list[int]:
        """The sequence number in the id of each update. Real clients must not parse ids."""
        found = [UpdateId.parse(update.id) for update in self.updates]
        assert None not in found, self.updates
        return [each.sequence for each in found if each is not None]

    async def has(self, numbers: set[int], limit_s: float = LIMIT_S) -> None:
        """Waits until all these killmails have arrived. Raises the error that ended the client, if there is one."""
        await eventually(
            f"a client has received all {len(numbers)} updates",
            lambda: (len(self.updates) >= len(numbers) and numbers <= set(self.numbers)) or self._running.done(),
            limit_s,
        )
        self.verify()

    async def resumed(self, times: int = 1) -> None:
        """Waits until the client has received `times` messages of the type `resume`.

        Raises the error that ended the client, if there is one.
        """
        await eventually(
            f"the client has resumed {times} times", lambda: len(self.resumes) >= times or self._running.done()
        )
        self.verify()

    def drop(self) -> None:
        """Aborts the connection, if there is one. Data in flight is lost."""
        if self._writer is not None:
            self._writer.transport.abort()

    def verify(self) -> None:
        """Raises the error that ended the client, if there is one.

        A message that no client should get ends the client with an error.
        """
        if self._running.done():
            self._running.result()

    async def abandon(self) -> None:
        """Ends the client at once."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def _run(self) -> None:
        while True:
            try:
                await self._connection()
            except (OSError, EOFError, TimeoutError) as error:
                self.refusals[type(error).__name__] += 1
            await asyncio.sleep(random.uniform(0, RECONNECT_PAUSE_S))

    async def _connection(self) -> None:
        """Runs one connection, from its handshake to its end."""
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
        assert first == (kind == "resume"), f"{message} is {'the first' if first else 'not the first'} message"
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


async def have_all(clients: Iterable[ResumingClient], numbers: set[int], limit_s: float = LIMIT_S) -> None:
    """Waits until every client has received all these killmails."""
    for client in clients:
        await client.has(numbers, limit_s)


def assert_exactly_once(clients: Iterable[ResumingClient], confirmed: set[int]) -> None:
    """Checks that each client received exactly these killmails, in the order of their ids, and no gaps."""
    for client in clients:
        client.verify()
        numbers, places = client.numbers, client.places
        twice = [number for number, times in Counter(numbers).items() if times > 1]
        assert twice == [], f"{len(twice)} updates arrived twice: {twice[:20]}"
        missing = sorted(confirmed.difference(numbers))
        assert missing == [], f"{len(missing)} of {len(confirmed)} updates are missing: {missing[:20]}"
        assert set(numbers) == confirmed, "the client received updates that it has not requested"
        back = [(one, next_one) for one, next_one in pairwise(places) if next_one <= one]
        assert back == [], f"ids do not grow: {back[:20]}"
        assert [answer for answer in client.resumes if not answer["complete"]] == []
        assert client.gaps == []


@asynccontextmanager
async def resuming_clients(port: int, count: int, **query: str) -> AsyncIterator[list[ResumingClient]]:
    """Starts clients, and waits until each has received its first `resume`.

    At the end, the test must call the method `verify` of each client.
    """
    clients = [ResumingClient(port, **query) for _ in range(count)]
    try:
        for client in clients:
            await client.resumed()
        yield clients
    finally:
        await asyncio.gather(*(client.abandon() for client in clients))
