"""A channel with publisher confirms, on its own connection. The channel is opened again after each lost connection.

An attempt to publish ends with a confirm, with an Unconfirmed error, or with a cancellation. The caller decides whether
to publish the message again. The channel has its own connection, because a broker that is short of memory or disk
blocks every connection that publishes, with all its channels.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import aiormq
from pamqp import commands

from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.close_cause import CloseCause, closed_future, watch_blocked
from bridge.amqp.connection import Channel, Connection, open_connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.nodes import Node, NodeRotation
from bridge.amqp.publish.message_id_locks import MessageIdLocks
from bridge.amqp.status import State, Status
from bridge.amqp.supervisor import supervise
from bridge.amqp.wire import compat, trace
from bridge.timing import DEFAULT, Timing

LARGEST_FRAME = 128 * 1024
"""RabbitMQ's default for the maximum size of a frame, in bytes. A broker may have a lower frame limit or no frame
limit."""

_LOST = "the connection was lost"


class Unconfirmed(Exception):
    """The broker did not confirm a message, but may have received the message. The error's text is the reason."""

    def __init__(self, reason: str, channel: Channel) -> None:
        super().__init__(reason)
        self.channel = channel
        """The channel on which the message was published."""


class Unrouted(Unconfirmed):
    """The broker has dropped the message, because no queue is bound to the exchange."""


class ChannelOwner(Protocol):
    """The object that publishes on a ConfirmChannel."""

    async def set_up(self, amqp: Connection, channel: Channel) -> None:
        """Called for each new channel: declares the exchanges and queues that publishing needs."""

    def on_open(self) -> None:
        """Called when a new channel is ready for messages."""

    def on_blocked(self, reason: str | None) -> None:
        """Called with the broker's reason when the broker blocks publishing, and with None when the block ends.

        `on_blocked` is not called if the connection is lost during a block.
        """

    def on_lost(self, state: State, reason: str) -> None:
        """Called when the channel is lost or can't be opened. `state` is the state that `status` will have next."""


