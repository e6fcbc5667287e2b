"""The queue that a bridge consumes: how it is found or made, what it is consumed with, and how it is left."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import aiormq
from pamqp.common import FieldTable

from bridge.amqp import topology
from bridge.amqp.connection import Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.session import ConsumerSession
from bridge.amqp.consume.stream_reader import StreamReader
from bridge.amqp.topology import Queue
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT, Timing

Channel = aiormq.abc.AbstractChannel

NAMED: FieldTable = {
    "x-queue-type": "classic",
    "x-expires": 7 * 24 * 3600 * 1000,
    "x-max-length-bytes": 256 * 1024 * 1024,
}
"""For a named queue that the bridge makes: kept for a week without a consumer (milliseconds), a few days of killmails
at most, the oldest going first, so that a bridge that never comes back does not fill the broker's disk.

Classic, whatever the virtual host's default is: with RabbitMQ 4, a quorum queue drops an event after 20 returns."""


class ConsumedQueue(Protocol):
    """What a bridge consumes, over all its sessions."""

    comes_again: bool
    """True if what stays unsettled is delivered to the next session."""

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Finds or makes the queue. `channel` is the one that will consume. Raises BrokerRefusal."""

    def arguments(self) -> FieldTable | None:
        """What `basic.consume` is sent with."""

    async def leave(self, amqp: Connection) -> None:
        """To be called before the connection is closed, whatever ended the session."""


class ExclusiveQueue:
    """One that the broker names, and that goes with the connection."""

    comes_again = False

    def __init__(self, exchanges: Sequence[str], timing: Timing = DEFAULT) -> None:
        self._exchanges = exchanges
        self._timing = timing
        self._name: str | None = None

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Declares it without auto-delete, so that it can be unbound before it is deleted."""
        declared = await channel.queue_declare("", exclusive=True, arguments={"x-queue-type": "classic"})
        self._name = declared.queue or ""
        return Queue(self._name, made=True)

    def arguments(self) -> FieldTable | None:
        """None."""
        return None

    async def leave(self, amqp: Connection) -> None:
        """Unbinds the queue. On RabbitMQ 4.3, deleting a bound queue makes the confirms of other publishers
        fail at that moment."""
        name, self._name = self._name, None
        if name is None or amqp.closing.done():
            return
        unbinding = topology.unbind(amqp, name, self._exchanges, self._timing.unbind_timeout_s)
        # As a task: aiormq cancels whoever waits for a connection that goes away.
        await asyncio.wait([asyncio.create_task(unbinding, name="unbind the queue")])


class NamedQueue:
    """A durable one that waits for the bridge."""

    comes_again = True

    def __init__(self, name: str) -> None:
        self._name = name
        self._priority = 0
        """Of the newest consumer."""

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Finds it or makes it."""
        return Queue(self._name, await topology.ensure_queue(amqp, self._name, NAMED))

    def arguments(self) -> FieldTable | None:
        """The priority.

        The newest connection comes first. A broker that still believes in an old one, half open, would otherwise give
        it every other event, to keep until three heartbeats are over.
        """
        self._priority = max(self._priority + 1, time.time_ns() // 1_000_000)
        return {"x-priority": self._priority}

    async def leave(self, amqp: Connection) -> None:
        """Nothing: it stays."""


class StreamQueue:
    """The stream that keeps the history."""

    comes_again = False

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Finds it or makes it."""
        return await self._reader.prepare(amqp)

    def arguments(self) -> FieldTable | None:
        """Where to begin."""
        return {"x-stream-offset": self._reader.start}

    async def leave(self, amqp: Connection) -> None:
        """Nothing: it stays."""


async def consume(session: ConsumerSession, queue: str, arguments: FieldTable | None) -> None:
    """Begins to consume on the session's channel. The deliveries go to its fast channel. Raises BrokerRefusal."""
    assert session.channel is not None
    try:
        consuming = await session.channel.basic_consume(queue, _never, arguments=arguments)
        session.consumer_tag = consuming.consumer_tag or ""
    except aiormq.exceptions.ChannelPreconditionFailed as error:
        if "x-priority" in error_text(error):
            # It would give what is published from now on, and never what was published meanwhile.
            raise BrokerRefusal(
                f"the queue {queue!r} is a stream, which keeps nothing back for a bridge that is away; set "
                f"BRIDGE_HISTORY=stream and BRIDGE_HISTORY_STREAM={queue} instead of BRIDGE_QUEUE"
            ) from error
        raise
    except aiormq.exceptions.ChannelAccessRefused as error:
        if "in exclusive use" in error_text(error):
            raise  # somebody else's, for as long as they are there
        raise topology.permission_error(error) from error


async def _never(message: aiormq.abc.DeliveredMessage) -> None:
    """What aiormq would call for a delivery, if a delivery bypassed the fast channel."""
    raise AssertionError("a delivery bypassed the fast channel")
