"""Publishes invented killmails in the same way as a fetcher publishes real killmails."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain

import aiormq
import orjson
from pamqp.commands import Basic

from bridge.amqp.connection import open_connection
from bridge.amqp.nodes import Node
from bridge.amqp.status import State, Status
from bridge.amqp.supervisor import supervise
from bridge.amqp.topology import ensure_exchange
from bridge.demo.killmails import killmails, pace

_NAME = "edk-bridge demo"
_CONFIRM_TIMEOUT_S = 10.0
_PERSISTENT = 2
_LONGEST_LAG_S = 1.0


class DemoPublisher:
    """Declares an exchange and publishes invented killmails to it with confirms. Reconnects after a lost connection."""

    def __init__(self, nodes: Sequence[Node], exchange: str, durable: bool, say: Callable[[str], None]) -> None:
        """`durable` is True if the exchange outlasts the demo, as a fetcher's exchange does. `say` prints a line."""
        self.published = 0
        self._nodes = nodes
        self._exchange = exchange
        self._durable = durable
        self._say = say
        self._status = Status()

    async def declare(self) -> None:
        """Declares the exchange. Raises ConnectionError or BrokerRefusal if the broker can't be used."""
        async with open_connection(self._nodes, _NAME) as amqp:
            await self._declare(amqp)

    async def publish(self, rate: float) -> None:
        """Publishes `rate` killmails per second until its task is cancelled.

        Raises BrokerRefusal if the broker refuses the first connection or declaration.
        """
        rng = random.Random()  # noqa: S311 - invented killmails are no secret
        bodies = (orjson.dumps(data) for data in killmails(rng, lambda: datetime.now(UTC)))
        pauses = pace(rng, rate)
        unconfirmed: list[bytes] = []

        async def live() -> str:
            async with open_connection(self._nodes, _NAME) as amqp:
                await self._declare(amqp)
                channel = await amqp.channel(publisher_confirms=True)
                self._found()
                due_s = time.monotonic()
                for body in chain(unconfirmed.copy(), bodies):
                    unconfirmed[:] = [body]
                    await self._send(channel, body)
                    unconfirmed.clear()
                    # If confirms were slow, the publisher sends the delayed killmails faster to catch up, but it does
                    # not catch up after an outage.
                    due_s = max(due_s + next(pauses), time.monotonic() - _LONGEST_LAG_S)
                    await asyncio.sleep(due_s - time.monotonic())
            return "no more killmails"

        await supervise(live, self._status, self._lost, asyncio.Event(), wait=False)

    async def remove(self) -> None:
        """Deletes the exchange, unless the exchange is durable or another program uses it.

        Ignores errors of the broker.
        """
        if self._durable:
            return
        with suppress(aiormq.exceptions.AMQPError, OSError, RuntimeError):
            async with open_connection(self._nodes, _NAME) as amqp:
                channel = await amqp.channel()
                await channel.exchange_delete(self._exchange, if_unused=True)

    async def _declare(self, amqp: aiormq.abc.AbstractConnection) -> None:
        if self._durable:
            await ensure_exchange(amqp, self._exchange)
            return
        # After an outage, the bridge may declare the exchange before the publisher does, and make it durable.
        with suppress(aiormq.exceptions.ChannelPreconditionFailed):
            channel = await amqp.channel()
            await channel.exchange_declare(self._exchange, exchange_type="fanout", auto_delete=True)
            await channel.close()

    async def _send(self, channel: aiormq.abc.AbstractChannel, body: bytes) -> None:
        properties = Basic.Properties(
            content_type="application/json", delivery_mode=_PERSISTENT, message_type="killmail", app_id=_NAME
        )
        await channel.basic_publish(body, exchange=self._exchange, properties=properties, timeout=_CONFIRM_TIMEOUT_S)
        self.published += 1

    def _found(self) -> None:
        if self._status.ever_connected:
            self._say("the broker is back; publishing again")
        self._status.enter(State.WORKING)

    def _lost(self, state: State, reason: str) -> None:
        if self._status.state is not state:
            self._say(reason if state is State.REFUSED else "the broker is away; reconnecting")
