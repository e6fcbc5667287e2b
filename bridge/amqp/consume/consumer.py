"""Consumes events in supervised sessions. Each session connects, sets up the topology, and consumes until it ends.

Each session has its own connection, channel and deliveries. This module does not process deliveries.
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
from bridge.amqp.connection import Connection, open_connection
from bridge.amqp.consume.consumed_queue import ConsumedQueue, ExclusiveQueue, NamedQueue, StreamQueue
from bridge.amqp.consume.delivery_counts import DeliveryCounts
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.gaps import GapReporter
from bridge.amqp.consume.repeated_failures import EarlyLosses, RepeatedFailures
from bridge.amqp.consume.session import ConsumerSession, DeliveryHandler
from bridge.amqp.consume.stall_detector import LONGEST_PAUSE_S, STALLED, StallDetector
from bridge.amqp.consume.stream_reader import StreamConfig, StreamReader
from bridge.amqp.consume.stream_session import POSSIBLE_GAP, StreamSession
from bridge.amqp.consume.topology_check import TopologyCheck
from bridge.amqp.nodes import Node, NodeRotation
from bridge.amqp.status import State, Status
from bridge.amqp.supervisor import supervise
from bridge.amqp.topology import Exchange, Topology
from bridge.amqp.wire import trace
from bridge.amqp.wire.compat import install_lenient_decoders
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.amqp")

STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """The broker and the queue or stream of a consumer."""

    nodes: Sequence[Node]
    exchanges: tuple[str, ...]
    queue: str | None
    """The name of a durable queue, or None if each connection declares an exclusive queue."""
    connection_name: str
    """The name of the connection on the broker's management page."""
    stream: StreamConfig | None = None
    """The stream to consume instead of a queue."""


