"""A broker that delivers nothing more of a stream, though the stream goes on.

RabbitMQ 4.0.5 and 3.10.8 do so now and then, if retention drops the file that a slow consumer is about to read: no
delivery follows, whatever is published, and no error either. Silence alone says nothing: the stream may be silent.
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

STILL = "the broker delivers nothing more, though the stream goes on; it is read from the last event once more"

LONGEST_PAUSE_S = 60.0
"""Between two looks in one silence. Each look brings a message that is known already."""

_log = structlog.get_logger("bridge.broker")


class Standstill:
    """Looks, in one life, whether something newer is in a stream than what was delivered."""

    def __init__(
        self, amqp: Amqp, stream: str, course: Course, prove: Callable[[], None], timing: Timing = DEFAULT
    ) -> None:
        """`course` is that of what is delivered; `prove` is called when the broker has proven to be there."""
        self._amqp = amqp
        self._stream = stream
        self._course = course
        self._prove = prove
        self._timing = timing
        self._begin_silence()

    async def run(self, may_come: Callable[[], bool]) -> None:
        """Runs until it is cancelled. Raises ConnectionError, with STILL, when the stream stands still.

        Looks after `stall_check_s` of silence, and less and less often while that lasts, but only while `may_come`
        says that the broker may deliver.
        """
        # The channel takes what the broker sends, however much that is: all that the connection brings waits behind it.
        channel = await self._amqp.channel(publisher_confirms=False, frame_buffer_size=0)
        while True:
            await asyncio.sleep(self._timing.check_interval_s)
            if not may_come():
                continue
            try:
                still = await self._look(channel)
            except aiormq.exceptions.ChannelAccessRefused as error:
                # The consumer that is there goes on.
                _log.warning("the bridge may not look whether the stream goes on", error=sentence(error))
                await asyncio.Event().wait()
            if still:
                raise ConnectionError(STILL)

    def _begin_silence(self) -> None:
        self._last: Id | None = self._course.last
        self._pause_s = self._timing.stall_check_s
        self._look_s = time.monotonic() + self._pause_s
        self._behind = False
        """Whether something newer was there at the last look."""

    async def _look(self, channel: aiormq.abc.AbstractChannel) -> bool:
        last = self._course.last
        if last != self._last:
            self._begin_silence()
        if time.monotonic() < self._look_s:
            return False
        there = await newest(channel, self._stream, self._timing.stall_check_s)
        if last != self._course.last:
            return False
        if there is not None and (last is None or there > last.number):
            # What is there at the first look may be on its way: the second one follows at once.
            was_behind, self._behind = self._behind, True
            if was_behind:
                self._prove()
            return was_behind
        if there is not None:
            self._behind = False
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._look_s = time.monotonic() + self._pause_s
        return False


async def newest(channel: aiormq.abc.AbstractChannel, stream: str, limit_s: float) -> int | None:
    """The offset of one of the newest messages of a stream, as another consumer is given it: of those that were stored
    together last, the first.

    None if it does not come within `limit_s` of the broker's consent, or has headers that can't be read.
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
