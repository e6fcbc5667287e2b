"""The stream in which RabbitMQ keeps the history: found or made, and sounded, before each life reads it.

Any number of bridges read the same stream, and none of them changes what is there. What the broker may have lost on the
way into it, none of them can find there: whoever thinks so leaves a mark that says it, for all who read the stream, now
or later. This file must never know what becomes of a delivery.
"""

import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import aiormq
import structlog
from pamqp.common import FieldTable

from bridge.amqp import topology
from bridge.amqp.connection import Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume import stream_markers
from bridge.amqp.consume.gaps import Gaps, until_now
from bridge.amqp.consume.stream_end_probe import Sounding, not_a_stream_error, stream_permission_error
from bridge.amqp.consume.stream_position import DROPPED, REMADE, Course
from bridge.amqp.status import GapSlug, Status
from bridge.amqp.topology import Queue
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT, Timing

SLUGS = {DROPPED: GapSlug.STREAM_TRUNCATED, REMADE: GapSlug.STREAM_RECREATED}

AWAY = "the broker was away, or may have been, and may have confirmed events on its return before the stream took them"
"""RabbitMQ 3.10.8, killed and started again, did so for 0.3 s: with its listener open, and the stream's leader not
elected yet, a message for it was confirmed and dropped."""

TOKENS = 64
"""Bridges that may come back at the same time, and publish their marks more than once."""

SEGMENTS = 64
"""Files that a full stream has. What is too old, or too much, is dropped file by file, and the newest stays: few large
ones would keep far more than was asked for."""

_log = structlog.get_logger("bridge.amqp")


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


