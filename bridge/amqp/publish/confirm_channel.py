"""The way out: a channel with publisher confirms on a connection of its own, there again after every loss.

One attempt to publish has one of three ends: confirmed, not confirmed, or given up by whoever asked for it. Whether to
try again is for them to decide. A connection of its own, because a broker that is short of memory or disk blocks
connections that publish, whole.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from weakref import WeakValueDictionary

import aiormq
from pamqp import commands

from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.close_cause import CloseCause, closed_future, watch_blocked
from bridge.amqp.connection import Channel, Connection, open_connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.nodes import Node, rotated
from bridge.amqp.timeouts import rpc_timeout
from bridge.amqp.wire import large_messages
from bridge.timing import DEFAULT, Timing

LARGEST_FRAME = 128 * 1024
"""Bytes: what RabbitMQ takes unless it is told otherwise. It may take less, or say that there is no limit."""

_LOST = "the connection was lost"

SetUp = Callable[[Connection, Channel], Awaitable[None]]


class Unconfirmed(Exception):
    """A message was not confirmed; the broker may have it all the same. Its text says why."""

    def __init__(self, reason: str, channel: Channel) -> None:
        super().__init__(reason)
        self.channel = channel
        """The channel on which it was tried."""


class Unrouted(Unconfirmed):
    """No queue is bound to the exchange: the broker has dropped the message."""


class ConfirmChannel:
    """Publishes with confirms, on whichever channel is open at the time."""

    def __init__(self, nodes: Sequence[Node], name: str, set_up: SetUp, timing: Timing = DEFAULT) -> None:
        """`name` is what the broker shows; `set_up` makes what must exist, on each new channel.

        Made inside a running event loop.
        """
        self._nodes = nodes
        self._name = name
        self._set_up = set_up
        self._timing = timing
        self._channel: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[CloseCause] | None = None
        """Of the channel: done when it, or its connection, is over."""
        self.blocked: str | None = None
        """Why the broker takes nothing to publish at the moment, in its own words."""
        self.on_blocked: Callable[[], None] = lambda: None
        """Called when `blocked` has changed."""
        self._passed_over = 0
        """Set-ups that failed on a connected node. The list of nodes is rotated by this number."""
        self._frame_max = LARGEST_FRAME
        self._turn = asyncio.Lock()
        self._of_this_id: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def open(self) -> bool:
        """True while there is a channel to publish on."""
        return self._channel.done()

    async def live(self, stopping: asyncio.Event, opened: Callable[[], None]) -> str:
        """One life, as `supervise` wants it: keeps a channel open until it or `stopping` ends it; returns the reason.

        `opened` is told when the channel can be published on.
        """
        async with open_connection(rotated(self._nodes, self._passed_over), self._name, timing=self._timing) as amqp:
            try:
                async with rpc_timeout(self._timing.setup_timeout_s):
                    channel = await amqp.channel(publisher_confirms=True)
                    await self._set_up(amqp, channel)
            except ConnectionError:
                self._passed_over += 1
                raise
            self.blocked = None
            self._frame_max = amqp.connection_tune.frame_max or LARGEST_FRAME
            watch_blocked(amqp, self._tell)
            self._channel.set_result(channel)
            opened()
            ended = closed_future(amqp, channel)
            self._ended = ended
            stop = asyncio.create_task(stopping.wait(), name="await stop")
            try:
                await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                self._withdraw(channel)
            return ended.result().reason if ended.done() else "stopped"

    def _tell(self, reason: str | None) -> None:
        self.blocked = reason
        self.on_blocked()

    async def publish(
        self,
        body: bytes,
        exchange: str,
        routing_key: str,
        properties: Callable[[int], commands.Basic.Properties],
        message_id: str | None = None,
    ) -> None:
        """One attempt: waits for a channel, then for the confirm, however long. Raises Unconfirmed.

        `properties` makes the properties, with `message_id`, for a connection with that frame limit (bytes).

        There is no time after which it would be given up while the connection lives: a broker that is short of memory
        takes nothing for as long as that lasts, and would get another copy with each attempt.
        """
        # aiormq tells which of its publishes the broker returned by the message id alone: two of the same id at once,
        # and one that nobody got would count as confirmed.
        lock = self._of_this_id.setdefault(message_id, asyncio.Lock()) if message_id else nullcontext()
        async with lock:
            # Who comes when there is a channel at last would overtake those who have waited for it.
            async with self._turn:
                channel = await asyncio.shield(self._channel)
            cancellation = CancellationGuard()
            fitting = properties(self._frame_max)
            try:
                if len(body) >= large_messages.LARGE:
                    await large_messages.publish(channel, body, exchange, routing_key, fitting)
                else:
                    await channel.basic_publish(
                        body, exchange=exchange, routing_key=routing_key, properties=fitting, mandatory=True
                    )
            except aiormq.exceptions.PublishError as error:
                raise Unrouted("no queue is bound to the exchange", channel) from error
            except aiormq.exceptions.DeliveryError as error:
                raise Unconfirmed(
                    "the broker does not take it (nack): a queue that is full, perhaps", channel
                ) from error
            except asyncio.CancelledError as error:
                if cancellation.requested:
                    raise
                raise Unconfirmed(_LOST, channel) from error
            except aiormq.exceptions.ChannelInvalidStateError as error:
                raise Unconfirmed(_LOST, channel) from error
            except Exception as error:
                # aiormq raises a bare one, or a cancellation that nobody asked for, where the connection is lost at the
                # wrong moment.
                raise Unconfirmed(error_text(error), channel) from error

    def renew(self, channel: Channel, reason: str) -> None:
        """Ends the life of this channel, so that everything is set up anew; one that is over already stays so."""
        if self._withdraw(channel) and self._ended is not None and not self._ended.done():
            self._ended.set_result(CloseCause(reason))

    def fail(self, error: Exception) -> None:
        """Lets everybody who waits for a channel have this error instead: there will be none."""
        if not self._channel.done():
            self._channel.set_exception(error)
            # There may be nobody who waits.
            self._channel.exception()

    def _withdraw(self, channel: Channel) -> bool:
        """Lets nobody publish on this channel any more; False where nobody does."""
        if not self._channel.done() or self._channel.result() is not channel:
            return False
        self._channel = asyncio.get_running_loop().create_future()
        return True
