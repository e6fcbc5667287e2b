"""One supervised life after another: connect, set up, consume, until something ends it; then again.

Each session has its own connection, channel and deliveries: what is left of one is never used in the
next. This file must never know what becomes of a delivery.
"""

import asyncio
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiormq
import structlog

from bridge.amqp import topology
from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.close_cause import CANCELLED, CloseCause, closed_future, connection_close_cause, task_close_cause
from bridge.amqp.connection import open_connection
from bridge.amqp.consume import queue
from bridge.amqp.consume.delivery_counts import Returns
from bridge.amqp.consume.flow_control import Intake
from bridge.amqp.consume.gaps import Gaps
from bridge.amqp.consume.queue import ConsumedQueue, ExclusiveQueue, NamedQueue, StreamQueue
from bridge.amqp.consume.restart_delay import EndsAtOnce, Repeats
from bridge.amqp.consume.session import ConsumerSession, DeliveryHandler
from bridge.amqp.consume.stream_reader import Stream, StreamReader
from bridge.amqp.consume.stream_session import DOUBTFUL, StreamSession
from bridge.amqp.consume.stream_stall import LONGEST_PAUSE_S, STALLED, StallDetector
from bridge.amqp.consume.topology_check import Watch
from bridge.amqp.nodes import Node, rotated
from bridge.amqp.status import State, Status
from bridge.amqp.supervisor import supervise
from bridge.amqp.timeouts import rpc_timeout
from bridge.amqp.topology import Exchange, Topology
from bridge.amqp.wire import compat
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.amqp")

STOPPED = "stopped"

compat.install()


@dataclass(frozen=True, slots=True)
class Source:
    """Where events come from."""

    nodes: Sequence[Node]
    exchanges: tuple[str, ...]
    queue: str | None
    """A durable queue's name; None for an exclusive one of each connection."""
    prefetch: int
    """Deliveries that may be unsettled at once: the bound of everything between broker and clients."""
    name: str
    """What the broker shows as the connection's name."""
    stream: Stream | None = None
    """What is consumed instead of a queue."""


