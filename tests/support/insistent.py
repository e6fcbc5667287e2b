"""A fetcher that loses nothing: what the broker has not confirmed, it publishes again, on whichever node answers.

An event may be in a stream twice then, the second time behind later ones. By the killmail's identity a bridge sends it
once.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aio_pika
import aiormq
import orjson
from aio_pika.abc import AbstractExchange

from tests.support.killmail import killmail
from tests.support.publishing import connect
from tests.support.waiting import eventually

PAUSE_S = 0.02
"""Between two events: fifty a second."""

AT_ONCE = 50
"""Events that may wait for their confirms."""

CONFIRM_LIMIT_S = 5.0
"""A node that waits for a stream's leader confirms nothing, and says nothing either."""

CONNECT_LIMIT_S = 2.0

FURTHER_LIMIT_S = 60.0
"""Nodes may be away meanwhile, one after the other."""

SYSTEMS = (30000142, 30002187)
"""Every other killmail happens in the one, the rest in the other."""

LOST = (aiormq.exceptions.AMQPError, OSError, RuntimeError, TimeoutError, asyncio.CancelledError)
"""How a line that breaks may end a publication; aiormq cancels where nobody has cancelled."""


class Insistent:
    """Killmails, counted up from 1, to an exchange that is there. `url` may name several nodes, with commas."""

    def __init__(self, url: str, exchange: str) -> None:
        self.confirmed: set[int] = set()
        self.again = 0
        """How often an event was published once more."""
        self._nodes = itertools.cycle(url.split(","))
        self._exchange = exchange
        self._number = 0
        self._unconfirmed: list[int] = []
        """What was published, nobody knows with what success, and will be once more."""
        self._pace = asyncio.Lock()
        self._stopping = False
        self._running = asyncio.create_task(self._run())

    async def further(self, count: int) -> None:
        """Returns when that many more are confirmed."""
        enough = len(self.confirmed) + count
        await eventually(
            f"{count} more events are confirmed",
            lambda: len(self.confirmed) >= enough or self._running.done(),
            FURTHER_LIMIT_S,
        )
        if self._running.done():
            self._running.result()

    async def stop(self) -> None:
        """Begins no new event; returns when all that were begun are confirmed."""
        self._stopping = True
        async with asyncio.timeout(FURTHER_LIMIT_S):
            await self._running

    async def abandon(self) -> None:
        """Ends it at once, where a test has failed; nothing where it has ended."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def _run(self) -> None:
        for node in self._nodes:
            try:
                await self._publish_on(node)
            except LOST:
                # Unless it is somebody else who ends this.
                if self._running.cancelling():
                    raise
            if self._stopping and not self._unconfirmed:
                return
            await asyncio.sleep(PAUSE_S)

    async def _publish_on(self, node: str) -> None:
        """Until the line breaks, or it is over."""
        connection = await connect(node, CONNECT_LIMIT_S)
        try:
            channel = await connection.channel(publisher_confirms=True)
            target = await channel.get_exchange(self._exchange, ensure=False)
            publishing = [asyncio.create_task(self._publish(target)) for _ in range(AT_ONCE)]
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
                # Whatever has ended it: the broker may have the event, or not.
                self._unconfirmed.append(number)
                raise
            self.confirmed.add(number)

    async def _next(self) -> int | None:
        """The number of what is to be published in its turn; None when nothing is."""
        async with self._pace:
            await asyncio.sleep(PAUSE_S)
        if self._unconfirmed:
            self.again += 1
            # The oldest first.
            self._unconfirmed.sort()
            return self._unconfirmed.pop(0)
        if self._stopping:
            return None
        self._number += 1
        return self._number


@asynccontextmanager
async def insistent(url: str, exchange: str) -> AsyncIterator[Insistent]:
    """A fetcher at work."""
    fetcher = Insistent(url, exchange)
    try:
        yield fetcher
    finally:
        await fetcher.abandon()
