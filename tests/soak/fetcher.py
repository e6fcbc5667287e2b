"""A fetcher: publishes valid and invalid events, at a steady rate and in bursts, and records the confirmed events.

The fetcher reconnects by itself, and publishes no event twice. When a connection ends, the fate of the events without a
confirm is unknown: they may or may not reach a client.
"""

import asyncio
import re
from collections import deque
from contextlib import suppress

import aio_pika
import aiormq
import orjson
from aio_pika.abc import AbstractExchange

from tests.soak.plan import PADDING, Plan
from tests.support.killmail import killmail
from tests.support.publishing import connect
from tests.support.waiting import eventually

OUTSTANDING = 500
"""The largest number of outstanding confirms."""

CONFIRM_LIMIT_S = 20.0
QUIET_LIMIT_S = 60.0
RETRY_S = 0.2
GOODBYE_S = 3.0

LOST = (aiormq.exceptions.AMQPError, OSError, RuntimeError, TimeoutError)

INVALID = (b'{"killmailId": "invalid-%d"}', b"invalid-%d is no JSON", b'{"type": "no-such-type", "data": "invalid-%d"}')
INVALID_NUMBER = re.compile(rb"invalid-(\d+)")


def invalid_event(number: int) -> bytes:
    """Returns an event that can't become an update. The kind of error depends on `number`."""
    return INVALID[number % len(INVALID)] % number


class Fetcher:
    """Publishes to an existing exchange, from `begin` until `finish`."""

    def __init__(self, broker_url: str, exchange: str, plan: Plan) -> None:
        self._url = broker_url
        self._exchange = exchange
        self._plan = plan
        self._waiting: deque[tuple[int, bytes]] = deque()
        """The events to publish. Valid events have positive numbers, and invalid events have negative numbers."""
        self._more = asyncio.Event()
        self._places = asyncio.Semaphore(OUTSTANDING)
        self._publishing: set[asyncio.Task[None]] = set()
        self._next = 1
        self._next_invalid = 1
        self._connecting = asyncio.create_task(self._stay_connected())
        self._pacing: asyncio.Task[None] | None = None
        self.published: set[int] = set()
        """Valid events that were sent to the broker, confirmed or not."""
        self.confirmed: set[int] = set()
        self.invalid: set[int] = set()
        """Invalid events that were confirmed."""
        self.losses = 0
        self.bursts = 0

    async def prime(self) -> None:
        """Publishes the planned number of events in bursts, and waits until all events are confirmed."""
        for _ in range(0, self._plan.prime, self._plan.burst):
            self._want(self._plan.burst)
            await self._quiet()
            # During this pause, the event loop lets the clients read.
            await asyncio.sleep(0.2)

    def begin(self) -> None:
        """Starts to publish in the background."""
        self._pacing = asyncio.create_task(self._pace())

    async def finish(self) -> None:
        """Stops adding events, and waits until each event is confirmed or its outcome is unknown."""
        if self._pacing is not None:
            self._pacing.cancel()
            await asyncio.wait([self._pacing])
        await self._quiet()

    async def stop(self) -> None:
        """Ends all tasks."""
        tasks = [self._connecting, *self._publishing, *([self._pacing] if self._pacing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _quiet(self) -> None:
        await eventually(
            "each event is confirmed, or unsure", lambda: not (self._waiting or self._publishing), limit_s=QUIET_LIMIT_S
        )

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        began_s = next_burst_s = loop.time()
        next_burst_s += self._plan.burst_every_s / 2
        steady = 0
        while True:
            due = int((loop.time() - began_s) * self._plan.rate) - steady
            steady += due
            self._want(due)
            if loop.time() >= next_burst_s:
                next_burst_s += self._plan.burst_every_s
                self.bursts += 1
                self._want(self._plan.burst)
            await asyncio.sleep(1 / self._plan.rate)

    def _want(self, count: int) -> None:
        for number in range(self._next, self._next + count):
            event = number, orjson.dumps(killmail(number, padding=PADDING))
            self._waiting.append(event)
            if number % self._plan.twice_every == 0:
                self._waiting.append(event)
            if number % self._plan.invalid_every == 0:
                self._waiting.append((-self._next_invalid, invalid_event(self._next_invalid)))
                self._next_invalid += 1
        self._next += count
        if count:
            self._more.set()

    async def _stay_connected(self) -> None:
        while True:
            with suppress(*LOST):
                await self._publish_all()
            self.losses += 1
            await asyncio.sleep(RETRY_S)

    async def _publish_all(self) -> None:
        """Publishes until the connection is lost, and then returns or raises."""
        connection = await connect(self._url, timeout_s=5)
        lost = asyncio.Event()
        if not self._waiting:
            self._more.clear()
        try:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(self._exchange, ensure=False)
            while True:
                await self._more.wait()
                await self._places.acquire()
                if lost.is_set():
                    self._places.release()
                    return
                number, body = self._waiting.popleft()
                if not self._waiting:
                    self._more.clear()
                task = asyncio.create_task(self._publish(exchange, number, body, lost))
                self._publishing.add(task)
                task.add_done_callback(self._published)
        finally:
            closing = asyncio.ensure_future(connection.close())
            await asyncio.wait([closing], timeout=GOODBYE_S)
            closing.cancel()

    async def _publish(self, exchange: AbstractExchange, number: int, body: bytes, lost: asyncio.Event) -> None:
        if number > 0:
            self.published.add(number)
        sure = False
        try:
            with suppress(*LOST):
                async with asyncio.timeout(CONFIRM_LIMIT_S):
                    message = aio_pika.Message(body, delivery_mode=2)
                    await exchange.publish(message, routing_key="", mandatory=False)
                sure = True
        finally:
            # This cleanup runs even after a cancellation, because the library cancels each task that waits for a lost
            # connection.
            if not sure:
                lost.set()
                # `_more` wakes the loop that waits for the next event.
                self._more.set()
        if sure:
            (self.confirmed if number > 0 else self.invalid).add(abs(number))

    def _published(self, task: asyncio.Task[None]) -> None:
        self._publishing.discard(task)
        self._places.release()
        if not task.cancelled():
            task.result()
