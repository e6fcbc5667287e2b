"""The queue of rejected events, from its other end: read, and removed.

Whatever is read stays the broker's until it is removed: it goes back to its old place when the connection ends, however
it ends. The one message at a time that `basic.get` gives is slow, and says when there is none; a consumer would have to
guess.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiormq
from pamqp import commands

from bridge.amqp.connection import Channel, Connection, open_connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.delivery_counts import DELIVERY_COUNT
from bridge.amqp.nodes import Node
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.amqp.wire import compat
from bridge.errors import BridgeError, BrokerRefusal, ConfigurationError

ANSWER_S = 30.0
"""For each request. A broker that is short of memory or disk takes nothing to publish, and does not say so."""

PREFIX = "x-reject-"

Answer = TypeVar("Answer")

compat.install()


class Interrupted(BridgeError):
    """The broker was lost on the way. What was not removed by then is still in the queue."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One rejected event."""

    number: int
    """Its place in the queue, from 1, the oldest first."""
    body: bytes
    properties: commands.Basic.Properties
    routing_key: str
    tag: int
    """By which the broker knows it, on this connection."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """All of them."""
        return self.properties.headers or {}

    @property
    def id(self) -> str:
        """By which a person may name it. One that came without was given one by the bridge."""
        return self.properties.message_id or ""

    @property
    def type(self) -> str:
        """The event's own; empty where it did not say."""
        return self.properties.message_type or ""

    def said(self, name: str) -> str:
        """What the bridge said of it: `reason`, `pointer`, `detail`, `time`, `exchange`."""
        return str(self.headers.get(PREFIX + name, ""))


class RejectsQueue:
    """The queue on a connection of its own. Made by `opened`."""

    def __init__(self, amqp: Connection, channel: Channel, name: str) -> None:
        self.count = 0
        """How many rejects there were at the start, but for those that somebody else has in hand."""
        self.returned = 0
        """How often one of those that were read had been before, where the queue counts that and may drop it for it."""
        self.name = name
        self.amqp = amqp
        """The connection, for others to open channels on."""
        self._channel = channel

    async def read(self) -> AsyncIterator[Reject]:
        """Those that there were at the start, the oldest first. Each stays where it is until it is removed."""
        for number in range(1, self.count + 1):
            message = await self._asked(self._channel.basic_get(self.name))
            if message.delivery_tag is None:
                # Somebody else has taken some meanwhile.
                return
            reject = Reject(
                number, message.body, message.header.properties, message.routing_key or "", message.delivery_tag
            )
            count = reject.headers.get(DELIVERY_COUNT)
            self.returned = max(self.returned, count if isinstance(count, int) else 0)
            yield reject

    async def remove(self, reject: Reject) -> None:
        """Takes one out for good."""
        await self._asked(self._channel.basic_ack(reject.tag))

    async def settle(self) -> None:
        """Returns when the broker has taken notice of every removal."""
        await self._asked(self._channel.queue_declare(self.name, passive=True))

    async def _asked(self, request: Awaitable[Answer]) -> Answer:
        try:
            async with lag_tolerant_timeout(ANSWER_S):
                return await request
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(
                f"the queue {self.name!r} can't be read: {error_text(error)}; grant the user of BRIDGE_AMQP_URL read "
                "on it"
            ) from error
        except TimeoutError as error:
            raise Interrupted(f"the broker does not answer within {ANSWER_S:g} s") from error
        except LOST as error:
            raise interrupted(error) from error


@asynccontextmanager
async def opened(nodes: Sequence[Node], name: str) -> AsyncIterator[RejectsQueue]:
    """The queue of that name. What was read and not removed is back in it afterwards.

    Raises ConfigurationError where there is none, BrokerRefusal, and ConnectionError where no node can be reached.
    """
    async with open_connection(nodes, "edk-bridge rejects command") as amqp:
        channel = await amqp.channel(publisher_confirms=False)
        queue = RejectsQueue(amqp, channel, name)
        try:
            async with lag_tolerant_timeout(ANSWER_S):
                declared = await channel.queue_declare(name, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise ConfigurationError(
                [f"there is no queue {name!r}: nothing was ever rejected there, or BRIDGE_REJECT_EXCHANGE is another"]
            ) from error
        except aiormq.exceptions.ChannelLockedResource as error:
            raise BrokerRefusal(f"the queue {name!r} is somebody else's alone: {error_text(error)}") from error
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(f"the queue {name!r} can't be looked at: {error_text(error)}") from error
        queue.count = declared.message_count or 0
        yield queue


LOST = (aiormq.exceptions.AMQPError, OSError, RuntimeError, asyncio.CancelledError)
"""What aiormq raises where a connection or a channel goes away."""


def interrupted(error: BaseException) -> Interrupted:
    """What one of LOST means. Raises it where it was a request to stop."""
    if isinstance(error, asyncio.CancelledError):
        # aiormq cancels whoever waits for a connection that goes away: without a request, it was not Ctrl-C.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        return Interrupted("the connection to the broker was lost")
    return Interrupted(f"the connection to the broker was lost: {error_text(error)}")
