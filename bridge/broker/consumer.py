"""One supervised life after another: connect, set up, consume, until something ends it; then again.

Each life has a connection, a channel and an epoch of deliveries of its own: what is left of one is never used in the
next. This file must never know what becomes of a delivery.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiormq
import structlog
from pamqp import commands
from pamqp.common import FieldTable

from bridge.broker import decoding, topology
from bridge.broker.epoch import Epoch, Recipient
from bridge.broker.gaps import Gaps, until_now
from bridge.broker.life import keep_alive
from bridge.broker.link import Node, answering, connected, end_of, sentence
from bridge.broker.reading import DOUBTFUL, ReadingEpoch
from bridge.broker.stall import STALLED, StallDetector, Stalls
from bridge.broker.status import State, Status
from bridge.broker.stream import Stream, StreamReader
from bridge.broker.topology import Exchange, Topology
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.broker")

decoding.install()


@dataclass(frozen=True, slots=True)
class Source:
    """Where events come from."""

    nodes: tuple[Node, ...]
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
        self, source: Source, recipient: Recipient, metrics: Metrics, wait: bool, timing: Timing = DEFAULT
    ) -> None:
        """`wait` False lets a refusal end `run` while nothing has ever been consumed."""
        self.status = Status(timing.proof_valid_s)
        self._timing = timing
        self._source = source
        self._recipient = recipient
        self._metrics = metrics
        self._wait = wait
        self._stopping = asyncio.Event()
        self.on_epoch_over: Callable[[], None] = lambda: None
        """Called when deliveries that are not settled have become the broker's again."""
        self.gaps = Gaps(recipient, metrics)
        self.history = (
            None
            if source.stream is None
            else StreamReader(source.stream, self.gaps, self.status, len(source.nodes) > 1, timing)
        )
        self.sharing = 0
        """How many others consume the named queue, as far as the broker knows."""
        self.unproven: tuple[str, ...] = ()
        """Exchanges that are bound to the queue by somebody else, or not at all."""
        self._stalls = Stalls()
        self._made = False
        """Something had to be made at the broker, and no life has said so yet."""
        self._known: dict[str, Exchange] = {}
        """The exchanges as they last were: one that vanishes is made again as its owner made it, or not at all."""
        self._priority = 0
        """Of the newest consumer of a named queue."""
        metrics.watch(
            "bridge_queue_others", "Others that consume this bridge's named queue.", lambda: float(self.sharing)
        )
        metrics.watch(
            "bridge_consuming", "1 while the bridge consumes.", lambda: float(self.status.state is State.WORKING)
        )

    async def run(self) -> None:
        """Consumes until `stop`. Raises BrokerRefusal where the broker refuses from the start (see `wait`)."""
        await keep_alive(self._consume, self.status, self._lost, self._stopping, self._wait, self._timing.stable_s)

    def stop(self) -> None:
        """Lets `run` end: cancels the consumer, waits for what is in hand to be settled, acknowledges it, closes."""
        self._stopping.set()

    @property
    def at_end(self) -> bool:
        """True while the broker is consumed from, and of a stream all is read that was there before this connection."""
        return self.status.state is State.WORKING and (self.history is None or self.history.course.at_end)

    async def _consume(self) -> str:
        """Runs sessions until one ends for a reason other than a possible gap or a new stall; returns that reason.

        A session that follows at once is not counted as a loss.
        """
        await self._stalls.wait(self._stopping)
        while (reason := await self._life()) in (DOUBTFUL, STALLED) and not self._stopping.is_set():
            if reason == STALLED and self.history and not self._stalls.note(self.history.course.last):
                return reason
            say = _log.warning if reason == STALLED else _log.info
            say("rereading the stream from the last event", reason=reason)
        return reason

    async def _life(self) -> str:
        source = self._source
        self._metrics.broker_attempts.inc()
        epoch = self._epoch()
        self.status.unreached += 1
        async with connected(source.nodes, source.name, epoch.lane, self._timing) as amqp:
            self.status.unreached -= 1
            tasks: list[asyncio.Task[object]] = []
            try:
                async with answering(self._timing.setup_timeout_s):
                    channel = await amqp.channel(publisher_confirms=False)
                    watcher = await amqp.channel(publisher_confirms=False)
                    prepare = functools.partial(self._prepare, amqp, channel)
                    found = await topology.set_up(amqp, source.exchanges, self._known, prepare, self._note_made)
                    self._known = {exchange.name: exchange for exchange in found.exchanges}
                    await channel.basic_qos(prefetch_count=source.prefetch)
                    if self.history is not None:
                        await self.history.begin(self._made)
                        self._made = False  # the stream says so now
                    ended = end_of(amqp, channel)
                    # Before the first delivery: it comes right behind the broker's consent.
                    epoch.on_open = lambda: self._recovered(found)
                    epoch.lane.channel = channel.number
                    consuming = await self._begin(channel, found.queue)
                epoch.open()
                tasks = [
                    asyncio.create_task(self._watch(watcher, found), name="check topology"),
                    asyncio.create_task(self._stopping.wait(), name="await stop"),
                ]
                if self.history is not None:
                    course, start = self.history.course, self.history.start
                    detector = StallDetector(amqp, found.queue, course, start, self.status.prove, self._timing)
                    # At the prefetch limit, the broker sends nothing: this is no stall.
                    detecting = detector.run(lambda: epoch.outstanding < source.prefetch)
                    tasks.append(asyncio.create_task(detecting, name="detect stall"))
                ends: list[asyncio.Future[Any]] = [ended, epoch.failed, *tasks]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for end in (ended, epoch.failed):
                    if end.done():
                        return end.result()
                if self._stopping.is_set():
                    await self._finish(channel, consuming.consumer_tag or "", epoch)
                    return "stopped"
                return next(_failure(task) for task in tasks if task.done())
            finally:
                epoch.current = False
                self.sharing = 0
                self.on_epoch_over()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _epoch(self) -> Epoch:
        if self.history is None:
            return Epoch(self._recipient, self._source.prefetch)
        return ReadingEpoch(self._recipient, self._source.prefetch, self.history)

    def _note_made(self) -> None:
        self._made = True

    async def _prepare(
        self, amqp: aiormq.abc.AbstractConnection, channel: aiormq.abc.AbstractChannel
    ) -> topology.Queue:
        if self.history is not None:
            return await self.history.prepare(amqp)
        if self._source.queue is not None:
            return await topology.named_queue(amqp, self._source.queue)
        return await topology.exclusive_queue(channel)

    async def _begin(self, channel: aiormq.abc.AbstractChannel, queue: str) -> commands.Basic.ConsumeOk:
        arguments: FieldTable | None = None
        if self.history is not None:
            arguments = {"x-stream-offset": self.history.start}
        elif self._source.queue is not None:
            # The newest connection comes first. A broker that still believes in an old one, half open, would otherwise
            # give it every other event, to keep until three heartbeats are over.
            self._priority = max(self._priority + 1, time.time_ns() // 1_000_000)
            arguments = {"x-priority": self._priority}
        try:
            return await channel.basic_consume(queue, _never, arguments=arguments)
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            if "x-priority" in sentence(error):
                # It would give what is published from now on, and never what was published meanwhile.
                raise BrokerRefusal(
                    f"the queue {queue!r} is a stream, which keeps nothing back for a bridge that is away; set "
                    f"BRIDGE_HISTORY=stream and BRIDGE_HISTORY_STREAM={queue} instead of BRIDGE_QUEUE"
                ) from error
            raise
        except aiormq.exceptions.ChannelAccessRefused as error:
            if "in exclusive use" in sentence(error):
                raise  # somebody else's, for as long as they are there
            raise topology.lacking(error) from error

    async def _watch(self, channel: aiormq.abc.AbstractChannel, found: Topology) -> None:
        """Looks at the topology again and again; raises when something is missing, or the broker does not answer."""
        while True:
            await asyncio.sleep(self._timing.check_interval_s)
            async with answering(self._timing.check_timeout_s):
                consumers = await topology.check(channel, found)
            self.status.prove()
            if self._source.queue is not None:
                self._count_others(consumers - 1)

    def _count_others(self, others: int) -> None:
        if others > 0 and not self.sharing:
            _log.error(
                "others consume this bridge's queue, and each event goes to one of them only; give every bridge a "
                "BRIDGE_QUEUE of its own (right after a lost connection it may be its own old one, and passes)",
                queue=self._source.queue,
                others=others,
            )
        elif others <= 0 and self.sharing:
            _log.info("nobody else consumes this bridge's queue any more", queue=self._source.queue)
        self.sharing = max(0, others)

    async def _finish(self, channel: aiormq.abc.AbstractChannel, consumer_tag: str, epoch: Epoch) -> None:
        try:
            await channel.basic_cancel(consumer_tag, timeout=self._timing.cancel_timeout_s)
        except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
            _log.warning("the broker did not confirm the end of consuming", error=sentence(error))
            return
        # No delivery comes any more.
        epoch.settled.clear()
        if epoch.outstanding:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.settle_timeout_s):
                    await epoch.settled.wait()
        epoch.acknowledge()
        if epoch.outstanding:
            # They are rejects. Those of an exclusive queue go with it, and a stream gives nothing twice that was read:
            # lost, where nobody else publishes them yet.
            _log.warning(
                "stopped with unsettled deliveries",
                deliveries=epoch.outstanding,
                kept_by_the_broker=self._source.queue is not None,
            )

    def _recovered(self, found: Topology) -> None:
        status = self.status
        fields = {"queue": found.queue, "exchanges": self._source.exchanges, "attempts": status.attempts}
        if status.worked:
            after_s = round(time.monotonic() - status.since_s, 1)
            gap = self._made if self.history is None else self.history.doubtful
            if self._made and status.proven_s is not None:
                # What was published meanwhile went to nobody's queue, unless the queue was there all the time.
                self.gaps.tell(until_now(status.proven_s, status.error or ""))
            if status.state is not State.WORKING:
                _log.info("broker recovered", after_s=after_s, gap_possible=gap, **fields)
        else:
            _log.info("consuming", **fields)
            if self.history is not None:
                _log.info("reading the history", stream=self.history.stream.name, first=self.history.start)
        self.unproven = found.unproven
        if found.unproven:
            _log.warning(topology.UNPROVEN, queue=found.queue, exchanges=found.unproven)
        self._made = False
        status.enter(State.WORKING)

    def _lost(self, state: State, error: str) -> None:
        if self.status.state is State.WORKING:
            self._metrics.broker_losses.inc()
            _log.warning("broker lost", error=error)
        elif self.status.state is not state:
            _log.warning(
                "broker refuses; trying again" if state is State.REFUSED else "broker not available; trying again",
                error=error,
            )


async def _never(message: aiormq.abc.DeliveredMessage) -> None:
    """What aiormq would call for a delivery, if one came past the lane."""
    raise AssertionError("a delivery went past its lane")


def _failure(task: "asyncio.Task[object]") -> str:
    error = None if task.cancelled() else task.exception()
    return sentence(error) if error is not None else "the channel was closed"
