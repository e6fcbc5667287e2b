"""Rejected events on their way out: to an exchange of their own, with the reasons in headers, confirmed.

What can't be published is held, unacknowledged, until it can; the consumer's prefetch bounds how much that may be. A
lost connection gives it back to a named queue; an exclusive one is gone, and what is held here is all there is of it.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence

import aiormq
import structlog
from pamqp.common import FieldTable

from bridge.amqp import timeouts, topology
from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.session import Delivery
from bridge.amqp.nodes import Node
from bridge.amqp.publish.confirm_channel import ConfirmChannel, Unconfirmed, Unrouted
from bridge.amqp.rejects.properties import reject_properties
from bridge.amqp.rejects.retry_queue import LONGEST_OWN_S, RetryQueue
from bridge.amqp.status import State, Status
from bridge.amqp.supervisor import supervise
from bridge.backoff import Backoff
from bridge.contract.pipeline import Rejected
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing

HELD_BYTES = 24 * 1024 * 1024
"""Bytes of held rejected events at which the bridge stops reading from the broker. Lost sessions may leave as many
again. One more event is always taken, whatever its size."""

QUEUE_ARGUMENTS: FieldTable = {"x-queue-type": "classic", "x-max-length-bytes": 256 * 1024 * 1024}
"""Of the rejects' queue: the oldest go first. Rejects are there to be looked at, not to fill the broker's disk.

