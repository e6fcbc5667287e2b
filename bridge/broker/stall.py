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

from bridge.backoff import Backoff
from bridge.broker.course import Course
from bridge.broker.link import sentence
from bridge.broker.topology import Amqp
from bridge.contract.ids import Id
from bridge.timing import DEFAULT, Timing

STALLED = "the broker stopped delivering, but the stream has newer messages"

LONGEST_PAUSE_S = 60.0
"""Longest pause between two probes, and between two sessions that stall at the same event."""

_log = structlog.get_logger("bridge.broker")


class Stalls:
    """The stalls of all sessions. After repeated stalls at the same event, the next session begins later each time."""

    def __init__(self) -> None:
        self._at: tuple[Id | None, ...] = ()
        self._pauses = Backoff(1.0, LONGEST_PAUSE_S)
        self._repeated = False

    def note(self, last: Id | None) -> bool:
        """Notes a stall after the event `last`. Returns False if the stall before was at the same event."""
        self._repeated = self._at == (last,)
        if not self._repeated:
            self._at = (last,)
            self._pauses.reset()
        return not self._repeated

    async def wait(self, stopping: asyncio.Event) -> None:
        """Waits before the session that follows a repeated stall, unless `stopping` is set."""
        if self._repeated:
            self._repeated = False
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pauses.pause_s()):
                    await stopping.wait()


class StallDetector:
    """Checks, during one session, whether the stream has messages newer than the last delivery."""

    def __init__(
        self, amqp: Amqp, stream: str, course: Course, start: int, prove: Callable[[], None], timing: Timing = DEFAULT
    ) -> None:
        """`course` is the consumer's position in the stream, and `start` the offset that it began at. `prove` is called
        once a stall is confirmed, because the probe shows that the broker still answers."""
        self._amqp = amqp
        self._stream = stream
        self._course = course
        self._start = start
        self._prove = prove
        self._timing = timing
        self._channel: aiormq.abc.AbstractChannel | None = None
        self._failed = False
        self._begin_silence()

    async def run(self, may_deliver: Callable[[], bool]) -> None:
        """Runs until cancelled. Raises ConnectionError(STALLED) when the stream stalls.

        The first probe follows `stall_check_s` of silence in which `may_deliver()` was true. The pause doubles after
        each probe without a newer message, up to LONGEST_PAUSE_S.
        """
        while True:
            await asyncio.sleep(self._timing.check_interval_s)
            if not may_deliver() or self._course.last != self._last:
                self._begin_silence()
            elif time.monotonic() >= self._probe_s and await self._is_stalled():
                raise ConnectionError(STALLED)

    def _begin_silence(self) -> None:
        self._last: Id | None = self._course.last
        self._pause_s = self._timing.stall_check_s
        self._probe_s = time.monotonic() + self._pause_s
        self._behind = False
        """Whether the last probe found a newer message."""

    async def _is_stalled(self) -> bool:
        if not await self._probe():
            self._behind = False
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._probe_s = time.monotonic() + self._pause_s
            return False
        # The newer message may still be on its way to the consumer. The next probe, after check_interval_s, confirms
        # the stall.
        confirmed = self._behind and self._course.last == self._last
        self._behind = True
        if confirmed:
            self._prove()
        return confirmed

    async def _probe(self) -> bool:
        """Whether there is a newer message. False if that can't be found out: without a probe, the consumer still
        works, and it learns by itself that its stream or its connection is gone."""
        limit_s = self._timing.stall_check_s
        try:
            async with asyncio.timeout(limit_s + self._timing.check_timeout_s):
                if self._channel is None or self._channel.is_closed:
                    # 0 means unbounded. A full frame buffer would block aiormq's reader, and with it all channels of
                    # the connection. RabbitMQ 3.10 may send a whole chunk despite the prefetch of 1.
                    self._channel = await self._amqp.channel(publisher_confirms=False, frame_buffer_size=0)
                behind = self._start if self._last is None else self._last.number + 1
                return await delivers(self._channel, self._stream, behind, limit_s)
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError) as error:
            if not self._failed:
                self._failed = True
                _log.warning("the stream can't be probed for a stall", stream=self._stream, error=sentence(error))
            self._channel = None
            return False


async def delivers(channel: aiormq.abc.AbstractChannel, stream: str, offset: int, limit_s: float) -> bool:
    """Whether another consumer, from an offset on, is given a message within `limit_s` after basic.consume-ok.

    An offset beyond the end of the stream is answered with silence, and one that was dropped with what follows it.
    Raises what closes the channel meanwhile.
    """
    found: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def take(_message: aiormq.abc.DeliveredMessage) -> None:
        if not found.done():
            found.set_result(None)

    await channel.basic_qos(prefetch_count=1)
    consuming = await channel.basic_consume(stream, take, arguments={"x-stream-offset": offset})
    closing = channel.closing
    await asyncio.wait([found, closing], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    if closing.done():
        closing.result()
    await channel.basic_cancel(consuming.consumer_tag or "")
    return found.done()