class Consumer:
    """Consumes for as long as it runs, whatever the broker does."""

    def __init__(
        self, source: Source, handler: DeliveryHandler, metrics: Metrics, wait: bool, timing: Timing = DEFAULT
    ) -> None:
        """`wait` False lets a refusal end `run` while nothing has ever been consumed."""
        self.status = Status(timing.answer_valid_s)
        self._timing = timing
        self._source = source
        self._handler = handler
        self._metrics = metrics
        self._wait = wait
        self._stopping = asyncio.Event()
        self.gaps = Gaps(handler, metrics)
        self.history = (
            None
            if source.stream is None
            else StreamReader(source.stream, self.gaps, self.status, lambda: len(source.nodes) > 1, timing)
        )
        self._queue = self._consumed()
        self._returns = Returns()
        self._watch: Watch | None = None
        self.intake = Intake(source.prefetch)
        self._passed_over = 0
        """Set-ups that failed on a connected node. The list of nodes is rotated by this number."""
        self._stalls = Repeats(LONGEST_PAUSE_S)
        self._at_once = EndsAtOnce()
        self._made = False
        """Something had to be made at the broker, and no life has said so yet."""
        self._known: dict[str, Exchange] = {}
        """The exchanges as they last were: one that vanishes is made again as its owner made it, or not at all."""
        metrics.gauge(
            "bridge_queue_other_consumers",
            "Other consumers of the named queue of this bridge (BRIDGE_QUEUE).",
            lambda: float(self.sharing),
        )
        metrics.gauge(
            "bridge_consuming",
            "Whether the bridge consumes: 1 or 0.",
            lambda: float(self.status.state is State.WORKING),
        )

    async def run(self) -> None:
        """Consumes until `stop`. Raises BrokerRefusal where the broker refuses from the start (see `wait`)."""
        await supervise(self._consume, self.status, self._lost, self._stopping, self._wait, self._timing.stable_s)

    def stop(self) -> None:
        """Lets `run` end: cancels the consumer, waits for what is in hand to be settled, acknowledges it, closes."""
        self._stopping.set()

    @property
    def at_end(self) -> bool:
        """True while the broker is consumed from, and of a stream all is read that was there before this connection."""
        return self.status.state is State.WORKING and (self.history is None or self.history.course.at_end)

    @property
    def sharing(self) -> int:
        """How many others consume the named queue, as far as the broker knows."""
        return 0 if self._watch is None else self._watch.others

    @property
    def doubts(self) -> list[str]:
        """Warnings: what keeps events from coming, and what the bridge can't check."""
        warnings = self._returns.warnings + ([] if self._watch is None else self._watch.warnings)
        return self._at_once.warnings + warnings

    async def _consume(self) -> str:
        """Runs sessions until one ends for a reason other than a possible gap or a new stall; returns that reason.

        A session that follows at once is not counted as a loss.
        """
        # The broker may be restarted while there is no connection.
        waited = await self._stalls.wait(self._stopping) | await self._at_once.wait(self._stopping)
        self.status.broker_may_have_restarted |= waited
        if self._stopping.is_set():
            return STOPPED
        while (reason := await self._life()) in (DOUBTFUL, STALLED) and not self._stopping.is_set():
            if reason == STALLED and self.history and not self._stalls.note(self.history.course.last):
                return reason
            say = _log.warning if reason == STALLED else _log.info
            say("rereading the stream from the last event", reason=reason)
        return reason

    async def _life(self) -> str:
        source, cancellation = self._source, CancellationGuard()
        self._metrics.broker_attempts.inc()
        session = self._new_session()
        self.status.failed_connects += 1
        nodes = rotated(source.nodes, self._passed_over)
        async with open_connection(nodes, source.name, session.fast_channel, self._timing) as amqp:
            self.status.failed_connects -= 1
            try:
                try:
                    async with rpc_timeout(self._timing.setup_timeout_s):
                        found, ended = await self._set_up(amqp, session)
                except ConnectionError:
                    # This node lets the bridge in, and no further. Another one may.
                    self._passed_over += 1
                    raise
                session.open()
                self.intake.begin(session.fast_channel)
                cause = await self._ended(amqp, session, found, ended)
                if cause.reason == STOPPED:
                    self.intake.hold(False)
                    await session.finish(self._queue.comes_again, self._timing)
            except BaseException as error:
                cause = CloseCause.of(error)
                lost = await connection_close_cause(amqp, self._timing.give_up_s)
                cause = lost or cause
                if lost is None or isinstance(error, BrokerRefusal) or cancellation.requested:
                    raise
                raise ConnectionError(lost.reason) from error
            else:
                return cause.reason
            finally:
                self.status.broker_may_have_restarted |= not cause.broker_stayed_up
                if session.fast_channel.number is not None:  # it was about to consume, or has consumed
                    at_once = amqp.closing.done() and not (self._watch and self._watch.answered)
                    self._at_once.note_close(cause if at_once else None)
                self.intake.end(session.outstanding)
                session.current = False
                self._watch = None
                self._handler.on_session_end()
                await self._queue.leave(amqp)

    async def _set_up(
        self, amqp: aiormq.abc.AbstractConnection, session: ConsumerSession
    ) -> tuple[Topology, asyncio.Future[CloseCause]]:
        """Returns what is consumed from, and the future of its end."""
        source = self._source
        channel = await amqp.channel(publisher_confirms=False)
        prepare = functools.partial(self._queue.prepare, amqp, channel)
        found = await topology.set_up(amqp, source.exchanges, self._known, prepare, self._note_made)
        self._known = {exchange.name: exchange for exchange in found.exchanges}
        await channel.basic_qos(prefetch_count=self.intake.prefetch)
        if self.history is not None:
            await self.history.begin(self._made)
            self._made = False  # the stream says so now
        ended = closed_future(amqp, channel)
        # Before the first delivery: it comes right behind the broker's consent.
        asked_s = time.monotonic()
        session.on_open = lambda: self._recovered(found, asked_s)
        session.channel, session.fast_channel.number = channel, channel.number
        await queue.consume(session, found.queue, self._queue.arguments())
        return found, ended

    async def _ended(
        self,
        amqp: aiormq.abc.AbstractConnection,
        session: ConsumerSession,
        found: Topology,
        ended: asyncio.Future[CloseCause],
    ) -> CloseCause:
        """Returns when consuming is over."""
        self._watch = watch = Watch(
            amqp,
            found,
            self._heard,
            self._drained,
            lambda: self.intake.held,
            named=self._source.queue is not None,
            timing=self._timing,
        )
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(watch.run(), name="check topology"),
            asyncio.create_task(self._stopping.wait(), name="await stop"),
        ]
        if self.history is not None:
            detector = StallDetector(amqp, self.history, self.status.touch, self._timing)
            # At the prefetch limit, the broker sends nothing: this is no stall.
            detecting = detector.run(lambda: session.outstanding < self.intake.prefetch and not self.intake.held)
            tasks.append(asyncio.create_task(detecting, name="detect stall"))
        ends: list[asyncio.Future[Any]] = [ended, session.failed, *tasks]
        tasks.append(asyncio.create_task(self._restore_prefetch(session, found), name="restore prefetch"))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            over = [task for task in tasks[:-1] if task.done()]
            if over and not self._stopping.is_set():
                # A pending request fails first. The reason for the close is known only after that.
                await asyncio.wait([ended], timeout=self._timing.give_up_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if ended.done() and ended.result().reason == CANCELLED:
            reason = await topology.cancellation_reason(amqp, found.queue, self._timing.cancel_timeout_s)
            lost = await connection_close_cause(amqp, self._timing.give_up_s)
            return CloseCause(reason, lost is None or lost.broker_stayed_up)
        if ended.done():
            return ended.result()
        if session.failed.done():
            return CloseCause(session.failed.result())
        return CloseCause(STOPPED) if self._stopping.is_set() else task_close_cause(over[0])

    def _heard(self, asked_s: float) -> None:
        self.status.touch(asked_s)
        self._at_once.reset()

    async def _restore_prefetch(self, session: ConsumerSession, found: Topology) -> None:
        """Consumes anew, on the same channel, when a reduced prefetch is no longer needed."""
        await self.intake.relieved.wait()
        assert session.channel is not None
        await session.channel.basic_cancel(session.consumer_tag)
        if self.history is not None:
            self.history.start = self.history.course.number + 1
        await session.channel.basic_qos(prefetch_count=self.intake.most)
        await queue.consume(session, found.queue, self._queue.arguments())
        self.intake.restore()

    def _drained(self, asked_s: float) -> None:
        if self.history is None:
            self.gaps.complete(asked_s)  # what was published before is here

    def _consumed(self) -> ConsumedQueue:
        if self.history is not None:
            return StreamQueue(self.history)
        if self._source.queue is not None:
            return NamedQueue(self._source.queue)
        return ExclusiveQueue(self._source.exchanges, self._timing)

    def _new_session(self) -> ConsumerSession:
        if self.history is None:
            self._returns.begin()
            return ConsumerSession(self._handler, self.intake.prefetch, returns=self._returns)
        return StreamSession(self._handler, self.intake.prefetch, self.history)

    def _note_made(self) -> None:
        self._made = True

    def _recovered(self, found: Topology, asked_s: float) -> None:
        status = self.status
        fields = {"queue": found.queue, "exchanges": self._source.exchanges, "attempts": status.attempts}
        if status.ever_connected:
            after_s = round(time.monotonic() - status.since_s, 1)
            gap = self._made if self.history is None else self.history.doubtful
            if self._made:
                # What was published meanwhile went to nobody's queue, unless the queue was there all the time.
                self.gaps.tell_of_loss(status.error or "")
            if status.state is not State.WORKING:
                _log.info("broker recovered", after_s=after_s, gap_possible=gap, **fields)
        else:
            _log.info("consuming", **fields)
            if self.history is not None:
                _log.info("reading the history", stream=self.history.stream.name, first=self.history.start)
        if self._made:
            self.gaps.complete(asked_s)  # the queue is new, and bound
        self._made = False
        status.enter(State.WORKING, asked_s=asked_s)

    def _lost(self, state: State, error: str) -> None:
        if self.status.state is State.WORKING:
            self._metrics.broker_losses.inc()
            _log.warning("broker lost", error=error)
        elif self.status.state is not state:
            _log.warning(
                "broker refuses; trying again" if state is State.REFUSED else "broker not available; trying again",
                error=error,
            )