class ConfirmChannel:
    """Publishes messages with confirms, on the channel that is currently open."""

    def __init__(
        self,
        nodes: Sequence[Node],
        name: str,
        owner: ChannelOwner,
        status: Status,
        stopping: asyncio.Event,
        timing: Timing = DEFAULT,
    ) -> None:
        """Requires a running event loop. `name` is the connection's name in RabbitMQ. `stopping` ends `run`."""
        self.blocked: str | None = None
        """Why the broker accepts no messages at the moment, or None if it accepts them."""
        self._nodes = NodeRotation(nodes)
        self._name = name
        self._owner = owner
        self._status = status
        self._stopping = stopping
        self._timing = timing
        self._channel: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        self._closed: asyncio.Future[CloseCause] | None = None
        """A future that is done when the last channel or its connection is closed."""
        self._frame_max = LARGEST_FRAME
        self._order = asyncio.Lock()
        self._message_ids = MessageIdLocks()

    # The channel

    @property
    def is_open(self) -> bool:
        """True if a channel is open, so that messages can be published."""
        return self._channel.done()

    async def run(self, *, wait: bool) -> None:
        """Keeps a channel open until `stopping` is set. Raises BrokerRefusal in the same cases as `supervise`."""
        stable_s = self._timing.stable_s
        await supervise(
            self.run_session, self._status, self._owner.on_lost, self._stopping, wait=wait, stable_s=stable_s
        )

    async def run_session(self) -> str:
        """Opens one channel and waits until it is closed or `stopping` is set. Returns why the channel was closed."""
        async with open_connection(self._nodes.order(), self._name, timing=self._timing) as amqp:
            async with self._nodes.setup(self._timing.setup_timeout_s):
                channel = await amqp.channel(publisher_confirms=True)
                await self._owner.set_up(amqp, channel)
            self.blocked = None
            self._frame_max = amqp.connection_tune.frame_max or LARGEST_FRAME
            watch_blocked(amqp, self._on_blocked)
            self._channel.set_result(channel)
            trace.channel_opened(self._name, channel.number)
            self._owner.on_open()
            closed = closed_future(amqp, channel)
            self._closed = closed
            stop = asyncio.create_task(self._stopping.wait(), name="await stop")
            try:
                await asyncio.wait((closed, stop), return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                self._detach(channel)
                reason = closed.result().reason if closed.done() else "stopped"
                trace.channel_closed(self._name, channel.number, reason)
            return reason

    def reset(self, channel: Channel, reason: str) -> None:
        """Ends the session of a channel, so that the next session declares the exchanges and queues again.

        Does nothing if the channel's session is already over.
        """
        if self._detach(channel) and self._closed is not None and not self._closed.done():
            self._closed.set_result(CloseCause(reason))

    def fail(self, error: Exception) -> None:
        """From now on, each attempt that waits for a channel raises `error`. An open channel stays usable."""
        if not self._channel.done():
            self._channel.set_exception(error)
            # This call keeps asyncio from logging the exception if no attempt waits for a channel.
            self._channel.exception()

    def _detach(self, channel: Channel) -> bool:
        """Makes new attempts wait for the next channel. Returns False if `channel` was no longer in use."""
        if not self._channel.done() or self._channel.result() is not channel:
            return False
        self._channel = asyncio.get_running_loop().create_future()
        return True

    def _on_blocked(self, reason: str | None) -> None:
        self.blocked = reason
        self._owner.on_blocked(reason)

    # Messages

    async def publish(
        self,
        body: bytes,
        exchange: str,
        routing_key: str,
        properties: Callable[[int], commands.Basic.Properties],
        message_id: str | None = None,
        on_published: Callable[[commands.Basic.Properties], None] | None = None,
    ) -> None:
        """Makes one attempt to publish: waits for a channel, publishes, and waits for the confirm. Raises Unconfirmed.

        `properties` is called with the connection's frame limit in bytes, and returns the message's properties,
        including `message_id`. `on_published` is called with the message's properties when aiormq has taken the
        message, before the confirm.

        No timeout applies while the connection is open. A broker that is short of memory accepts no message until it
        has memory again. As soon as the broker has memory again, all waiting attempts send their messages.
        """
        async with self._message_ids.lock(message_id):
            # Without the lock `_order`, an attempt that begins just when a channel opens would overtake the attempts
            # that already wait.
            async with self._order:
                channel = await asyncio.shield(self._channel)
            cancellation = CancellationGuard()
            fitting = properties(self._frame_max)
            # In the current turn of the loop, aiormq takes the message or raises an error. `on_published` therefore
            # runs in the next turn, unless this call is cancelled.
            reporting = on_published and asyncio.get_running_loop().call_soon(on_published, fitting)
            try:
                if len(body) >= compat.LARGE:
                    await compat.publish_in_pieces(channel, body, exchange, routing_key, fitting)
                else:
                    await channel.basic_publish(
                        body, exchange=exchange, routing_key=routing_key, properties=fitting, mandatory=True
                    )
            except aiormq.exceptions.PublishError as error:
                raise Unrouted("no queue is bound to the exchange", channel) from error
            except aiormq.exceptions.DeliveryError as error:
                raise Unconfirmed(
                    "the broker does not accept the message (nack): a queue may be full", channel
                ) from error
            except asyncio.CancelledError as error:
                if cancellation.requested:
                    raise
                raise Unconfirmed(_LOST, channel) from error
            except aiormq.exceptions.ChannelInvalidStateError as error:
                raise Unconfirmed(_LOST, channel) from error
            except Exception as error:
                # At certain moments, aiormq reports a lost connection with a plain Exception.
                raise Unconfirmed(error_text(error), channel) from error
            finally:
                if reporting is not None:
                    reporting.cancel()
