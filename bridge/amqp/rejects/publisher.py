"""Publishes rejected events to a separate exchange, with the reason in headers, and waits for the confirms.

If a rejected event can't be published, the bridge holds the event unsettled until publishing works again. The prefetch
of the consumer limits the number of held events. When the consumer's connection is lost, a named queue delivers its
events again, so the held events are dropped. The broker deletes an exclusive queue when the connection is lost. The
held events from such a queue then exist only in the bridge, so the bridge keeps them.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import aiormq
import structlog
from pamqp import commands
from pamqp.common import FieldTable

from bridge import logs
from bridge.amqp import topology
from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.session import Delivery
from bridge.amqp.nodes import Node
from bridge.amqp.publish.confirm_channel import ConfirmChannel, Unconfirmed, Unrouted
from bridge.amqp.rejects.properties import reject_properties
from bridge.amqp.rejects.retry_queue import MAX_OWN_PAUSE_S, RetryQueue
from bridge.amqp.status import State, Status
from bridge.amqp.timeouts import lag_tolerant_sleep
from bridge.backoff import Backoff
from bridge.contract.pipeline import Rejected
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing

MAX_HELD_BYTES = 24 * 1024 * 1024
"""The total size of held events, in bytes, at which the bridge stops reading from the broker.

Events that are still held from ended sessions may take up the same amount of memory again. The event that makes the
total exceed the limit is still accepted, whatever its size.
"""

QUEUE_ARGUMENTS: FieldTable = {"x-queue-type": "classic", "x-max-length-bytes": 256 * 1024 * 1024}
"""The arguments of the queue of rejected events.

