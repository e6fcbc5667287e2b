"""The kinds of queues that a bridge declares and consumes: an exclusive queue, a named queue or a stream."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import aiormq
from pamqp.common import FieldTable

from bridge.amqp import topology
from bridge.amqp.connection import Connection
from bridge.amqp.consume.stream_reader import StreamReader
from bridge.amqp.topology import Queue
from bridge.timing import DEFAULT, Timing

Channel = aiormq.abc.AbstractChannel

NAMED_QUEUE_ARGUMENTS: FieldTable = {
    "x-queue-type": "classic",
    "x-expires": 7 * 24 * 3600 * 1000,
    "x-max-length-bytes": 256 * 1024 * 1024,
}
"""The arguments of a named queue that the bridge declares.

The queue expires after a week without a consumer. Because of the size limit, a queue that no bridge uses any more does
not fill the broker's disk. The limit leaves room for the killmails of a few days. The queue is classic even if the
virtual host's default is another type, because on RabbitMQ 4, a quorum queue drops an event that was returned 20 times.
"""


class ConsumedQueue(Protocol):
    """The queue or the stream that a bridge consumes. All sessions of the bridge use the same queue or stream."""

    redelivers: bool
    """True if the broker repeats unsettled deliveries in the next session."""

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Declares the queue if it does not exist.

        The session will consume the queue on `channel`. Raises BrokerRefusal.
        """

    def arguments(self) -> FieldTable | None:
        """Returns the arguments to send with `basic.consume`."""

    async def leave(self, amqp: Connection) -> None:
        """Must be called at the end of each session, before the connection is closed."""


class ExclusiveQueue:
    """A queue whose name the broker chooses. The broker deletes the queue when the connection ends."""

    redelivers = False

    def __init__(self, exchanges: Sequence[str], timing: Timing = DEFAULT) -> None:
        self._exchanges = exchanges
        self._timing = timing
        self._name: str | None = None

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Declares the queue without auto-delete, so that it can be unbound before it is deleted."""
        try:
            declared = await channel.queue_declare("", exclusive=True, arguments={"x-queue-type": "classic"})
        except aiormq.exceptions.ChannelAccessRefused as error:
            hint = "grant configure on names that begin with amq.gen-, or name a queue in BRIDGE_QUEUE"
            raise topology.permission_error(error, hint) from error
        self._name = declared.queue or ""
        return Queue(self._name, created=True)

    def arguments(self) -> FieldTable | None:
        """Returns None, because an exclusive queue needs no arguments."""
        return None

    async def leave(self, amqp: Connection) -> None:
        """Unbinds the queue.

        If a bound queue is deleted, RabbitMQ 4.3 does not confirm the messages that are published at that moment.
        """
        name, self._name = self._name, None
        if name is None or amqp.closing.done():
            return
        unbinding = topology.unbind(amqp, name, self._exchanges, self._timing.unbind_timeout_s)
        # Unbinding runs in its own task, because aiormq cancels all tasks that wait for the broker when the connection
        # is lost.
        await asyncio.wait([asyncio.create_task(unbinding, name="unbind the queue")])


class NamedQueue:
    """A durable queue, which collects events while the bridge is away."""

    redelivers = True

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_priority = 0

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Declares the queue if it does not exist."""
        try:
            created = await topology.ensure_queue(amqp, self._name, NAMED_QUEUE_ARGUMENTS)
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise topology.permission_error(error, "create the queue, or grant configure on it") from error
        return Queue(self._name, created)

    def arguments(self) -> FieldTable | None:
        """Returns a consumer priority that is higher than the priority of any earlier connection.

        The broker may not have noticed yet that the old connection has ended. With equal priorities, the broker would
        send half of the events to the old connection, where they would wait until three heartbeats are missed.
        """
        self._last_priority = max(self._last_priority + 1, time.time_ns() // 1_000_000)
        return {"x-priority": self._last_priority}

    async def leave(self, amqp: Connection) -> None:
        """Does nothing: the queue stays."""


class StreamQueue:
    """The stream that keeps the history."""

    redelivers = False

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    async def prepare(self, amqp: Connection, channel: Channel) -> Queue:
        """Declares the stream if it does not exist."""
        return await self._reader.prepare(amqp)

    def arguments(self) -> FieldTable | None:
        """Returns the argument with the stream offset to start from."""
        return {"x-stream-offset": self._reader.start_offset}

    async def leave(self, amqp: Connection) -> None:
        """Does nothing: the stream stays."""
