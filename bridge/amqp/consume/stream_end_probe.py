"""Finds the end of a stream: publishes a marker to the stream and reads the marker back.

Without a marker, a consumer can't know that it is at the end: at the end of a stream, the broker just delivers nothing.
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
from bridge.amqp.consume.stream_markers import MARKER_TYPE, StreamMarker
from bridge.amqp.status import Gap
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.amqp.wire.properties import stream_offset
from bridge.errors import BrokerRefusal

PREFETCH = 64
"""The prefetch of the probe.

The prefetch is more than 1, because other messages may be published between the start of the probe and its marker.
"""


class StreamEndProbe:
    """Consumes at the end of a stream until its own marker is delivered."""

    def __init__(self, amqp: Connection, channel: aiormq.abc.AbstractChannel, stream: str, retry_s: float) -> None:
        """Only `listen` calls this constructor."""
        loop = asyncio.get_running_loop()
        self._channel = channel
        self._stream = stream
        self._retry_s = retry_s
        self._token: bytes | None = None
        self._found: asyncio.Future[int] = loop.create_future()
        self._blocked: asyncio.Future[str] = loop.create_future()
        self._closed = closed_future(amqp, channel)
        watch_blocked(amqp, self._on_blocked)

    @classmethod
    async def listen(cls, amqp: Connection, stream: str, retry_s: float) -> "StreamEndProbe":
        """Starts to consume at the end of `stream`. A marker that is not delivered is published again after `retry_s`.

        Raises BrokerRefusal if the queue is not a stream or the user has no permission to read it.
        """
        # The probe consumes and publishes on the same channel, because the broker handles the requests of one channel
        # in order. With two channels, the broker may answer basic.consume, then store the marker, and only then look
        # for the end of the stream: the consumer would start after the marker.
        channel = await amqp.channel(publisher_confirms=True)
        probe = cls(amqp, channel, stream, retry_s)
        await channel.basic_qos(prefetch_count=PREFETCH)
        try:
            await channel.basic_consume(stream, probe._on_message, arguments={"x-stream-offset": "next"})
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            # Only a stream accepts the argument `x-stream-offset`.
            if "x-stream-offset" in error_text(error):
                raise not_a_stream_error(stream) from error
            raise
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise stream_permission_error(f"read on the queue {stream!r}", error) from error
        return probe

    async def end(self, token: str, gap: Callable[[], Gap | None]) -> int:
        """Publishes a marker and returns its offset.

        All messages that were published before the call have lower offsets.

        `gap` is called before each attempt to publish the marker, and the marker reports the gap that `gap` returns.
        Raises BrokerRefusal if the permission to publish is missing, and ConnectionError if the broker accepts no
        messages.
        """
        self._token = token.encode()
        publishing = asyncio.create_task(self._publish(token, gap), name="mark the stream's end")
        waited: list[asyncio.Future[Any]] = [self._found, self._blocked, self._closed, publishing]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._found.done():
                return self._found.result()
            if self._blocked.done():
                raise ConnectionError(
                    f"the broker accepts no messages ({self._blocked.result()}), so the end of the stream "
                    f"{self._stream!r} can't be found"
                )
            # The broker closes a channel on which publishing is forbidden. The task that publishes the marker then
            # raises the refusal.
            await asyncio.wait([publishing], timeout=self._retry_s)
            if publishing.done() and _is_lost(publishing):
                # The probe may learn only a moment later why the channel was closed.
                await asyncio.wait([self._closed], timeout=self._retry_s)
            if publishing.done() and not (self._closed.done() and _is_lost(publishing)):
                publishing.result()
            reason = self._closed.result().reason
            raise ConnectionError(f"the end of the stream {self._stream!r} was not found: {reason}")
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            if self._found.done():
                await self._channel.close()

    async def _publish(self, token: str, gap: Callable[[], Gap | None]) -> None:
        properties = commands.Basic.Properties(message_type=MARKER_TYPE, delivery_mode=2)
        while True:
            body = stream_markers.encode(StreamMarker(token, gap()))
            try:
                async with lag_tolerant_timeout(self._retry_s):
                    await self._channel.basic_publish(
                        body, routing_key=self._stream, properties=properties, mandatory=True
                    )
            except aiormq.exceptions.ChannelAccessRefused as error:
                raise stream_permission_error("write on amq.default, to find the stream's end", error) from error
            except aiormq.exceptions.DeliveryError:
                pass  # the broker has returned the marker as unroutable, or has sent a nack for it
            except TimeoutError:
                continue
            await asyncio.sleep(self._retry_s)

    async def _on_message(self, message: aiormq.abc.DeliveredMessage) -> None:
        if self._token is not None and self._token in message.body and not self._found.done():
            self._found.set_result(stream_offset(message.header.properties))
        assert message.delivery_tag is not None
        await self._channel.basic_ack(message.delivery_tag)

    def _on_blocked(self, reason: str | None) -> None:
        if reason is not None and not self._blocked.done():
            self._blocked.set_result(reason)


def _is_lost(publishing: asyncio.Task[None]) -> bool:
    """True if publishing failed because the channel was closed.

    The error from aiormq does not say why the channel was closed.
    """
    return publishing.cancelled() or not isinstance(publishing.exception(), BrokerRefusal)


def stream_permission_error(permission: str, error: aiormq.exceptions.ChannelAccessRefused) -> BrokerRefusal:
    """Returns the BrokerRefusal to raise if a permission on a stream is missing."""
    return topology.permission_error(error, f"it needs {permission} (or set BRIDGE_HISTORY=memory)")


def not_a_stream_error(name: str) -> BrokerRefusal:
    """Returns the BrokerRefusal to raise if a queue is not a stream."""
    return BrokerRefusal(
        f"the queue {name!r} is not a stream, and the bridge leaves it as it is; "
        "name another one in BRIDGE_HISTORY_STREAM, or delete this queue"
    )