The oldest events are dropped first, so that rejected events don't fill the broker's disk. The queue is classic even if
the virtual host's default is another type, because since RabbitMQ 4, a quorum queue drops an event that was read 20
times without an acknowledgement.
"""

_LOGGER = "bridge.rejects"
_log = structlog.get_logger(_LOGGER)


class FlowControl(Protocol):
    """The part of the consumer that stops reading while too many rejected events are held."""

    def set_full(self, full: bool) -> None:
        """Called with True when the held events reach MAX_HELD_BYTES, and with False when there is room again."""


class RejectPublisher:
    """Publishes rejected events, and settles each delivery as soon as the broker has confirmed its event.

    Owns the channel on which rejected events are published.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        exchange: str | None,
        instance: str,
        flow_control: FlowControl,
        metrics: Metrics,
        wait: bool,
        max_kept: int | None = None,
        timing: Timing = DEFAULT,
    ) -> None:
        """Without an `exchange`, rejected events are only counted.

        `instance` is the name of this bridge, for a header of the rejected events.

        `wait` has the same meaning as in `supervise`. `max_kept` is the maximum number of events that stay held after
        their session has ended. If `max_kept` is None, the events of ended sessions are dropped, because the broker
        delivers them again.
        """
        self.status = Status(timing.answer_valid_s)
        self._stopping = asyncio.Event()
        self._channel = ConfirmChannel(
            nodes, f"edk-bridge rejects@{instance}", self, self.status, self._stopping, timing
        )
        self._timing = timing
        self._exchange = exchange
        self._instance = instance
        self._metrics = metrics
        self._wait = wait
        self._unconfirmed: dict[asyncio.Task[None], Delivery] = {}
        self._held_bytes = 0
        """The total size, in bytes, of the held events from the current session of the consumer."""
        self._flow_control = flow_control
        self._retries = RetryQueue()
        self._max_kept = max_kept
        self._logged: State | None = None
        """The state that the last logged failure reported, or None after a recovery.

        A recovery is logged only if the failure before it was logged.
        """
        self._traces = logs.traces(_LOGGER)
        metrics.gauge(
            "bridge_rejects_waiting",
            "Rejected events that RabbitMQ has not confirmed yet.",
            lambda: len(self._unconfirmed),
        )

    @property
    def waiting(self) -> int:
        """The number of rejected events that are not confirmed yet."""
        return len(self._unconfirmed)

    @property
    def unpublishable(self) -> bool:
        """True while RabbitMQ refuses or blocks rejected events. A lost connection does not count as a refusal."""
        return self._is_refused(self.status.state)

    # Life cycle

    async def run(self) -> None:
        """Keeps a channel open until `stop` is called. Raises BrokerRefusal in the same cases as `supervise`."""
        if self._exchange is not None:
            await self._channel.run(wait=self._wait)

    def stop(self) -> None:
        """Ends `run`."""
        self._stopping.set()

    async def close(self) -> None:
        """Drops the rejected events that are not confirmed yet.

        Events from a named queue are not lost: the broker still has them.
        """
        tasks = tuple(self._unconfirmed)
        if self._max_kept is not None:
            self._count_lost(len(tasks), "stopped with rejected events that could not be published; they are lost")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Events

    def reject(self, delivery: Delivery, rejected: Rejected) -> None:
        """Takes over a delivery, and settles it when the broker has confirmed the rejected event."""
        self._metrics.rejects.labels(rejected.reason.value).inc()
        if self._exchange is None:
            delivery.settle()
            return
        task = asyncio.create_task(self._publish(delivery, rejected), name="reject")
        # The task is stored, because the event loop itself has only a weak reference to it.
        self._unconfirmed[task] = delivery
        task.add_done_callback(self._on_published)
        self._add_held_bytes(len(delivery.body))

    def on_session_end(self) -> None:
        """Called at the end of a consumer session. Drops the session's events if the broker delivers them again."""
        self._held_bytes = 0
        stale = [task for task, delivery in self._unconfirmed.items() if not delivery.current]
        if self._max_kept is None:
            given_up = stale
        else:
            kept_bytes = 0
            given_up = []
            for number, task in enumerate(reversed(stale), 1):
                kept_bytes += len(self._unconfirmed[task].body)
                if number > self._max_kept or (kept_bytes > MAX_HELD_BYTES and number > 1):
                    given_up.append(task)
            self._count_lost(len(given_up), "too many rejected events are held; the oldest are lost")
        for task in given_up:
            task.cancel()

    async def _publish(self, delivery: Delivery, rejected: Rejected) -> None:
        original = delivery.properties.decode()
        fields = {"reason": rejected.reason.value, "tag": delivery.tag, "bytes": len(delivery.body)}

        def properties(frame_max: int) -> commands.Basic.Properties:
            return reject_properties(original, delivery.exchange, rejected, self._instance, frame_max)

        def trace(published: commands.Basic.Properties) -> None:
            fields["message_id"] = published.message_id or ""
            _log.debug("reject published", **fields)

        pauses = Backoff(longest_s=MAX_OWN_PAUSE_S)
        while True:
            warning = asyncio.create_task(self._warn_while_unconfirmed(), name="await confirm")
            try:
                await self._channel.publish(
                    delivery.body,
                    self._exchange or "",
                    delivery.routing_key,
                    properties,
                    original.message_id,
                    trace if self._traces else None,
                )
            except Unconfirmed as error:
                # Each failure is followed by another attempt. If the channel was closed, `run` knows the reason and
                # reports it.
                if isinstance(error, Unrouted) or not error.channel.is_closed:
                    self._fail(str(error))
                if isinstance(error, Unrouted):
                    self._channel.reset(error.channel, str(error))
                self._retries.failed()
            else:
                if self._traces:
                    _log.debug("reject confirmed", **fields)
                self._recover("rejected events are published again")
                self._retries.confirmed()
                delivery.settle()
                return
            finally:
                warning.cancel()
            await self._retries.wait(pauses)

    def _on_published(self, task: asyncio.Task[None]) -> None:
        delivery = self._unconfirmed.pop(task)
        if delivery.current:
            self._add_held_bytes(-len(delivery.body))
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lost event is settled too, because an unsettled delivery would use up a part of the prefetch forever.
            _log.error("a rejected event could not be published, and is lost", exc_info=error)
            self._metrics.rejects_lost.inc()
            delivery.settle()
        can_publish = self._channel.is_open and not self._channel.blocked
        if not self._unconfirmed and can_publish and not self._stopping.is_set():
            # No event is held any more: each one was published, was lost, or will be delivered again.
            self._recover("no rejected event is held any more")

    def _add_held_bytes(self, added: int) -> None:
        before, self._held_bytes = self._held_bytes, self._held_bytes + added
        if (before < MAX_HELD_BYTES) != (self._held_bytes < MAX_HELD_BYTES):
            self._flow_control.set_full(self._held_bytes >= MAX_HELD_BYTES)

    def _count_lost(self, events: int, phrase: str) -> None:
        if events:
            self._metrics.rejects_lost.inc(events)
            _log.error(phrase, events=events)

    # The channel

    async def set_up(self, amqp: Connection, channel: Channel) -> None:
        """Declares the exchange and the queue of rejected events, and binds the queue. Raises BrokerRefusal."""
        assert self._exchange is not None
        try:
            await topology.ensure_exchange(amqp, self._exchange)
            await topology.ensure_queue(amqp, self._exchange, QUEUE_ARGUMENTS)
            await channel.queue_bind(self._exchange, self._exchange, topology.ROUTING_KEY)
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(
                f"rejected events can't be published to {self._exchange!r}: {error_text(error)}; grant configure, "
                "write and read on the exchange and the queue of this name, name another exchange in "
                "BRIDGE_REJECT_EXCHANGE, or set it to off to only count them; see REJECTS in "
                "docker/rabbitmq/permissions.sh"
            ) from error

    def on_open(self) -> None:
        """Sets the status `working` if no event is held.

        If events are held, the status changes to `working` only at the first confirm.
        """
        self.status.ever_connected = True
        if not self._unconfirmed:
            self._recover("rejected events can be published again")

    def on_blocked(self, reason: str | None) -> None:
        """Sets the status `lost` while the broker accepts no messages."""
        if reason is not None:
            self._fail(f"the broker accepts no messages: {reason}")
        elif not self._unconfirmed:
            self._recover("rejected events can be published again")

    def on_lost(self, state: State, reason: str) -> None:
        """Logs only the first of several equal failures. Logs a lost connection only if it delays an event."""
        if state is self._logged or not (self.waiting or self._is_refused(state)):
            return
        self._logged = state
        log = _log.warning if self.waiting or state is State.REFUSED else _log.info
        held, none_held = (
            "rejected events can't be published; they are held",
            "rejected events can't be published; none is held",
        )
        log(held if self.waiting else none_held, error=reason, waiting=self.waiting)

    async def _warn_while_unconfirmed(self) -> None:
        """Repeats the warning while a confirm is missing, because the confirm of another event ends the warning."""
        limit_s = self._timing.confirm_warning_s
        while True:
            await lag_tolerant_sleep(limit_s)
            if self._channel.is_open and not self._channel.blocked:
                self._fail(f"no confirm within {limit_s:g} s: the broker may be short of memory or disk")

    def _fail(self, reason: str) -> None:
        self.on_lost(State.LOST, reason)
        self.status.enter(State.LOST, reason)

    def _recover(self, phrase: str) -> None:
        if self.status.state is State.WORKING:
            return
        if self._logged is not None:
            after_s = round(time.monotonic() - self.status.since_s, 1)
            _log.info(phrase, after_s=after_s, waiting=self.waiting)
            self._logged = None
        self.status.enter(State.WORKING)

    def _is_refused(self, state: State) -> bool:
        return state is State.REFUSED or self._channel.blocked is not None
