"""Where a stream ends: each bridge publishes a mark to it, a small message that everybody skips, and waits for it.

Silence says nothing, and an offset beyond the end is met with it. This file must never know who reads the stream, or
from where.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import aiormq
from pamqp import commands

from bridge.amqp import topology
from bridge.amqp.close_cause import closed_future, watch_blocked
from bridge.amqp.connection import Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume import stream_markers
from bridge.amqp.consume.stream_markers import MARK, Mark
from bridge.amqp.status import Gap
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.amqp.wire.properties import OFFSET_NAME
from bridge.errors import BrokerRefusal

PREFETCH = 64
"""Others publish between a sounding's beginning and its mark."""


class Sounding:
    """Listens at a stream's end, and finds out where that is."""

    def __init__(self, amqp: Connection, channel: aiormq.abc.AbstractChannel, stream: str, retry_s: float) -> None:
        """For `listen` alone."""
        loop = asyncio.get_running_loop()
        self._channel = channel
        self._stream = stream
        self._retry_s = retry_s
        self._token: bytes | None = None
        self._found: asyncio.Future[int] = loop.create_future()
        self._blocked: asyncio.Future[str] = loop.create_future()
        self._ended = closed_future(amqp, channel)
        watch_blocked(amqp, self._tell)

    @classmethod
    async def listen(cls, amqp: Connection, stream: str, retry_s: float) -> "Sounding":
        """`retry_s` is how long a marker may take before it is published again.

        Raises BrokerRefusal where the queue is no stream, or may not be read.
        """
        # Consumes and publishes on one channel: the broker does the one after the other there, and would else agree to
        # consume before it has looked where the end is.
        channel = await amqp.channel(publisher_confirms=True)
        sounding = cls(amqp, channel, stream, retry_s)
        await channel.basic_qos(prefetch_count=PREFETCH)
        try:
            await channel.basic_consume(stream, sounding._look, arguments={"x-stream-offset": "next"})
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            # Nothing but a stream knows this argument: nothing was consumed.
            if "x-stream-offset" in error_text(error):
                raise not_a_stream_error(stream) from error
            raise
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise stream_permission_error(f"read on the queue {stream!r}", error) from error
        return sounding

    async def end(self, token: str, gap: Callable[[], Gap | None]) -> int:
        """The offset of a mark that was published just now: all that was there before has a smaller one.

        `gap` is what the mark tells of, asked for whenever it is published. Raises BrokerRefusal where the permission
        to publish is missing, ConnectionError where the broker takes nothing.
        """
        self._token = token.encode()
        publishing = asyncio.create_task(self._publish(token, gap), name="mark the stream's end")
        try:
            ends: list[asyncio.Future[Any]] = [self._found, self._blocked, self._ended, publishing]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._found.done():
                return self._found.result()
            if self._blocked.done():
                raise ConnectionError(
                    f"the broker takes nothing to publish ({self._blocked.result()}), and so the end of the stream "
                    f"{self._stream!r} can't be found"
                )
            # A channel on which nothing may be published is closed for it, and who publishes knows best why.
            await asyncio.wait([publishing], timeout=self._retry_s)
            if publishing.done() and _is_lost(publishing):
                # Why the channel is gone may be known a moment later.
                await asyncio.wait([self._ended], timeout=self._retry_s)
            if publishing.done() and not (self._ended.done() and _is_lost(publishing)):
                publishing.result()
            reason = self._ended.result().reason
            raise ConnectionError(f"the end of the stream {self._stream!r} was not found: {reason}")
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            if self._found.done():
                await self._channel.close()

    async def _publish(self, token: str, gap: Callable[[], Gap | None]) -> None:
        properties = commands.Basic.Properties(message_type=MARK, delivery_mode=2)
        while True:
            body = stream_markers.write(Mark(token, gap()))
            try:
                async with lag_tolerant_timeout(self._retry_s):
                    await self._channel.basic_publish(
                        body, routing_key=self._stream, properties=properties, mandatory=True
                    )
            except aiormq.exceptions.ChannelAccessRefused as error:
                raise stream_permission_error("write on amq.default, to find the stream's end", error) from error
            except aiormq.exceptions.DeliveryError:
                pass  # the broker gave it back, or refused it
            except TimeoutError:
                continue
            await asyncio.sleep(self._retry_s)

    async def _look(self, message: aiormq.abc.DeliveredMessage) -> None:
        if self._token is not None and self._token in message.body and not self._found.done():
            offset = (message.header.properties.headers or {}).get(OFFSET_NAME.decode())
            assert isinstance(offset, int)
            self._found.set_result(offset)
        assert message.delivery_tag is not None
        await self._channel.basic_ack(message.delivery_tag)

    def _tell(self, reason: str | None) -> None:
        if reason is not None and not self._blocked.done():
            self._blocked.set_result(reason)


def _is_lost(publishing: asyncio.Task[None]) -> bool:
    """True where it failed only because the channel is gone: why that is, aiormq does not tell who publishes."""
    return publishing.cancelled() or not isinstance(publishing.exception(), BrokerRefusal)


def stream_permission_error(permission: str, error: aiormq.exceptions.ChannelAccessRefused) -> BrokerRefusal:
    """The refusal where a stream can't be used for want of a permission."""
    return topology.permission_error(error, f"{permission} (or set BRIDGE_HISTORY=memory)")


def not_a_stream_error(name: str) -> BrokerRefusal:
    """The refusal where a queue is something else."""
    return BrokerRefusal(
        f"the queue {name!r} exists and is no stream: whatever is in it is somebody else's, and stays there; "
        "name another one in BRIDGE_HISTORY_STREAM, or delete it"
    )
