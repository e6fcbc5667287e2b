"""One supervised life after another: connect, set up, consume, until something ends it; then again.

A delivery goes to the recipient at once and in order; whoever got it says `settle()` when nothing more is to be done,
and the acknowledgements follow in runs. This file must never know what becomes of a delivery.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import aiormq
import structlog

from bridge.broker import decoding, topology
from bridge.broker.lane import Content, Lane
from bridge.broker.life import keep_alive
from bridge.broker.link import SETUP_TIMEOUT_S, Node, connected, end_of, sentence
from bridge.broker.settlement import Settlement
from bridge.broker.status import State, Status
from bridge.metrics import Metrics

CHECK_INTERVAL_S = 1.5
"""How often the topology is looked at. A handful of small requests; it is what finds an exchange that was made anew.

And what the library takes for a sign of life: under load the broker sends no heartbeats, and deliveries go past it."""

CHECK_TIMEOUT_S = 20.0
"""A busy broker may take its time: giving up on it would cost an exclusive queue's messages."""

CANCEL_TIMEOUT_S = 2.0
"""For the broker to confirm that it sends no more. One that is stopped never does."""

SETTLE_TIMEOUT_S = 3.0
"""For what is in hand when the bridge stops. What is not settled then stays with the broker."""

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


class Delivery:
    """A message, and the duty to settle it once."""

    __slots__ = ("_epoch", "body", "content", "exchange", "received_s", "redelivered", "routing_key", "tag")

    def __init__(
        self,
        epoch: "_Epoch",
        tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        content: Content,
        body: bytes,
        received_s: float,
    ) -> None:
        self._epoch = epoch
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.content = content
        self.body = body
        self.received_s = received_s
        """When it came (monotonic seconds)."""

    @property
    def current(self) -> bool:
        """False once its channel is gone: the broker has taken the message back, and will deliver it again."""
        return self._epoch.current

    def settle(self) -> None:
        """Nothing more is to be done: the broker may forget the message."""
        self._epoch.settle(self.tag)


class Recipient(Protocol):
    """Who gets the deliveries."""

    def deliver(self, delivery: Delivery) -> None:
        """Takes a delivery, at once and in order. Must not raise."""

    def flush(self) -> None:
        """Called after the last of the deliveries that came together: nothing more is to be waited for."""


