"""Detects a stream that RabbitMQ stops delivering although it has newer messages.

This happens after retention drops the file that a slow consumer is about to read. The broker sends no delivery and no
error. Seen with RabbitMQ 4.0.5 in one of six runs of a test, and once with 3.10.8. Silence alone is no proof: nothing
may have been published.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import aiormq
import structlog

from bridge.broker.content import OFFSET_NAME
from bridge.broker.course import Course
from bridge.broker.link import sentence
from bridge.broker.topology import Amqp
from bridge.contract.ids import Id
from bridge.timing import DEFAULT, Timing

STALLED = "the broker stopped delivering, but the stream has newer messages"

LONGEST_PAUSE_S = 60.0
"""Longest pause between two probes. Each probe transfers at least one message that is already known."""

_log = structlog.get_logger("bridge.broker")


class StallDetector:
    """Checks, during one session, whether the stream has messages newer than the last delivery."""

    def __init__(
        self, amqp: Amqp, stream: str, course: Course, prove: Callable[[], None], timing: Timing = DEFAULT
    ) -> None:
        """`course` is the consumer's position in the stream. `prove` is called once a stall is confirmed, because the
        probe shows that the broker still answers."""
        self._amqp = amqp
        self._stream = stream
        self._course = course
        self._prove = prove
        self._timing = timing
        self._begin_silence()

    async def run(self, may_deliver: Callable[[], bool]) -> None:
        """Runs until cancelled. Raises ConnectionError(STALLED) when the stream stalls, and aiormq's channel errors
        except ChannelAccessRefused.

        The first probe follows `stall_check_s` of silence. The pause doubles after each answer without a newer message,
        up to LONGEST_PAUSE_S. No probe starts while `may_deliver()` is false.
        """
        # 0 means unbounded. A full frame buffer would block aiormq's reader, and with it all channels of the
        # connection. RabbitMQ 3.10 may send a whole chunk despite the prefetch of 1.
        channel = await self._amqp.channel(publisher_confirms=False, frame_buffer_size=0)
        while True:
            await asyncio.sleep(self._timing.check_interval_s)
            if not may_deliver():
                continue
            try:
                stalled = await self._probe(channel)
            except aiormq.exceptions.ChannelAccessRefused as error:
                # Without detection, the consumer still works.
                _log.warning("no permission to probe the stream; stall detection disabled", error=sentence(error))
                await asyncio.Event().wait()
            if stalled:
                raise ConnectionError(STALLED)

    def _begin_silence(self) -> None:
        self._last: Id | None = self._course.last
        self._pause_s = self._timing.stall_check_s
        self._probe_s = time.monotonic() + self._pause_s
        self._behind = False
        """Whether the last answered probe found a newer message."""

    async def _probe(self, channel: aiormq.abc.AbstractChannel) -> bool:
        """Probes if it is time. Returns True if a stall is confirmed."""
        last = self._course.last
        if last != self._last:
            self._begin_silence()
        if time.monotonic() < self._probe_s:
            return False
        found = await newest(channel, self._stream, self._timing.stall_check_s)
        if last != self._course.last:
            return False
        if found is not None and (last is None or found > last.number):
            # The newer message may still be on its way to the consumer. The next probe, after check_interval_s,
            # confirms the stall.
            was_behind, self._behind = self._behind, True
            if was_behind:
                self._prove()
            return was_behind
        if found is not None:
            self._behind = False
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._probe_s = time.monotonic() + self._pause_s
        return False


async def newest(channel: aiormq.abc.AbstractChannel, stream: str, limit_s: float) -> int | None:
    """Returns the offset of the first message in the stream's last chunk.

    Returns None if no message arrives within `limit_s` after basic.consume-ok, or if its offset can't be read.
    """
    found: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def take(message: aiormq.abc.DeliveredMessage) -> None:
        if not found.done():
            offset = (message.header.properties.headers or {}).get(OFFSET_NAME.decode())
            found.set_result(offset if isinstance(offset, int) else None)
        assert message.delivery_tag is not None
        await channel.basic_ack(message.delivery_tag)

    await channel.basic_qos(prefetch_count=1)
    consuming = await channel.basic_consume(stream, take, arguments={"x-stream-offset": "last"})
    offset = None
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            offset = await found
    await channel.basic_cancel(consuming.consumer_tag or "")
    return offset
