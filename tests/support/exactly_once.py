"""A fetcher that loses no event, and a judgement of what clients got. Each event must arrive exactly once.

The fetcher publishes an event again, on any node that answers, until the broker has confirmed it. A stream may contain
an event that was published twice, and the bridge detects the duplicate by the killmail's identity. `resuming` has the
clients.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import aio_pika
import aiormq
import orjson
from aio_pika.abc import AbstractExchange

from tests.support.killmail import killmail
from tests.support.publishing import connect
from tests.support.resuming import ResumingClient
from tests.support.waiting import eventually

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


def assert_exactly_once(clients: Iterable[ResumingClient], confirmed: set[int]) -> None:
    """Checks that each client received exactly these killmails, in the order of their ids, and no gaps.

    No message has an id that is older than the id of an earlier message.
    """
    for client in clients:
        client.verify()
        numbers, places = client.numbers, client.update_places
        twice = [number for number, times in Counter(numbers).items() if times > 1]
        assert twice == [], f"{len(twice)} updates arrived twice: {twice[:20]}"
        missing = sorted(confirmed.difference(numbers))
        assert missing == [], f"{len(missing)} of {len(confirmed)} updates are missing: {missing[:20]}"
        assert set(numbers) == confirmed, "the client received updates that it has not requested"
        back = [(one, next_one) for one, next_one in pairwise(places) if next_one <= one]
        assert back == [], f"ids do not grow: {back[:20]}"
        assert client.places == sorted(client.places), f"an adopted id is older than the id before it: {client.ids}"
        assert [answer for answer in client.resumes if not answer["complete"]] == []
        assert client.gaps == []