Classic, whatever the virtual host's default: a quorum queue drops what was looked at too often, from RabbitMQ 4 on
after 20 times."""

_log = structlog.get_logger("bridge.rejects")


class RejectPublisher:
    """Publishes rejected events, and settles each once the broker has confirmed it."""

    def __init__(
        self,
        nodes: Sequence[Node],
        exchange: str | None,
        instance: str,
        metrics: Metrics,
        wait: bool,
        most_kept: int | None = None,
        timing: Timing = DEFAULT,
    ) -> None:
        """`exchange` None only counts; `instance` goes into the headers; `wait` as for the consumer.

        `most_kept` bounds the events that are held although their connection is lost; None where they come again.
        """
        self.status = Status(timing.answer_valid_s)
        self._outlet = ConfirmChannel(nodes, f"edk-bridge rejects@{instance}", self._set_up, timing)
        self._timing = timing
        self._exchange = exchange
        self._instance = instance
        self._metrics = metrics
        self._wait = wait
        self._publishing: dict[asyncio.Task[None], Delivery] = {}
        self._held_bytes = 0
        """Of the bodies that are held and belong to the consumer's present session."""
        self.on_held: Callable[[bool], None] = lambda held: None
        """Called with True when HELD_BYTES are held, and with False when there is room again."""
        self._retries = RetryQueue()
        self._most_kept = most_kept
        self._outlet.on_blocked = self._blocked
        self._stopping = asyncio.Event()
        self._logged: State | None = None
        """The last state that was logged, or None after a recovery. A recovery is logged only if its loss was."""
        metrics.gauge(
            "bridge_rejects_waiting",
            "Rejected events that RabbitMQ has not confirmed yet.",
            lambda: len(self._publishing),
        )

    @property
    def waiting(self) -> int:
        """Rejected events that are not confirmed yet."""
        return len(self._publishing)

    @property
    def unpublishable(self) -> bool:
        """Whether RabbitMQ refuses or blocks rejected events now. A lost connection does not count."""
        return self._refuses(self.status.state)

    def reject(self, delivery: Delivery, rejected: Rejected) -> None:
        """Takes over a delivery: it is settled when the broker has confirmed the rejected event."""
        self._metrics.rejects.labels(rejected.reason.value).inc()
        if self._exchange is None:
            delivery.settle()
            return
        task = asyncio.create_task(self._publish(delivery, rejected), name="reject")
        # The loop itself refers to a task only weakly.
        self._publishing[task] = delivery
        task.add_done_callback(self._done)
        self._hold(len(delivery.body))

    def _done(self, task: asyncio.Task[None]) -> None:
        delivery = self._publishing.pop(task)
        if delivery.current:
            self._hold(-len(delivery.body))
        if not task.cancelled() and (error := task.exception()) is not None:
            # One event less, and said so, rather than a bridge that waits for it for ever.
            _log.error("a rejected event could not be published, and is lost", exc_info=error)
            self._metrics.rejects_lost.inc()
            delivery.settle()
        if not self._publishing and self._outlet.open and not self._outlet.blocked and not self._stopping.is_set():
            # Nothing is held any more, be it that the broker took it all back.
            self._working("no rejected event is held any more")

    def on_session_end(self) -> None:
        """To be called when deliveries that are not settled are no longer the bridge's: gives up what comes again."""
        self._held_bytes = 0
        stale = [task for task, delivery in self._publishing.items() if not delivery.current]
        if self._most_kept is None:
            given_up = stale
        else:
            kept_bytes = 0
            given_up = []
            for number, task in enumerate(reversed(stale), 1):
                kept_bytes += len(self._publishing[task].body)
                if number > self._most_kept or (kept_bytes > HELD_BYTES and number > 1):
                    given_up.append(task)
            self._lose(len(given_up), "too many rejected events are held; the oldest are lost")
        for task in given_up:
            task.cancel()

    def _hold(self, added: int) -> None:
        before, self._held_bytes = self._held_bytes, self._held_bytes + added
        if (before < HELD_BYTES) != (self._held_bytes < HELD_BYTES):
            self.on_held(self._held_bytes >= HELD_BYTES)

    def _lose(self, events: int, phrase: str) -> None:
        if events:
            self._metrics.rejects_lost.inc(events)
            _log.error(phrase, events=events)

    async def run(self) -> None:
        """Keeps a channel to publish on until `stop`. Raises BrokerRefusal as the consumer does."""
        if self._exchange is not None:
            await supervise(
                lambda: self._outlet.live(self._stopping, self._opened),
                self.status,
                self._lost,
                self._stopping,
                self._wait,
                self._timing.stable_s,
            )

    def stop(self) -> None:
        """Lets `run` end."""
        self._stopping.set()

    async def close(self) -> None:
        """Gives up what still waits: a named queue keeps it."""
        tasks = tuple(self._publishing)
        if self._most_kept is not None:
            self._lose(len(tasks), "stopped with rejected events that could not be published; they are lost")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set_up(self, amqp: Connection, channel: Channel) -> None:
        assert self._exchange is not None
        try:
            await topology.ensure_exchange(amqp, self._exchange)
            await topology.ensure_queue(amqp, self._exchange, QUEUE_ARGUMENTS)
            await channel.queue_bind(self._exchange, self._exchange, topology.ROUTING_KEY)
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(
                f"rejected events can't be published to {self._exchange!r}: {error_text(error)}; grant that "
                "(configure, write and read on the exchange and the queue of this name), name another exchange in "
                "BRIDGE_REJECT_EXCHANGE, or set it to off to only count them"
            ) from error

    def _opened(self) -> None:
        self.status.ever_connected = True
        if not self._publishing:
            # Otherwise the first confirm says whether it works.
            self._working("rejected events can be published again")

    def _blocked(self) -> None:
        if self._outlet.blocked is not None:
            self._failed(f"the broker takes nothing to publish: {self._outlet.blocked}")
        elif not self._publishing:
            self._working("rejected events can be published again")

    async def _publish(self, delivery: Delivery, rejected: Rejected) -> None:
        came = delivery.properties.decode()
        properties = functools.partial(reject_properties, came, delivery.exchange, rejected, self._instance)
        pauses = Backoff(longest_s=LONGEST_OWN_S)
        while True:
            watching = asyncio.create_task(self._watch(), name="await confirm")
            try:
                await self._outlet.publish(
                    delivery.body, self._exchange or "", delivery.routing_key, properties, came.message_id
                )
            except Unconfirmed as error:
                # However it fails, it is tried again. Why a channel has ended is for `run` to say: here, less is known.
                if isinstance(error, Unrouted) or not error.channel.is_closed:
                    self._failed(str(error))
                if isinstance(error, Unrouted):
                    self._outlet.renew(error.channel, str(error))
                self._retries.failed()
            else:
                self._working("rejected events are published again")
                self._retries.confirmed()
                delivery.settle()
                return
            finally:
                watching.cancel()
            await self._retries.wait(pauses)

    async def _watch(self) -> None:
        """Says again and again that a confirm is missed, whatever others say meanwhile."""
        limit_s = self._timing.confirm_warning_s
        while True:
            await timeouts.lag_tolerant_sleep(limit_s)
            if self._outlet.open and not self._outlet.blocked:
                self._failed(f"no confirm within {limit_s:g} s: the broker may be short of memory or disk")

    def _failed(self, reason: str) -> None:
        self._lost(State.LOST, reason)
        self.status.enter(State.LOST, reason)

    def _working(self, phrase: str) -> None:
        if self.status.state is State.WORKING:
            return
        if self._logged is not None:
            after_s = round(time.monotonic() - self.status.since_s, 1)
            _log.info(phrase, after_s=after_s, waiting=self.waiting)
            self._logged = None
        self.status.enter(State.WORKING)

    def _lost(self, state: State, error: str) -> None:
        # A connection that is lost while no event is held delays no event.
        if state is self._logged or not (self.waiting or self._refuses(state)):
            return
        self._logged = state
        say = _log.warning if self.waiting or state is State.REFUSED else _log.info
        held, none = (
            "rejected events can't be published; they are held",
            "rejected events can't be published; none is held",
        )
        say(held if self.waiting else none, error=error, waiting=self.waiting)

    def _refuses(self, state: State) -> bool:
        return state is State.REFUSED or self._outlet.blocked is not None
