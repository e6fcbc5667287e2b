"""Compares, throughout a session, the position of a stream's consumer with the end of the stream.

A consumer that has reached the end has missed no events up to that time. If a gap is found later, it begins at the last
time when the consumer was known to be at the end.

RabbitMQ can stop delivering without an error, although the stream has newer messages. Deliveries stop when retention
drops the segment that a slow consumer is about to read. Such a stall happened in one of six runs of a test with
RabbitMQ 4.0.5, and once with RabbitMQ 3.10.8. Only a probe distinguishes a stalled stream from a stream to which
nothing is published.
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
from bridge.amqp.wire.properties import stream_offset
from bridge.contract.update_id import UpdateId
from bridge.timing import DEFAULT, Timing

STALLED = "the broker stopped delivering, but the stream has newer messages"

LONGEST_PAUSE_S = 60.0
"""The longest pause between two probes, and also between two sessions that stall at the same event."""

_log = structlog.get_logger("bridge.amqp")


class StallDetector:
    """Probes a stream from time to time, with a second consumer."""

    def __init__(
        self, amqp: Connection, reader: StreamReader, on_answer: Callable[[float], None], timing: Timing = DEFAULT
    ) -> None:
        """`reader` is the consumer's stream reader.

        Whenever a probe finds the current end of the stream, the detector reports this end to the reader.

        The detector calls `on_answer` when a stall is confirmed, because a stalled broker still answers probes. The
        argument of `on_answer` is the time of the probe's request (monotonic seconds).
        """
        self._amqp = amqp
        self._reader = reader
        self._position = reader.position
        self._on_answer = on_answer
        self._timing = timing
        self._channel: aiormq.abc.AbstractChannel | None = None
        self._failure_logged = False
        self._next_end_s = time.monotonic() + timing.stall_check_s
        """If deliveries continue, the next probe for the end of the stream starts at this time."""
        self._begin_silence()

    async def run(self, may_deliver: Callable[[], bool]) -> None:
        """Runs until cancelled. Raises SessionEndedError(STALLED) when the stream stalls.

        The first probe for a stall starts `stall_check_s` after the last delivery. Time without a delivery counts only
        while `may_deliver()` is true. The pause before the next probe doubles after each probe that finds no newer
        message, up to LONGEST_PAUSE_S.
        """
        while True:
            await asyncio.sleep(self._timing.check_interval_s)
            delivering = self._position.last != self._last
            if delivering or not may_deliver():
                self._begin_silence()
                if delivering and time.monotonic() >= self._next_end_s:
                    await self._probe_end()
            elif time.monotonic() >= self._next_probe_s and await self._is_stalled():
                raise SessionEndedError(STALLED)

    def _begin_silence(self) -> None:
        self._last: UpdateId | None = self._position.last
        self._pause_s = self._timing.stall_check_s
        self._next_probe_s = time.monotonic() + self._pause_s
        self._newer_found = False
        """True if the last probe found a newer message."""

    async def _probe_end(self) -> None:
        # The probe gets the first message that is published after its start. When the consumer has read this message,
        # it has read all messages that were published before the probe.
        requested_s = time.monotonic()
        self._next_end_s = requested_s + self._timing.stall_check_s
        with suppress(_NoAnswerError):
            offset = await self._probe("next")
            if offset is not None:
                self._reader.expect_end(offset, requested_s)

    async def _is_stalled(self) -> bool:
        requested_s = time.monotonic()
        next_offset = self._reader.start_offset if self._last is None else self._last.sequence + 1
        try:
            newer_found = await self._probe(next_offset) is not None
        except _NoAnswerError:
            newer_found = False
        else:
            if not newer_found:
                self._reader.expect_end(self._position.offset, requested_s)
        if not newer_found:
            self._newer_found = False
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._next_probe_s = time.monotonic() + self._pause_s
            return False
        # The newer message may still be on its way to the consumer. The next probe, after check_interval_s, confirms
        # the stall.
        confirmed = self._newer_found and self._position.last == self._last
        self._newer_found = True
        if confirmed:
            self._on_answer(requested_s)
        return confirmed

    async def _probe(self, offset: "int | Literal['next']") -> int | None:
        """Returns the offset of the first message at or after `offset`, or None if there is no such message.

        Raises _NoAnswerError if the probe fails. A failed probe does not end the session: if the stream or the
        connection is lost, the consumer itself detects the loss.
        """
        limit_s = self._timing.stall_check_s
        try:
            async with lag_tolerant_timeout(limit_s + self._timing.check_timeout_s):
                if self._channel is None or self._channel.is_closed:
                    # A buffer size of 0 means unbounded. A full frame buffer would block aiormq's reader, and with it
                    # all channels of the connection. RabbitMQ 3.10 may send a whole chunk despite the prefetch of 1.
                    self._channel = await self._amqp.channel(publisher_confirms=False, frame_buffer_size=0)
                return await first_offset(self._channel, self._reader.stream.name, offset, limit_s)
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError) as error:
            if not self._failure_logged:
                self._failure_logged = True
                _log.warning(
                    "the stream can't be probed for its end", stream=self._reader.stream.name, error=error_text(error)
                )
            self._channel = None
            raise _NoAnswerError from error


class _NoAnswerError(Exception):
    """A probe for the end of the stream failed."""


async def first_offset(
    channel: aiormq.abc.AbstractChannel, stream: str, offset: "int | Literal['next']", limit_s: float
) -> int | None:
    """Starts a second consumer at `offset`; returns the offset of the first message that it gets within `limit_s`.

    If `offset` is beyond the end of the stream, the broker delivers nothing, and the function returns None. If the
    message at `offset` was dropped, the broker starts with the next message. If an error closes the channel, the
    function raises this error.
    """
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def on_message(message: aiormq.abc.DeliveredMessage) -> None:
        if not found.done():
            found.set_result(stream_offset(message.header.properties))

    await channel.basic_qos(prefetch_count=1)
    consuming = await channel.basic_consume(stream, on_message, arguments={"x-stream-offset": offset})
    closing = channel.closing
    with suppress(TimeoutError):
        async with lag_tolerant_timeout(limit_s):
            await asyncio.wait([found, closing], return_when=asyncio.FIRST_COMPLETED)
    if closing.done():
        closing.result()
    await channel.basic_cancel(consuming.consumer_tag or "")
    return found.result() if found.done() else None