class _Epoch:
    """One channel's deliveries, from consuming to its end."""

    def __init__(self, recipient: Recipient, prefetch: int) -> None:
        self.lane = Lane(self._receive, self._received)
        self.current = True
        self.settled = asyncio.Event()
        """Set when there was nothing left to acknowledge."""
        self._settlement = Settlement(patience=prefetch // 2)
        self._due = False
        self._deliver = recipient.deliver
        self._flush = recipient.flush
        self._loop = asyncio.get_running_loop()

    @property
    def outstanding(self) -> int:
        """Deliveries that are not settled."""
        return self._settlement.outstanding

    def _receive(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, content: Content, body: bytes
    ) -> None:
        if not self.current:
            return  # it could not be acknowledged any more, and comes again: nobody needs it twice
        self._due = True  # see _received
        self._settlement.deliver(tag)
        received_s = time.monotonic()
        self._deliver(Delivery(self, tag, redelivered, exchange, routing_key, content, body, received_s))

    def _received(self) -> None:
        # All in the turn of the loop that brought it. Alone, an update leaves at once; what comes faster than it can be
        # sent comes in larger reads, and leaves in fewer writes. Another turn, be it for the acknowledgement alone,
        # would cost each update 40 microseconds, with 1000 clients half a percent of all (`make bench`, paced).
        self._flush()
        self.acknowledge()

    def settle(self, tag: int) -> None:
        self._settlement.settle(tag)
        if not self._due:
            self._due = True
            self._loop.call_soon(self.acknowledge)

    def acknowledge(self) -> None:
        """Sends what may be acknowledged, in one piece."""
        self._due = False
        if self.current:
            self.lane.acknowledge(self._settlement.take())
            if not self.outstanding:
                self.settled.set()


class Consumer:
    """Consumes for as long as it runs, whatever the broker does."""

    def __init__(self, source: Source, recipient: Recipient, metrics: Metrics, wait: bool) -> None:
        """`wait` False lets a refusal end `run` while nothing has ever been consumed."""
        self.status = Status()
        self._source = source
        self._recipient = recipient
        self._metrics = metrics
        self._wait = wait
        self._stopping = asyncio.Event()
        self.on_epoch_over: Callable[[], None] = lambda: None
        """Called when deliveries that are not settled have become the broker's again."""
        metrics.watch(
            "bridge_consuming", "1 while the bridge consumes.", lambda: float(self.status.state is State.WORKING)
        )

    async def run(self) -> None:
        """Consumes until `stop`. Raises BrokerRefusal where the broker refuses from the start (see `wait`)."""
        await keep_alive(self._consume, self.status, self._lost, self._stopping, self._wait)

    def stop(self) -> None:
        """Lets `run` end: cancels the consumer, waits for what is in hand to be settled, acknowledges it, closes."""
        self._stopping.set()

    async def _consume(self) -> str:
        """One life. Returns what ended it, in the broker's words."""
        source = self._source
        self._metrics.broker_attempts.inc()
        epoch = _Epoch(self._recipient, source.prefetch)
        async with connected(source.nodes, source.name, epoch.lane) as amqp:
            tasks: list[asyncio.Task[object]] = []
            try:
                async with asyncio.timeout(SETUP_TIMEOUT_S):
                    channel = await amqp.channel(publisher_confirms=False)
                    watcher = await amqp.channel(publisher_confirms=False)
                    queue = await topology.set_up(amqp, channel, source.exchanges, source.queue)
                    await channel.basic_qos(prefetch_count=source.prefetch)
                    ended = end_of(amqp, channel)
                    # Before the first delivery: it comes right behind the broker's consent.
                    epoch.lane.channel = channel.number
                    consuming = await channel.basic_consume(queue, _never)
                self._recovered(queue)
                tasks = [
                    asyncio.create_task(self._watch(watcher, queue), name="check topology"),
                    asyncio.create_task(self._stopping.wait(), name="await stop"),
                ]
                ends: list[asyncio.Future[Any]] = [ended, *tasks]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    return ended.result()
                if self._stopping.is_set():
                    await self._finish(channel, consuming.consumer_tag or "", epoch)
                    return "stopped"
                return next(_failure(task) for task in tasks if task.done())
            finally:
                epoch.current = False
                self.on_epoch_over()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, channel: aiormq.abc.AbstractChannel, queue: str) -> None:
        """Looks at the topology again and again; raises when something is missing, or the broker does not answer."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await topology.check(channel, self._source.exchanges, queue)
            self.status.prove()

    async def _finish(self, channel: aiormq.abc.AbstractChannel, consumer_tag: str, epoch: _Epoch) -> None:
        try:
            await channel.basic_cancel(consumer_tag, timeout=CANCEL_TIMEOUT_S)
        except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
            _log.warning("the broker did not confirm the end of consuming", error=sentence(error))
            return
        # No delivery comes any more.
        epoch.settled.clear()
        if epoch.outstanding:
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    await epoch.settled.wait()
        epoch.acknowledge()
        if epoch.outstanding:
            _log.warning("stopped with unsettled deliveries; the broker keeps them", deliveries=epoch.outstanding)

    def _recovered(self, queue: str) -> None:
        status = self.status
        fields = {"queue": queue, "exchanges": self._source.exchanges, "attempts": status.attempts}
        if status.worked:
            after_s = round(time.monotonic() - status.since_s, 1)
            # What was published meanwhile went to nobody's queue, unless the queue was there all the time.
            _log.info("broker recovered", after_s=after_s, gap_possible=self._source.queue is None, **fields)
        else:
            _log.info("consuming", **fields)
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
    if isinstance(error, TimeoutError):
        return f"the broker has not answered for {CHECK_TIMEOUT_S:g} s"
    return sentence(error) if error is not None else "the channel was closed"
