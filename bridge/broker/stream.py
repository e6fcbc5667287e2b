"""The stream in which RabbitMQ keeps the history: found or made, and sounded, before each life reads it.

Any number of bridges read the same stream, and none of them changes what is there. To find its end, each publishes a
mark: a small message that everybody skips. Silence says nothing, and an offset beyond the end is met with it. This file
must never know what becomes of a delivery.
"""

import asyncio
import math
import secrets
from dataclasses import dataclass
from typing import Any

import aiormq
import structlog
from pamqp import commands
from pamqp.common import FieldTable

from bridge.broker import topology
from bridge.broker.content import OFFSET_NAME
from bridge.broker.course import Course
from bridge.broker.link import end_of, sentence, tell_of_blocking
from bridge.broker.topology import Amqp, Queue
from bridge.errors import BrokerRefusal

MARK = "bridge.mark"
"""The `type` of a mark, which no event has: it comes through the default exchange, past those of the fetchers."""

RESTART_S = 2.5
"""No broker is back sooner: its start alone takes 3 s on two cores, and more as it is packaged."""

SEGMENTS = 64
"""Files that a full stream has. What is too old, or too much, is dropped file by file, and the newest stays: few large
ones would keep far more than was asked for."""

SOUNDING_PREFETCH = 64
"""Others publish between a sounding's beginning and its mark."""

_log = structlog.get_logger("bridge.broker")


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as its operator wants it."""

    name: str
    max_age_s: float
    max_bytes: int
    window: int
    """How many places of it the bridge reads back when it starts."""

    @property
    def arguments(self) -> FieldTable:
        """What it is declared with."""
        return {
            "x-queue-type": "stream",
            "x-max-age": f"{math.ceil(self.max_age_s)}s",
            "x-max-length-bytes": self.max_bytes,
            "x-stream-max-segment-size-bytes": self.max_bytes // SEGMENTS,
        }


class History:
    """A stream, and how far this bridge has read it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.course = Course(stream.window)
        self.start = 0
        """The offset to read from in this life."""
        self.read_s: float | None = None
        """When something new was read last (monotonic seconds)."""
        self._said: str | None = None

    def report(self) -> dict[str, object]:
        """For `/readyz`."""
        last = self.course.last
        return {"stream": self.stream.name, "read": self.course.caught_up, "last": last and last.number}

    def may_have_restarted(self, heard_s: float, now_s: float) -> bool:
        """Whether the broker had the time to start again since it was heard last, or has delivered something."""
        return now_s - max(heard_s, self.read_s or heard_s) > RESTART_S

    async def prepare(self, amqp: Amqp) -> Queue:
        """Finds or makes the stream, and where to begin in it. Raises BrokerRefusal where it can't be used."""
        made = await self._ensure(amqp)
        self.start = self.course.begin(await sound(amqp, self.stream.name))
        return Queue(self.stream.name, made)

    async def _ensure(self, amqp: Amqp) -> bool:
        name = self.stream.name
        try:
            made = await topology.ensure_queue(amqp, name, self.stream.arguments)
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise _lacking(f"configure on the queue {name!r}, which does not exist yet", error) from error
        except aiormq.exceptions.ChannelLockedResource as error:
            raise _no_stream(name) from error
        except aiormq.exceptions.AMQPError as error:
            words = sentence(error)
            # Before 3.9 the type is unknown. Before 3.11 it may be disabled, which ends the whole connection.
            if "x-queue-type" in words or "feature flag" in words:
                raise BrokerRefusal(
                    f"the broker can't make the stream {name!r}, which needs RabbitMQ 3.9 or newer, with the feature "
                    f"flag stream_queue enabled (rabbitmqctl enable_feature_flag stream_queue): {words}"
                ) from error
            raise
        if not made:
            await self._compare(amqp)
        return made

    async def _compare(self, amqp: Amqp) -> None:
        """Says where a stream that exists keeps something else than the settings ask for; it stays what it is."""
        channel = await amqp.channel(publisher_confirms=False)
        try:
            await channel.queue_declare(self.stream.name, durable=True, arguments=self.stream.arguments)
        except aiormq.exceptions.ChannelAccessRefused:
            return  # no permission to make it, and none is needed
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            words = sentence(error)
            if "'x-queue-type'" in words:
                raise _no_stream(self.stream.name) from error
            if words != self._said:
                self._said = words
                _log.warning("the stream exists, and keeps its own limits", stream=self.stream.name, difference=words)
            return
        await channel.close()


async def sound(amqp: Amqp, stream: str) -> int:
    """The offset of a message that was published just now: all that was there before has a smaller one.

    Raises BrokerRefusal where the queue is no stream, or where a permission is missing.
    """
    # Consumes and publishes on one channel: the broker does the one after the other there, and would else agree to
    # consume before it has looked where the end is.
    channel = await amqp.channel(publisher_confirms=True)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[int] = loop.create_future()
    blocked: asyncio.Future[str] = loop.create_future()
    token = secrets.token_hex(16).encode()

    async def look(message: aiormq.abc.DeliveredMessage) -> None:
        if message.body == token and not found.done():
            offset = (message.header.properties.headers or {}).get(OFFSET_NAME.decode())
            assert isinstance(offset, int)
            found.set_result(offset)
        assert message.delivery_tag is not None
        await channel.basic_ack(message.delivery_tag)

    def tell(reason: str | None) -> None:
        if reason is not None and not blocked.done():
            blocked.set_result(reason)

    tell_of_blocking(amqp, tell)
    await channel.basic_qos(prefetch_count=SOUNDING_PREFETCH)
    await _consume(channel, stream, look)
    ended = end_of(amqp, channel)
    publishing = asyncio.create_task(_mark(channel, stream, token), name="mark the stream's end")
    try:
        ends: list[asyncio.Future[Any]] = [found, blocked, ended]
        await asyncio.wait([*ends, publishing], return_when=asyncio.FIRST_COMPLETED)
        if not found.done() and publishing.done():
            publishing.result()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if found.done():
            return found.result()
        if blocked.done():
            raise ConnectionError(
                f"the broker takes nothing to publish ({blocked.result()}), and so the end of the stream {stream!r} "
                "can't be found"
            )
        raise ConnectionError(f"the end of the stream {stream!r} was not found: {ended.result()}")
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        if found.done():
            await channel.close()


async def _consume(channel: aiormq.abc.AbstractChannel, stream: str, look: aiormq.abc.ConsumerCallback) -> None:
    try:
        await channel.basic_consume(stream, look, arguments={"x-stream-offset": "next"})
    except aiormq.exceptions.ChannelPreconditionFailed as error:
        # Nothing but a stream knows this argument: nothing was consumed.
        if "x-stream-offset" in sentence(error):
            raise _no_stream(stream) from error
        raise
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise _lacking(f"read on the queue {stream!r}", error) from error


async def _mark(channel: aiormq.abc.AbstractChannel, stream: str, token: bytes) -> None:
    properties = commands.Basic.Properties(message_type=MARK, delivery_mode=2)
    try:
        await channel.basic_publish(token, routing_key=stream, properties=properties, mandatory=True)
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise _lacking("write on amq.default, to find the stream's end", error) from error


def _lacking(permission: str, error: aiormq.exceptions.ChannelAccessRefused) -> BrokerRefusal:
    return topology.lacking(error, f"{permission} (or set BRIDGE_HISTORY=memory)")


def _no_stream(name: str) -> BrokerRefusal:
    return BrokerRefusal(
        f"the queue {name!r} exists and is no stream: whatever is in it is somebody else's, and stays there; "
        "name another one in BRIDGE_HISTORY_STREAM, or delete it"
    )
