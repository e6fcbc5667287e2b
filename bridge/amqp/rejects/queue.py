"""Reads events from the queue of rejected events, and removes them on request.

An event that was read stays in the queue until it is removed. At the end of the connection, the broker puts each
remaining event back in its old place. `basic.get` is slow, because it fetches one message at a time. This module reads
with `basic.get` instead of a consumer, because `basic.get` reports when the queue is empty.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import aiormq
from pamqp import commands

from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.connection import Channel, Connection, open_connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.delivery_counts import DELIVERY_COUNT
from bridge.amqp.nodes import Node
from bridge.amqp.rejects.properties import HEADER_PREFIX
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.amqp.wire.compat import install_lenient_decoders
from bridge.errors import BridgeError, BrokerRefusal, ConfigurationError

RPC_TIMEOUT_S = 30.0
"""The timeout of each request to the broker.

The timeout is needed because a broker that is short of memory or disk accepts no message and sends no error.
"""

CONNECTION_ERRORS = (aiormq.exceptions.AMQPError, OSError, RuntimeError, asyncio.CancelledError)
"""The exceptions that aiormq raises if a connection or a channel is lost."""

Answer = TypeVar("Answer")


class BrokerLost(BridgeError):
    """The connection was lost during a command. Events that were not removed before the loss are still in the queue."""


def broker_lost(error: BaseException, cancellation: CancellationGuard) -> BrokerLost:
    """Returns a BrokerLost for one of CONNECTION_ERRORS.

    Raises a CancelledError again if somebody has cancelled the task (with Ctrl-C, for example).
    """
    if isinstance(error, asyncio.CancelledError):
        if cancellation.requested:
            raise error
        return BrokerLost("the connection to the broker was lost")
    return BrokerLost(f"the connection to the broker was lost: {error_text(error)}")


@dataclass(frozen=True, slots=True)
class Reject:
    """An event in the queue of rejected events."""

    number: int
    """The position of the event in the queue; the oldest event has the position 1."""
    body: bytes
    properties: commands.Basic.Properties
    routing_key: str
    tag: int
    """The delivery tag, which is valid only on the connection that read the event."""

    @property
    def headers(self) -> Mapping[str, object]:
        """All headers: the event's own headers, and those that the bridge added."""
        return self.properties.headers or {}

    @property
    def id(self) -> str:
        """The message id. If an event has no id, the bridge generates an id for it."""
        return self.properties.message_id or ""

    @property
    def type(self) -> str:
        """The message type of the event, or an empty string."""
        return self.properties.message_type or ""

    def header(self, name: str) -> str:
        """Returns the text of a header that the bridge added.

        `name` is `reason`, `pointer`, `detail`, `time` or `exchange`.
        """
        return str(self.headers.get(HEADER_PREFIX + name, ""))


class RejectQueue:
    """The queue of rejected events, on its own connection. `open_reject_queue` creates the object."""

    def __init__(self, amqp: Connection, channel: Channel, name: str, count: int) -> None:
        install_lenient_decoders()
        self.name = name
        self.amqp = amqp
        """The connection, on which more channels can be opened."""
        self.count = count
        """The number of events in the queue when it was opened, except those that other consumers had read."""
        self.delivery_count = 0
        """The highest delivery count of all events that were read, if the queue counts deliveries.

        A quorum queue counts deliveries, and drops an event that exceeds the delivery limit.
        """
        self._channel = channel

    async def read(self) -> AsyncIterator[Reject]:
        """Yields the first `count` events, the oldest first. Each event stays in the queue until it is removed."""
        for number in range(1, self.count + 1):
            message = await self._request(self._channel.basic_get(self.name))
            if message.delivery_tag is None:
                # The queue is empty earlier than expected: another consumer has taken the remaining events.
                return
            reject = Reject(
                number, message.body, message.header.properties, message.routing_key or "", message.delivery_tag
            )
            count = reject.headers.get(DELIVERY_COUNT)
            self.delivery_count = max(self.delivery_count, count if isinstance(count, int) else 0)
            yield reject

    async def remove(self, reject: Reject) -> None:
        """Removes an event permanently. The broker may carry out the removal a little later (see `flush`)."""
        await self._request(self._channel.basic_ack(reject.tag))

    async def flush(self) -> None:
        """Waits until the broker has carried out all removals."""
        await self._request(self._channel.queue_declare(self.name, passive=True))

    async def _request(self, request: Awaitable[Answer]) -> Answer:
        cancellation = CancellationGuard()
        try:
            async with lag_tolerant_timeout(RPC_TIMEOUT_S):
                return await request
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(
                f"the queue {self.name!r} can't be read: {error_text(error)}; grant read on this queue to the user of "
                "BRIDGE_AMQP_URL"
            ) from error
        except TimeoutError as error:
            raise BrokerLost(f"the broker does not answer within {RPC_TIMEOUT_S:g} s") from error
        except CONNECTION_ERRORS as error:
            raise broker_lost(error, cancellation) from error


@asynccontextmanager
async def open_reject_queue(nodes: Sequence[Node], name: str) -> AsyncIterator[RejectQueue]:
    """Opens the queue `name`.

    At the end of the context, the queue gets back all events that were read but not removed.

    Raises ConfigurationError if the queue does not exist, BrokerRefusal if the broker refuses, and ConnectionError if
    no node can be reached.
    """
    async with open_connection(nodes, "edk-bridge rejects command") as amqp:
        channel = await amqp.channel(publisher_confirms=False)
        try:
            async with lag_tolerant_timeout(RPC_TIMEOUT_S):
                declared = await channel.queue_declare(name, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise ConfigurationError(
                [f"there is no queue {name!r}: no event was rejected yet, or BRIDGE_REJECT_EXCHANGE is another one"]
            ) from error
        except aiormq.exceptions.ChannelLockedResource as error:
            raise BrokerRefusal(
                f"another connection uses the queue {name!r} exclusively: {error_text(error)}"
            ) from error
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(
                f"the queue {name!r} can't be inspected: {error_text(error)}; grant read on this queue to the user of "
                "BRIDGE_AMQP_URL, or name another user in --amqp-url"
            ) from error
        yield RejectQueue(amqp, channel, name, declared.message_count or 0)
