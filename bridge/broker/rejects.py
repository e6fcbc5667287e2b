"""Rejected events on their way out: to an exchange of their own, with the reasons in headers, confirmed.

What can't be published is held, unacknowledged, until it can; the consumer's prefetch bounds how much that may be. A
lost connection gives it back to a named queue; an exclusive one is gone, and what is held here is all there is of it.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import aiormq
import structlog
from pamqp import commands
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from bridge.backoff import Backoff
from bridge.broker import topology
from bridge.broker.epoch import Delivery
from bridge.broker.life import keep_alive
from bridge.broker.link import Node, sentence
from bridge.broker.outlet import Channel, Outlet, Unconfirmed, Unrouted
from bridge.broker.retries import LONGEST_OWN_S, Retries
from bridge.broker.status import State, Status
from bridge.contract.pipeline import Rejected
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing

MAX_HEADER_BYTES = 100_000
"""Of a message's properties: they must fit into one AMQP frame, of 128 KiB unless the broker is told otherwise."""

QUEUE_ARGUMENTS: FieldTable = {"x-queue-type": "classic", "x-max-length-bytes": 256 * 1024 * 1024}
"""Of the rejects' queue: the oldest go first. Rejects are there to be looked at, not to fill the broker's disk.

Classic, whatever the virtual host's default: a quorum queue drops what was looked at too often, from RabbitMQ 4 on
after 20 times."""

_log = structlog.get_logger("bridge.rejects")


class Rejects:
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
        self.status = Status(timing.proof_valid_s)
        self._outlet = Outlet(nodes, f"edk-bridge rejects@{instance}", self._set_up, timing)
        self._timing = timing
        self._exchange = exchange
        self._instance = instance
        self._metrics = metrics
        self._wait = wait
        self._publishing: dict[asyncio.Task[None], Delivery] = {}
        self._retries = Retries()
        self._most_kept = most_kept
        self._outlet.on_blocked = self._blocked
        self._stopping = asyncio.Event()
        metrics.watch("bridge_rejects_waiting", "Rejected events not confirmed yet.", lambda: len(self._publishing))

    @property
    def waiting(self) -> int:
        """Rejected events that are not confirmed yet."""
        return len(self._publishing)

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

    def _done(self, task: asyncio.Task[None]) -> None:
        delivery = self._publishing.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # One event less, and said so, rather than a bridge that waits for it for ever.
            _log.error("a rejected event could not be published, and is lost", exc_info=error)
            self._metrics.rejects_lost.inc()
            delivery.settle()
        if not self._publishing and self._outlet.open and not self._outlet.blocked and not self._stopping.is_set():
            # Nothing is held any more, be it that the broker took it all back.
            self._working("no rejected event is held any more")

    def epoch_over(self) -> None:
        """To be called when deliveries that are not settled are no longer the bridge's: gives up what comes again."""
        stale = [task for task, delivery in self._publishing.items() if not delivery.current]
        if self._most_kept is None:
            given_up = stale
        else:
            given_up = stale[: max(0, len(stale) - self._most_kept)]
            self._lose(len(given_up), "too many rejected events are held; the oldest are lost")
        for task in given_up:
            task.cancel()

    def _lose(self, events: int, phrase: str) -> None:
        if events:
            self._metrics.rejects_lost.inc(events)
            _log.error(phrase, events=events)

    async def run(self) -> None:
        """Keeps a channel to publish on until `stop`. Raises BrokerRefusal as the consumer does."""
        if self._exchange is not None:
            await keep_alive(
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

    async def _set_up(self, amqp: aiormq.abc.AbstractConnection, channel: Channel) -> None:
        assert self._exchange is not None
        try:
            await topology.ensure_exchange(amqp, self._exchange)
            await topology.ensure_queue(amqp, self._exchange, QUEUE_ARGUMENTS)
            await channel.queue_bind(self._exchange, self._exchange, topology.ROUTING_KEY)
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(
                f"rejected events can't be published to {self._exchange!r}: {sentence(error)}; grant that "
                "(configure, write and read on the exchange and the queue of this name), name another exchange in "
                "BRIDGE_REJECT_EXCHANGE, or set it to off to only count them"
            ) from error

    def _opened(self) -> None:
        self.status.worked = True
        if not self._publishing:
            # Otherwise the first confirm says whether it works.
            self._working("rejected events can be published again")

    def _blocked(self) -> None:
        if self._outlet.blocked is not None:
            self._failed(f"the broker takes nothing to publish: {self._outlet.blocked}")
        elif not self._publishing:
            self._working("rejected events can be published again")

    async def _publish(self, delivery: Delivery, rejected: Rejected) -> None:
        properties = self._properties(delivery, rejected)
        pauses = Backoff(longest_s=LONGEST_OWN_S)
        while True:
            watching = asyncio.create_task(self._watch(), name="await confirm")
            try:
                await self._outlet.publish(delivery.body, self._exchange or "", delivery.routing_key, properties)
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
            await asyncio.sleep(limit_s)
            if self._outlet.open and not self._outlet.blocked:
                self._failed(f"no confirm within {limit_s:g} s: the broker may be short of memory or disk")

    def _failed(self, reason: str) -> None:
        self._lost(State.LOST, reason)
        self.status.enter(State.LOST, reason)

    def _working(self, phrase: str) -> None:
        if self.status.state is State.WORKING:
            return
        if self.status.state is not State.CONNECTING:
            after_s = round(time.monotonic() - self.status.since_s, 1)
            _log.info(phrase, after_s=after_s, waiting=self.waiting)
        self.status.enter(State.WORKING)

    def _properties(self, delivery: Delivery, rejected: Rejected) -> commands.Basic.Properties:
        """The message's own properties, and the reasons among its headers."""
        came = delivery.content.properties
        reasons: FieldTable = {
            "x-reject-reason": rejected.reason.value,
            "x-reject-detail": rejected.detail,
            "x-reject-pointer": rejected.pointer,
            "x-reject-schema": rejected.schema,
            "x-reject-exchange": delivery.exchange,
            "x-reject-instance": self._instance,
            "x-reject-time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        values = {name: getattr(came, name) for name in commands.Basic.Properties.attributes()}
        # What the broker or the library takes from nobody but the sender, and what would end the reject before anybody
        # has looked at it: said, but not sent again.
        for name in ("user_id", "cluster_id", "expiration"):
            if values[name]:
                reasons[f"x-reject-{name.replace('_', '-')}"] = values[name]
            values[name] = "" if name == "cluster_id" else None
        if values["delivery_mode"] not in (None, 1, 2):
            values["delivery_mode"] = None
        # An event that was rejected before, and is still, or that would pass for one: the reasons are ours.
        own = {name: value for name, value in (came.headers or {}).items() if not name.startswith("x-reject-")}
        values["headers"] = {**own, **reasons}
        with suppress(Exception):  # a value that can be read, but not written: there is no bound to what they raise
            properties = commands.Basic.Properties(**values)
            # A header frame that the broker would not take closes the connection, for ever again.
            if len(ContentHeader(0, len(delivery.body), properties).marshal()) <= MAX_HEADER_BYTES:
                return properties
        reasons["x-reject-headers"] = "the event's own properties are left out: they can't be published again"
        return commands.Basic.Properties(headers=dict(reasons), message_type=came.message_type, delivery_mode=2)

    def _lost(self, state: State, error: str) -> None:
        if self.status.state is not state:
            say = _log.warning if self.waiting or state is State.REFUSED else _log.info
            held, none = (
                "rejected events can't be published; they are held",
                "rejected events could not be published now",
            )
            say(held if self.waiting else none, error=error, waiting=self.waiting)