class Consumer:
    """Consumes events until `stop` is called, and reconnects after each lost connection."""

    def __init__(
        self,
        config: ConsumerConfig,
        handler: DeliveryHandler,
        flow_control: FlowControl,
        metrics: Metrics,
        wait: bool,
        timing: Timing = DEFAULT,
    ) -> None:
        """If `wait` is False and the broker refuses the bridge before the first session, `run` ends."""
        install_lenient_decoders()
        self.status = Status(timing.answer_valid_s)
        self.gaps = GapReporter(handler, metrics)
        self.stream_reader = (
            None if config.stream is None else StreamReader(config.stream, self.gaps, self.status, config.nodes, timing)
        )
        self._config = config
        self._handler = handler
        self._flow_control = flow_control
        self._metrics = metrics
        self._wait = wait
        self._timing = timing
        self._stopping = asyncio.Event()
        self._queue = self._consumed_queue()
        self._delivery_counts = DeliveryCounts()
        self._session: ConsumerSession | None = None
        self._topology_check: TopologyCheck | None = None
        self._nodes = NodeRotation(config.nodes)
        self._stalls = RepeatedFailures(LONGEST_PAUSE_S)
        self._early_losses = EarlyLosses()
        self._created = False
        """True if the bridge had to declare an exchange or a queue and has not reported this declaration yet."""
        self._known_exchanges: dict[str, Exchange] = {}
        """The exchanges that the last session found.

        If one of these exchanges disappears, the bridge declares it again with exactly the same properties as before.
        """

    async def run(self) -> None:
        """Consumes until `stop` is called.

        Raises BrokerRefusal if `wait` is False and the broker refuses the bridge before any session has worked.
        """
        stable_s = self._timing.stable_s
        await supervise(self._consume, self.status, self._on_lost, self._stopping, wait=self._wait, stable_s=stable_s)

    def stop(self) -> None:
        """Makes `run` cancel the consumer, wait until its deliveries are settled, acknowledge them, and return."""
        self._stopping.set()

    @property
    def is_live(self) -> bool:
        """True while the bridge consumes and has read all messages that were in the stream before this session."""
        reader = self.stream_reader
        return self.status.state is State.WORKING and (reader is None or reader.position.at_end)

    @property
    def other_consumers(self) -> int:
        """The number of other consumers of the named queue, as the broker last reported it."""
        return 0 if self._topology_check is None else self._topology_check.other_consumers

    @property
    def warnings(self) -> list[str]:
        """Warnings for `/readyz`: what may prevent deliveries, and what the bridge can't check."""
        check = self._topology_check
        return self._early_losses.warnings + self._delivery_counts.warnings + ([] if check is None else check.warnings)

    # Sessions

    async def _consume(self) -> str:
        """Runs sessions until one ends for a reason other than a possible gap or a new stall; returns the reason.

        After a possible gap or a new stall, the next session follows at once, because the connection was not lost.
        """
        # While there is no connection, the broker may restart without the bridge noticing.
        waited = await self._stalls.wait(self._stopping) | await self._early_losses.wait(self._stopping)
        self.status.broker_may_have_restarted |= waited
        if self._stopping.is_set():
            return STOPPED
        while (reason := await self._run_session()) in (POSSIBLE_GAP, STALLED) and not self._stopping.is_set():
            reader = self.stream_reader
            if reason == STALLED and reader is not None and not self._stalls.note(reader.position.last):
                return reason
            log = _log.warning if reason == STALLED else _log.info
            log("rereading the stream from the last event", reason=reason)
        return reason

    async def _run_session(self) -> str:
        """Connects, sets up, and consumes until the session ends; returns why it ended. Raises if setting up fails."""
        config, cancellation = self._config, CancellationGuard()
        self._metrics.broker_attempts.inc()
        fast_channel = FastChannel()
        self.status.failed_connects += 1
        nodes = self._nodes.order()
        async with open_connection(nodes, config.connection_name, fast_channel, self._timing) as amqp:
            self.status.failed_connects -= 1
            try:
                async with self._nodes.setup(self._timing.setup_timeout_s):
                    session, found, closed = await self._set_up(amqp, fast_channel)
                session.open()
                self._flow_control.begin_session(fast_channel)
                cause = await self._wait_for_end(amqp, session, found, closed)
                if cause.reason == STOPPED:
                    self._flow_control.set_full(False)
                    await session.drain(self._queue.redelivers, self._timing)
            except BaseException as error:
                cause = CloseCause.of(error)
                connection_cause = await connection_close_cause(amqp, self._timing.give_up_s)
                cause = connection_cause or cause
                if connection_cause is None or isinstance(error, BrokerRefusal) or cancellation.requested:
                    raise
                raise ConnectionError(connection_cause.reason) from error
            else:
                return cause.reason
            finally:
                self._end_session(amqp, cause)
                await self._queue.leave(amqp)

    async def _set_up(
        self, amqp: Connection, fast_channel: FastChannel
    ) -> tuple[ConsumerSession, Topology, asyncio.Future[CloseCause]]:
        """Declares missing parts of the topology, and begins to consume.

        The returned future is done when the connection or the consumer is closed.
        """
        channel = await amqp.channel(publisher_confirms=False)
        prepare = functools.partial(self._queue.prepare, amqp, channel)
        found = await topology.set_up(amqp, self._config.exchanges, self._known_exchanges, prepare, self._on_created)
        self._known_exchanges = {exchange.name: exchange for exchange in found.exchanges}
        await channel.basic_qos(prefetch_count=self._flow_control.prefetch)
        if self.stream_reader is not None:
            await self.stream_reader.begin_session(self._created)
            self._created = False  # from here on, the stream reader reports what was declared
        closed = closed_future(amqp, channel)
        on_open = functools.partial(self._on_open, found, time.monotonic())
        self._session = session = self._new_session(channel, fast_channel, on_open)
        trace.channel_opened(self._config.connection_name, channel.number)
        await session.consume(found.queue, self._queue.arguments())
        return session, found, closed

    def _new_session(
        self, channel: aiormq.abc.AbstractChannel, fast_channel: FastChannel, on_open: functools.partial[None]
    ) -> ConsumerSession:
        prefetch = self._flow_control.prefetch
        if self.stream_reader is not None:
            return StreamSession(self._handler, channel, fast_channel, prefetch, on_open, self.stream_reader)
        self._delivery_counts.begin_session()
        return ConsumerSession(self._handler, channel, fast_channel, prefetch, on_open, self._delivery_counts)

    async def _wait_for_end(
        self, amqp: Connection, session: ConsumerSession, found: Topology, closed: asyncio.Future[CloseCause]
    ) -> CloseCause:
        """Waits until the session ends or the bridge stops.

        During this wait, other tasks check the topology and, if the bridge reads a stream, watch for stalls.
        """
        self._topology_check = check = TopologyCheck(
            amqp,
            found,
            self._on_answer,
            self._on_complete,
            self._flow_control,
            named=self._config.queue is not None,
            timing=self._timing,
        )
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(check.run(), name="check topology"),
            asyncio.create_task(self._stopping.wait(), name="await stop"),
        ]
        if self.stream_reader is not None:
            detector = StallDetector(amqp, self.stream_reader, self.status.touch, self._timing)
            detecting = detector.run(lambda: self._may_deliver(session))
            tasks.append(asyncio.create_task(detecting, name="detect stall"))
        ends: list[asyncio.Future[Any]] = [closed, session.failed, *tasks]
        restoring = asyncio.create_task(self._restore_prefetch(session, found), name="restore prefetch")
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            ended = [task for task in tasks if task.done()]
            if ended and not self._stopping.is_set():
                # When a connection is lost, pending requests fail first, and the cause of the loss is known a moment
                # later.
                await asyncio.wait([closed], timeout=self._timing.give_up_s)
        finally:
            for task in (*tasks, restoring):
                task.cancel()
            await asyncio.gather(*tasks, restoring, return_exceptions=True)
        if closed.done() and closed.result().reason == CANCELLED:
            reason = await topology.cancellation_reason(amqp, found.queue, self._timing.cancel_timeout_s)
            connection_cause = await connection_close_cause(amqp, self._timing.give_up_s)
            return CloseCause(reason, connection_cause is None or connection_cause.broker_stayed_up)
        if closed.done():
            return closed.result()
        if session.failed.done():
            return CloseCause(session.failed.result())
        return CloseCause(STOPPED) if self._stopping.is_set() else task_close_cause(ended[0])

    def _may_deliver(self, session: ConsumerSession) -> bool:
        """False at the prefetch limit and while reading is paused, because the broker then sends nothing anyway."""
        return session.outstanding < self._flow_control.prefetch and not self._flow_control.paused

    async def _restore_prefetch(self, session: ConsumerSession, found: Topology) -> None:
        """Restarts the consumer with the maximum prefetch when a reduced prefetch is no longer needed."""
        await self._flow_control.prefetch_restorable.wait()
        await session.cancel()
        if self.stream_reader is not None:
            self.stream_reader.continue_session()
        await session.set_prefetch(self._flow_control.max_prefetch)
        await session.consume(found.queue, self._queue.arguments())
        self._flow_control.on_prefetch_restored()

    def _end_session(self, amqp: Connection, cause: CloseCause) -> None:
        self.status.broker_may_have_restarted |= not cause.broker_stayed_up
        outstanding = 0
        session, self._session = self._session, None
        if session is not None:
            early = amqp.closing.done() and not (self._topology_check and self._topology_check.answered)
            self._early_losses.note_close(cause if early else None)
            outstanding = session.outstanding
            session.end()
            trace.channel_closed(self._config.connection_name, session.channel_number, cause.reason)
        self._flow_control.end_session(outstanding)
        self._topology_check = None
        self._handler.on_session_end()

    # Events

    def _on_created(self) -> None:
        self._created = True

    def _on_open(self, found: Topology, requested_s: float) -> None:
        """Called before the first delivery. Reports a gap if there was one, and logs that the bridge consumes."""
        status, reader = self.status, self.stream_reader
        fields = {"queue": found.queue, "exchanges": self._config.exchanges, "attempts": status.attempts}
        if status.ever_connected:
            after_s = round(time.monotonic() - status.since_s, 1)
            gap = self._created if reader is None else reader.gap_possible
            if self._created:
                # Events that were published before the queue or the exchange was declared have never reached any queue
                # of the bridge.
                self.gaps.report_loss(status.error or "")
            if status.state is not State.WORKING:
                _log.info("broker recovered", after_s=after_s, gap_possible=gap, **fields)
        else:
            _log.info("consuming", **fields)
            if reader is not None:
                _log.info("reading the history", stream=reader.stream.name, first=reader.start_offset)
        if self._created:
            self.gaps.confirm_complete(requested_s)  # the queue is new, and gets all events from now on
        self._created = False
        status.enter(State.WORKING, requested_s=requested_s)

    def _on_answer(self, requested_s: float) -> None:
        self.status.touch(requested_s)
        self._early_losses.reset()

    def _on_complete(self, requested_s: float) -> None:
        if self.stream_reader is None:
            self.gaps.confirm_complete(requested_s)

    def _on_lost(self, state: State, error: str) -> None:
        if self.status.state is State.WORKING:
            self._metrics.broker_losses.inc()
            _log.warning("broker lost", error=error)
        elif self.status.state is not state:
            _log.warning(
                "broker refuses; trying again" if state is State.REFUSED else "broker not available; trying again",
                error=error,
            )

    def _consumed_queue(self) -> ConsumedQueue:
        if self.stream_reader is not None:
            return StreamQueue(self.stream_reader)
        if self._config.queue is not None:
            return NamedQueue(self._config.queue)
        return ExclusiveQueue(self._config.exchanges, self._timing)
