"""Declares the stream in which RabbitMQ keeps the history, chooses where a session starts to read, and reports gaps.

Any number of bridges can read the same stream, because reading does not change the stream. A reader can't see events
that the broker lost on their way into the stream. A bridge that suspects a loss of events therefore publishes a marker
that reports the gap to all present and future readers of the stream.
"""

import math
import secrets
import time
from collections import deque
from collections.abc import Sized
from dataclasses import dataclass

import aiormq
import structlog
from pamqp.common import FieldTable

from bridge.amqp import topology
from bridge.amqp.connection import Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume import stream_markers
from bridge.amqp.consume.gaps import GapReporter, gap_until_now
from bridge.amqp.consume.stream_end_probe import StreamEndProbe, not_a_stream_error, stream_permission_error
from bridge.amqp.consume.stream_position import RECREATED, TRUNCATED, StreamPosition
from bridge.amqp.status import GapSlug, Status
from bridge.amqp.topology import Queue
from bridge.contract.update_id import UpdateId
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT, Timing

SLUGS = {TRUNCATED: GapSlug.STREAM_TRUNCATED, RECREATED: GapSlug.STREAM_RECREATED}

AWAY = "the broker was or may have been away; on its return, it may have confirmed events that the stream did not get"
"""After it was killed and restarted, RabbitMQ 3.10.8 drops events for 0.3 s.

In the 0.3 s after its restart, the broker accepts connections, but the stream has no leader. Until the stream has a
leader, the broker confirms messages for the stream, but drops them.
"""

TOKENS = 64
"""The number of marker tokens to remember: more than the number of bridges that may reconnect at the same time."""

SEGMENTS = 64
"""The number of segment files of a full stream.

The broker drops only whole segments, and never drops the newest segment. With only a few large segments, the broker
would keep far more than the limits allow.
"""

_log = structlog.get_logger("bridge.amqp")


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """The name and the limits of a stream, and how far before its end the bridge starts to read."""

    name: str
    max_age_s: float
    max_bytes: int
    window: int
    """When a bridge starts, it begins to read this number of offsets before the end of the stream."""

    @property
    def arguments(self) -> FieldTable:
        """The arguments with which the stream is declared."""
        return {
            "x-queue-type": "stream",
            "x-max-age": f"{math.ceil(self.max_age_s)}s",
            "x-max-length-bytes": self.max_bytes,
            "x-stream-max-segment-size-bytes": self.max_bytes // SEGMENTS,
        }


