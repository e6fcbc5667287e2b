"""Rejected events on their way out: to an exchange of their own, with the reasons in headers, confirmed.

On a connection of its own: a broker that is short of memory or disk blocks connections that publish, whole. What can't
be published is held, unacknowledged, until it can; the consumer's prefetch bounds how much that may be.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from weakref import WeakValueDictionary

import aiormq
import structlog
from pamqp import commands
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from bridge.broker import topology
from bridge.broker.consumer import Delivery
from bridge.broker.life import cancelled_from_outside, keep_alive
from bridge.broker.link import SETUP_TIMEOUT_S, Backoff, Node, connected, end_of, sentence
from bridge.broker.status import State, Status
from bridge.contract.pipeline import Rejected
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics

CONFIRM_TIMEOUT_S = 30.0
"""For the broker's confirm. Longer than a pause of it should be: after this the event is published a second time."""

MAX_HEADER_BYTES = 100_000
"""Of a message's properties: they must fit into one AMQP frame, of 128 KiB unless the broker is told otherwise."""

RETRY_S = 5.0
"""The longest pause before an event that was not confirmed is published again."""

QUEUE_ARGUMENTS: FieldTable = {"x-max-length-bytes": 256 * 1024 * 1024}
"""Of the rejects' queue: the oldest go first. Rejects are there to be looked at, not to fill the broker's disk."""

_log = structlog.get_logger("bridge.rejects")


class Rejects:
    """Publishes rejected events, and settles each once the broker has confirmed it."""

    def __init__(
        self, nodes: Sequence[Node], exchange: str | None, instance: str, metrics: Metrics, wait: bool
    ) -> None:
        """`exchange` None only counts; `instance` goes into the headers; `wait` as for the consumer."""
        self.status = Status()
        self._nodes = nodes
        self._exchange = exchange
        self._instance = instance
        self._metrics = metrics
        self._wait = wait
        self._channel: asyncio.Future[aiormq.abc.AbstractChannel] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[str] | None = None
        """Of the channel: done when it, or its connection, is over."""
        self._publishing: dict[asyncio.Task[None], Delivery] = {}
        self._of_this_id: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
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
        del self._publishing[task]
        if not self._publishing and self._channel.done():
            # Nothing is held any more, be it that the broker took it all back.
            self._confirmed()

    def forget_stale(self) -> None:
        """Gives up what the broker has taken back: it delivers it again."""
        for task, delivery in tuple(self._publishing.items()):
            if not delivery.current:
                task.cancel()

    async def run(self) -> None:
        """Keeps a channel to publish on until `stop`. Raises BrokerRefusal as the consumer does."""
        if self._exchange is not None:
            await keep_alive(self._keep_channel, self.status, self._lost, self._stopping, self._wait)

    def stop(self) -> None:
        """Lets `run` end."""
        self._stopping.set()

    async def close(self) -> None:
        """Gives up what still waits: the broker keeps it."""
        tasks = tuple(self._publishing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_channel(self) -> str:
        assert self._exchange is not None
        async with connected(self._nodes, f"edk-bridge rejects@{self._instance}") as amqp:
            try:
                async with asyncio.timeout(SETUP_TIMEOUT_S):
                    channel = await amqp.channel(publisher_confirms=True)
                    await topology.ensure_exchange(amqp, self._exchange)
                    await topology.ensure_queue(amqp, self._exchange, QUEUE_ARGUMENTS)
                    await channel.queue_bind(self._exchange, self._exchange)
            except aiormq.exceptions.ChannelAccessRefused as error:
                raise BrokerRefusal(
                    f"rejected events can't be published to {self._exchange!r}: {sentence(error)}; grant that, name "
                    "another exchange in BRIDGE_REJECT_EXCHANGE, or set it to off to only count them"
                ) from error
            self._channel.set_result(channel)
            self.status.worked = True
            if not self._publishing:
                # Otherwise the first confirm says whether it works.
                self._confirmed()
            ended = end_of(amqp, channel)
            self._ended = ended
            stopping = asyncio.create_task(self._stopping.wait(), name="await stop")
            try:
                await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                self._withdraw(channel)
            return ended.result() if ended.done() else "stopped"

    async def _publish(self, delivery: Delivery, rejected: Rejected) -> None:
        properties = self._properties(delivery, rejected)
        # aiormq tells which of its publishes the broker returned by the message id alone: two of the same id at once,
        # and one that nobody got would count as confirmed.
        lock = (
            self._of_this_id.setdefault(properties.message_id, asyncio.Lock())
            if properties.message_id
            else nullcontext()
        )
        async with lock:
            await self._publish_until_confirmed(delivery, properties)

    async def _publish_until_confirmed(self, delivery: Delivery, properties: commands.Basic.Properties) -> None:
        pauses = Backoff(longest_s=RETRY_S)
        while True:
            channel = await asyncio.shield(self._channel)
            try:
                await channel.basic_publish(
                    delivery.body,
                    exchange=self._exchange or "",
                    routing_key=delivery.routing_key,
                    properties=properties,
                    mandatory=True,
                    timeout=CONFIRM_TIMEOUT_S,
                )
            except (Exception, asyncio.CancelledError) as error:
                # However it fails, it is tried again: aiormq raises a bare Exception, or a cancellation that nobody
                # asked for, where the connection is lost at the wrong moment.
                if cancelled_from_outside():
                    raise
                self._unconfirmed(channel, error)
                await asyncio.sleep(pauses.pause_s())
            else:
                self._confirmed()
                delivery.settle()
                return

    def _unconfirmed(self, channel: aiormq.abc.AbstractChannel, error: BaseException) -> None:
        if isinstance(error, aiormq.exceptions.PublishError):
            reason = "no queue is bound to the exchange"
            self._withdraw(channel, reason)
        elif isinstance(error, aiormq.exceptions.DeliveryError):
            reason = "the broker does not take it (nack): a queue that is full, perhaps"
        elif isinstance(error, TimeoutError):
            reason = f"no confirm within {CONFIRM_TIMEOUT_S:g} s"
        else:
            reason = sentence(error)
        self._lost(State.LOST, reason)
        self.status.enter(State.LOST, reason)

    def _confirmed(self) -> None:
        if self.status.state is State.WORKING:
            return
        if self.status.state is not State.CONNECTING:
            after_s = round(time.monotonic() - self.status.since_s, 1)
            _log.info("rejected events are published again", after_s=after_s, waiting=self.waiting)
        self.status.enter(State.WORKING)

    def _withdraw(self, channel: aiormq.abc.AbstractChannel, reason: str | None = None) -> None:
        """Lets nobody publish on this channel any more; with a reason, sets everything up anew for that."""
        if self._channel.done() and self._channel.result() is channel:
            self._channel = asyncio.get_running_loop().create_future()
            if reason is not None and self._ended is not None and not self._ended.done():
                self._ended.set_result(reason)

    def _properties(self, delivery: Delivery, rejected: Rejected) -> commands.Basic.Properties:
        """The message's own properties, and the reasons among its headers."""
        came = delivery.properties
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
        # What the broker or the library takes from nobody but the sender: said, but not sent again.
        for name in ("user_id", "cluster_id"):
            if values[name]:
                reasons[f"x-reject-{name.replace('_', '-')}"] = values[name]
            values[name] = "" if name == "cluster_id" else None
        if values["delivery_mode"] not in (None, 1, 2):
            values["delivery_mode"] = None
        values["headers"] = {**(came.headers or {}), **reasons}
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
            say("rejected events can't be published; they are held", error=error, waiting=self.waiting)