class StreamReader:
    """A stream, how far this bridge has read it, and what it may have missed there."""

    def __init__(
        self, stream: Stream, gaps: Gaps, status: Status, several_nodes: Callable[[], bool], timing: Timing = DEFAULT
    ) -> None:
        """`status` is that of the connection through which the stream is read. `several_nodes()` is asked each time,
        since a file may name others."""
        self.stream = stream
        self.course = Course(stream.window)
        self.start = 0
        """The offset to read from in this life."""
        self.proof_at: float = math.inf
        """The offset of the message that proves, when it is read, that the stream's end had been reached."""
        self._proof_s = 0.0
        self.doubtful = False
        """True where events may have been missed before this life: what it reads will say so."""
        self._gaps = gaps
        self._status = status
        self._several_nodes = several_nodes
        self._timing = timing
        self._began_s = time.monotonic()
        self._instance = secrets.token_hex(8)
        """What the tokens of this bridge's own marks begin with."""
        self._told: deque[str] = deque(maxlen=TOKENS)
        """The tokens of the last marks with a gap."""
        self._sounding: Sounding | None = None
        self._new = False
        """The stream was made in this life: nothing that was published before was on its way into it."""
        self._difference: str | None = None

    def report(self) -> dict[str, object]:
        """For `/readyz`."""
        last = self.course.last
        return {
            "stream": self.stream.name,
            "read": self.course.at_end,
            "last": last and last.sequence,
            "end": self.course.end,
        }

    async def prepare(self, amqp: Connection) -> Queue:
        """Finds or makes the stream. Raises BrokerRefusal where it can't be used. Changes nothing that is there."""
        self._new = made = await self._ensure(amqp)
        self._sounding = await Sounding.listen(amqp, self.stream.name, self._timing.marker_retry_s)
        # One that had to be made again is another one: what was read of the old one says so, before anything new.
        return Queue(self.stream.name, made and self.course.last is None)

    async def begin(self, made: bool) -> None:
        """Finds out where to begin, after `prepare`: `made` where something had to be made since the last time.

        Leaves a mark in the stream. To be called when all is ready but for that: whoever is refused behind it, again
        and again, would fill the stream with marks.
        """
        assert self._sounding is not None
        asked_s = time.monotonic()
        reason, since_s = self._reason(made), self._status.last_answered_s
        slug = GapSlug.STREAM_RECREATED if self._new else GapSlug.BROKER_AWAY
        since_s = self._began_s if since_s is None else since_s
        gap = (lambda: None) if reason is None else (lambda: until_now(since_s, reason, slug))
        end = await self._sounding.end(f"{self._instance}{secrets.token_hex(8)}", gap)
        # What may have been missed is in the stream now, for everybody: this bridge reads it there too.
        self._status.touch(asked_s)
        self._status.failed_connects = 0
        self._status.broker_may_have_restarted = False
        self.start = self.course.begin(end)
        self.proof_at = math.inf
        self.expect(end, asked_s)
        self.doubtful = reason is not None or self.course.lost is not None

    def _reason(self, made: bool) -> str | None:
        """Why events may have been lost on their way into the stream since the broker was heard last."""
        status = self._status
        if made and status.ever_connected:
            return status.error or "something had to be made again"
        if self._new:
            return None
        # Of several nodes, another one that answers says that the stream has another leader soon.
        # With one, it may be another start of it that answers, unless it has answered the first attempt.
        restarted = (
            status.ever_connected
            and (status.broker_may_have_restarted or status.attempts > 1)
            and not self._several_nodes()
        )
        return AWAY if status.failed_connects or restarted else None

    def marked(self, body: bytes) -> None:
        """Tells of the gap that a mark bears; to be called for each mark, in its place."""
        mark = stream_markers.read(body)
        if mark is None or mark.gap is None or mark.token in self._told:
            return
        self._told.append(mark.token)
        if mark.token.startswith(self._instance):
            self._gaps.tell(mark.gap)
        else:
            self._gaps.pass_on(mark.gap)

    def missed(self) -> None:
        """Tells what the course says of lost events; to be called before the first delivery behind them."""
        reason, self.course.lost = self.course.lost or "", None
        self._gaps.tell_of_loss(reason, SLUGS.get(reason, GapSlug.BROKER_AWAY))

    def expect(self, offset: int, at_s: float) -> None:
        """Notes that a reader of this offset has read all that was in the stream at `at_s` (monotonic seconds)."""
        if self.course.number >= offset:
            self._gaps.complete(at_s)
        elif self.proof_at == math.inf:
            self.proof_at, self._proof_s = offset, at_s

    def prove(self) -> None:
        """To be called when `proof_at` was read."""
        self.proof_at = math.inf
        self._gaps.complete(self._proof_s)

    def caught_up(self) -> None:
        """Says that all that was there before this bridge has been read."""
        after_s = round(time.monotonic() - self._status.since_s, 1)
        _log.info("history read", stream=self.stream.name, last=str(self.course.last), after_s=after_s)

    async def _ensure(self, amqp: Connection) -> bool:
        name = self.stream.name
        try:
            made = await topology.ensure_queue(amqp, name, self.stream.arguments)
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise stream_permission_error(
                f"configure on the queue {name!r}, which does not exist yet", error
            ) from error
        except aiormq.exceptions.ChannelLockedResource as error:
            raise not_a_stream_error(name) from error
        except aiormq.exceptions.AMQPError as error:
            words = error_text(error)
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

    async def _compare(self, amqp: Connection) -> None:
        """Says where a stream that exists keeps something else than the settings ask for; it stays what it is."""
        channel = await amqp.channel(publisher_confirms=False)
        try:
            await channel.queue_declare(self.stream.name, durable=True, arguments=self.stream.arguments)
        except aiormq.exceptions.ChannelAccessRefused:
            return  # no permission to make it, and none is needed
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            words = error_text(error)
            if "'x-queue-type'" in words:
                raise not_a_stream_error(self.stream.name) from error
            if words != self._difference:
                self._difference = words
                _log.warning("the stream exists, and keeps its own limits", stream=self.stream.name, difference=words)
            return
        await channel.close()