class StreamReader:
    """A stream, the position of this bridge in the stream, and the events that the bridge may have missed."""

    def __init__(
        self, stream: StreamConfig, gaps: GapReporter, status: Status, nodes: Sized, timing: Timing = DEFAULT
    ) -> None:
        """`status` is the status of the connection that reads the stream. The length of `nodes` can change."""
        self.stream = stream
        self.position = StreamPosition(stream.window)
        self.start_offset = 0
        """The offset from which this session reads."""
        self.expected_end: float = math.inf
        """The offset of the stream's end at a known time, or infinity if no end is known (see `expect_end`)."""
        self._expected_end_s = 0.0
        self.gap_possible = False
        """True if events may have been missed before this session.

        During the session, the possibly missed events are reported as a gap.
        """
        self._gaps = gaps
        self._status = status
        self._nodes = nodes
        self._timing = timing
        self._created_s = time.monotonic()
        self._instance = secrets.token_hex(8)
        """The first half of the token in each of this bridge's own markers."""
        self._reported_tokens: deque[str] = deque(maxlen=TOKENS)
        """The tokens of the last markers that reported a gap.

        A marker that was published twice is recognized by its token.
        """
        self._end_probe: StreamEndProbe | None = None
        self._declared_now = False
        """True if this session had to declare the stream. A newly declared stream lacks all earlier events."""
        self._logged_difference: str | None = None

    def report(self) -> dict[str, object]:
        """Returns the part of the `/readyz` answer that describes the stream."""
        last = self.position.last
        return {
            "stream": self.stream.name,
            "read": self.position.at_end,
            "last": last and last.sequence,
            "end": self.position.end,
        }

    # The start of a session

    async def prepare(self, amqp: Connection) -> Queue:
        """Declares the stream if it does not exist. Raises BrokerRefusal if the stream can't be used."""
        self._declared_now = declared = await self._ensure(amqp)
        self._end_probe = await StreamEndProbe.listen(amqp, self.stream.name, self._timing.marker_retry_s)
        # If the bridge has already read another stream of this name, `self.position` reports that the events of that
        # stream are lost.
        return Queue(self.stream.name, declared and self.position.last is None)

    async def begin_session(self, created: bool) -> None:
        """Finds the end of the stream and the offset to start from.

        `created` is True if an exchange, a queue or a stream had to be declared since the last session. Must be called
        after all requests that the broker can refuse. Each call publishes a marker: if the broker refused a later
        request in every session, the stream would fill with markers.
        """
        assert self._end_probe is not None
        requested_s = time.monotonic()
        reason, since_s = self._gap_reason(created), self._status.last_answered_s
        slug = GapSlug.STREAM_RECREATED if self._declared_now else GapSlug.BROKER_AWAY
        since_s = self._created_s if since_s is None else since_s
        gap = (lambda: None) if reason is None else (lambda: gap_until_now(since_s, reason, slug))
        end = await self._end_probe.end(f"{self._instance}{secrets.token_hex(8)}", gap)
        # The marker with the gap is now in the stream, so this bridge reads it like all other readers.
        self._status.touch(requested_s)
        self._status.failed_connects = 0
        self._status.broker_may_have_restarted = False
        self.start_offset = self.position.begin_session(end)
        self.expected_end = math.inf
        self.expect_end(end, requested_s)
        self.gap_possible = reason is not None or self.position.loss is not None

    def continue_session(self) -> None:
        """Called before the session starts another consumer.

        The new consumer will start after the last message that was read.
        """
        self.start_offset = self.position.offset + 1

    def _gap_reason(self, created: bool) -> str | None:
        """Returns why the stream may have lost events since the broker's last answer, or None if it lost none."""
        status = self._status
        if created and status.ever_connected:
            return status.error or "an exchange, a queue or a stream was missing"
        if self._declared_now:
            return None
        # If a cluster node restarts, another node answers, and the stream soon has another leader. If a broker with a
        # single node did not answer the first attempt, it may have been restarted.
        restarted = status.ever_connected and (status.broker_may_have_restarted or status.attempts > 1)
        return AWAY if status.failed_connects or (restarted and len(self._nodes) <= 1) else None

    # Messages of the stream

    def on_marker(self, body: bytes, update_id: UpdateId) -> bool:
        """Passes the gap in a marker on to the handler, with the marker's id, unless the handler already has this gap.

        Returns whether the gap was passed on.
        """
        marker = stream_markers.decode(body)
        if marker is None or marker.gap is None or marker.token in self._reported_tokens:
            return False
        self._reported_tokens.append(marker.token)
        if marker.token.startswith(self._instance):
            self._gaps.report(marker.gap, update_id)
        else:
            self._gaps.forward(marker.gap, update_id)
        return True

    def report_loss(self) -> None:
        """Called before the first delivery after a loss that `self.position` has found.

        Reports the loss to the handler. The id of the gap is from before the delivery, because all bridges that have
        the delivery can resume there.
        """
        reason, delivery_id = self.position.take_loss(), self.position.last
        assert delivery_id is not None
        self._gaps.report_loss(reason, SLUGS.get(reason, GapSlug.BROKER_AWAY), delivery_id._replace(before=True))

    def expect_end(self, offset: int, at_s: float) -> None:
        """Records that all messages published before `at_s` (monotonic seconds) have offsets up to `offset`."""
        if self.position.offset >= offset:
            self._gaps.confirm_complete(at_s)
        elif self.expected_end == math.inf:
            self.expected_end, self._expected_end_s = offset, at_s

    def on_expected_end(self) -> None:
        """Must be called when the message at `expected_end` has been read."""
        self.expected_end = math.inf
        self._gaps.confirm_complete(self._expected_end_s)

    def log_caught_up(self) -> None:
        """Logs that all messages that were in the stream before the bridge started have been read."""
        after_s = round(time.monotonic() - self._status.since_s, 1)
        _log.info("history read", stream=self.stream.name, last=str(self.position.last), after_s=after_s)

    # Declaration

    async def _ensure(self, amqp: Connection) -> bool:
        """Declares the stream if it is missing; returns whether it was missing. Never changes an existing stream."""
        name = self.stream.name
        try:
            declared = await topology.ensure_queue(amqp, name, self.stream.arguments)
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise stream_permission_error(
                f"configure on the queue {name!r}, which does not exist yet", error
            ) from error
        except aiormq.exceptions.ChannelLockedResource as error:
            raise not_a_stream_error(name) from error
        except aiormq.exceptions.AMQPError as error:
            text = error_text(error)
            # RabbitMQ before 3.9 does not know the queue type `stream`. RabbitMQ before 3.11 closes the connection if
            # streams are disabled.
            if "x-queue-type" in text or "feature flag" in text:
                raise BrokerRefusal(
                    f"the broker can't declare the stream {name!r}, which needs RabbitMQ 3.9 or newer, with its "
                    f"feature flag stream_queue (rabbitmqctl enable_feature_flag stream_queue): {text}"
                ) from error
            raise
        if not declared:
            await self._compare(amqp)
        return declared

    async def _compare(self, amqp: Connection) -> None:
        """Logs how an existing stream differs from the settings. Raises BrokerRefusal if the queue is not a stream."""
        channel = await amqp.channel(publisher_confirms=False)
        try:
            await channel.queue_declare(self.stream.name, durable=True, arguments=self.stream.arguments)
        except aiormq.exceptions.ChannelAccessRefused:
            return  # the stream exists, so the bridge does not need the permission to declare it
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            text = error_text(error)
            if "'x-queue-type'" in text:
                raise not_a_stream_error(self.stream.name) from error
            if text != self._logged_difference:
                self._logged_difference = text
                _log.warning("the existing stream keeps its own limits", stream=self.stream.name, difference=text)
            return
        await channel.close()
