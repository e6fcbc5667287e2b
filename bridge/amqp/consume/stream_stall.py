"""Compares the consumer of a stream with the stream's end, as long as a session lasts.

A consumer that has reached the end has missed nothing so far: should events be missed later, the gap begins there. And
RabbitMQ may stop delivering although the stream has newer messages, without an error: after retention drops the file
that a slow consumer is about to read. Seen with RabbitMQ 4.0.5 in one of six runs of a test, and once with 3.10.8.
Silence alone is no proof of either: nothing may have been published.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import aiormq
import structlog

from bridge.amqp.close_cause import SessionEndedError
from bridge.amqp.connection import Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.stream_reader import StreamReader
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.amqp.wire.properties import OFFSET_NAME
from bridge.contract.update_id import UpdateId
from bridge.timing import DEFAULT, Timing

STALLED = "the broker stopped delivering, but the stream has newer messages"

LONGEST_PAUSE_S = 60.0
"""Longest pause between two probes, and between two sessions that stall at the same event."""

_log = structlog.get_logger("bridge.amqp")


class StallDetector:
    """Probes a stream from time to time, with a second consumer."""

    def __init__(
        self, amqp: Connection, reader: StreamReader, prove: Callable[[float], None], timing: Timing = DEFAULT
    ) -> None:
        """`reader` says how far the consumer is, and is told of the stream's end. `prove` is called once a stall is
        confirmed, because the probe shows that the broker still answers: with the time at which it was asked."""
        self._amqp = amqp
        self._reader = reader
        self._course = reader.course
        self._prove = prove
        self._timing = timing
        self._channel: aiormq.abc.AbstractChannel | None = None
        self._failed = False
        self._end_s = time.monotonic() + timing.stall_check_s
        """When the end is looked for next, while deliveries come."""
        self._begin_silence()

    async def run(self, may_deliver: Callable[[], bool]) -> None:
        """Runs until cancelled. Raises ExplainedError(STALLED) when the stream stalls.

        The first probe for a stall follows `stall_check_s` of silence in which `may_deliver()` was true. The pause
        doubles after each probe without a newer message, up to LONGEST_PAUSE_S.
        """
        while True:
            await asyncio.sleep(self._timing.check_interval_s)
            delivering = self._course.last != self._last
            if delivering or not may_deliver():
                self._begin_silence()
                if delivering and time.monotonic() >= self._end_s:
                    await self._find_end()
            elif time.monotonic() >= self._probe_s and await self._is_stalled():
                raise SessionEndedError(STALLED)

    def _begin_silence(self) -> None:
        self._last: UpdateId | None = self._course.last
        self._pause_s = self._timing.stall_check_s
        self._probe_s = time.monotonic() + self._pause_s
        self._behind = False
        """Whether the last probe found a newer message."""

    async def _find_end(self) -> None:
        # Whoever has read the first message that comes to the probe has read all that was there before the probe.
        asked_s = time.monotonic()
        self._end_s = asked_s + self._timing.stall_check_s
        with suppress(_UnknownError):
            offset = await self._probe("next")
            if offset is not None:
                self._reader.expect(offset, asked_s)

    async def _is_stalled(self) -> bool:
        asked_s = time.monotonic()
        try:
            behind = (
                await self._probe(self._reader.start if self._last is None else self._last.sequence + 1) is not None
            )
        except _UnknownError:
            behind = False
        else:
            if not behind:
                self._reader.expect(self._course.number, asked_s)
        if not behind:
            self._behind = False
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._probe_s = time.monotonic() + self._pause_s
            return False
        # The newer message may still be on its way to the consumer. The next probe, after check_interval_s, confirms
        # the stall.
        confirmed = self._behind and self._course.last == self._last
        self._behind = True
        if confirmed:
            self._prove(asked_s)
        return confirmed

    async def _probe(self, offset: "int | Literal['next']") -> int | None:
        """The offset of the first message from there on, None if there is none. Raises _UnknownError: without a
        probe, the consumer still works, and it learns by itself that its stream or its connection is gone."""
        limit_s = self._timing.stall_check_s
        try:
            async with lag_tolerant_timeout(limit_s + self._timing.check_timeout_s):
                if self._channel is None or self._channel.is_closed:
                    # 0 means unbounded. A full frame buffer would block aiormq's reader, and with it all channels of
                    # the connection. RabbitMQ 3.10 may send a whole chunk despite the prefetch of 1.
                    self._channel = await self._amqp.channel(publisher_confirms=False, frame_buffer_size=0)
                return await first_offset(self._channel, self._reader.stream.name, offset, limit_s)
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError) as error:
            if not self._failed:
                self._failed = True
                _log.warning(
                    "the stream can't be probed for its end", stream=self._reader.stream.name, error=error_text(error)
                )
            self._channel = None
            raise _UnknownError from error


class _UnknownError(Exception):
    """A probe had no answer."""


async def first_offset(
    channel: aiormq.abc.AbstractChannel, stream: str, offset: "int | Literal['next']", limit_s: float
) -> int | None:
    """The offset of the first message that another consumer, from an offset on, is given within `limit_s` after
    basic.consume-ok; None if there is none.

    An offset beyond the end of the stream is answered with silence, and one that was dropped with what follows it.
    Raises what closes the channel meanwhile.
    """
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def take(message: aiormq.abc.DeliveredMessage) -> None:
        if not found.done():
            at = (message.header.properties.headers or {}).get(OFFSET_NAME.decode())
            assert isinstance(at, int)
            found.set_result(at)

    await channel.basic_qos(prefetch_count=1)
    consuming = await channel.basic_consume(stream, take, arguments={"x-stream-offset": offset})
    closing = channel.closing
    with suppress(TimeoutError):
        async with lag_tolerant_timeout(limit_s):
            await asyncio.wait([found, closing], return_when=asyncio.FIRST_COMPLETED)
    if closing.done():
        closing.result()
    await channel.basic_cancel(consuming.consumer_tag or "")
    return found.result() if found.done() else None
