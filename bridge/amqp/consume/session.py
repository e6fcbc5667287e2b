"""One channel's deliveries, from consuming to its end.

A delivery goes to the handler at once and in order; whoever got it says `settle()` when nothing more is to be done,
and the acknowledgements follow in runs. This file must never know what becomes of a delivery.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import aiormq
import structlog

from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.delivery_counts import Returns
from bridge.amqp.status import Gap
from bridge.amqp.timeouts import lag_tolerant_timeout, rpc_timeout
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.amqp.wire.properties import MessageProperties
from bridge.amqp.wire.settlement import Settlement
from bridge.contract.update_id import UpdateId
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.amqp")


class Delivery:
    """A message, and the duty to settle it once."""

    __slots__ = ("_session", "body", "exchange", "id", "properties", "received_s", "redelivered", "routing_key", "tag")

    def __init__(
        self,
        session: "ConsumerSession",
        tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        properties: MessageProperties,
        body: bytes,
        received_s: float,
        known_as: UpdateId | None = None,
    ) -> None:
        self._session = session
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        self.received_s = received_s
        """When it came (monotonic seconds)."""
        self.id = known_as
        """Its own in its stream; None outside of streams."""

    @property
    def current(self) -> bool:
        """False once its channel is gone: the broker has taken the message back, and will deliver it again."""
        return self._session.current

    def settle(self) -> None:
        """Nothing more is to be done: the broker may forget the message."""
        self._session.settle(self.tag)


class DeliveryHandler(Protocol):
    """What a consumer calls with the deliveries of all its sessions, in order."""

    def deliver(self, delivery: Delivery) -> None:
        """Takes a delivery. Must not raise."""

    def flush(self) -> None:
        """Called after the last delivery of a read from the broker: no more deliveries are due."""

    def record_id(self, update_id: UpdateId) -> None:
        """Called for a message in the stream that is no event."""

    def on_caught_up(self) -> None:
        """Called once, when all messages that were in the stream before the bridge started have been delivered."""

    def on_gap(self, gap: Gap) -> None:
        """Called before the first delivery after a gap, in which events may have been missed."""

    def on_session_end(self) -> None:
        """Called when unsettled deliveries belong to the broker again."""


class ConsumerSession:
    """One channel's deliveries, from consuming to its end."""

    def __init__(
        self,
        handler: DeliveryHandler,
        prefetch: int,
        read: Callable[[bytes], MessageProperties] = MessageProperties,
        returns: Returns | None = None,
    ) -> None:
        """`read` reads a message's properties; `returns` is told of what was delivered before."""
        self.fast_channel = FastChannel(self._receive_first, self._received, read)
        self.current = True
        self.on_open: Callable[[], None] = lambda: None
        """Called before the first delivery (see `open`)."""
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the deliveries make no sense any more, with the reason."""
        self.channel: aiormq.abc.AbstractChannel | None = None
        """The channel that consumes, and as whom."""
        self.consumer_tag = ""
        self.settled = asyncio.Event()
        """Set when there was nothing left to acknowledge."""
        self._returns = returns or Returns()
        self._settlement = Settlement(prefetch)
        self._due = False
        self._deliver = handler.deliver
        self._flush = handler.flush
        self._loop = asyncio.get_running_loop()

    @property
    def outstanding(self) -> int:
        """Deliveries that are not settled."""
        return self._settlement.outstanding

    def open(self) -> None:
        """To be called when the broker has agreed to deliver; the first delivery may be here before its consent."""
        if self.fast_channel.receive == self._receive_first:
            self.fast_channel.receive = self._receive
            self.on_open()

    def _receive_first(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
    ) -> None:
        self.open()
        self._receive(tag, redelivered, exchange, routing_key, properties, body)

    def _receive(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
    ) -> None:
        if not self.current:
            return  # it could not be acknowledged any more, and comes again: nobody needs it twice
        self._due = True  # see _received
        self._settlement.deliver(tag)
        if redelivered:
            self._returns.note(tag, properties)
        received_s = time.monotonic()
        self._deliver(Delivery(self, tag, redelivered, exchange, routing_key, properties, body, received_s))

    def _received(self) -> None:
        # All in the turn of the loop that brought it. Alone, an update leaves at once; what comes faster than it can be
        # sent comes in larger reads, and leaves in fewer writes. Another turn, be it for the acknowledgement alone,
        # would cost each update 40 microseconds, with 1000 clients half a percent of all (`make bench`, paced).
        self._flush()
        self.acknowledge()

    def settle(self, tag: int) -> None:
        self._settlement.settle(tag)
        if self._returns.counts:
            self._returns.settle(tag)
        if not self._due:
            self._due = True
            self._loop.call_soon(self.acknowledge)

    def acknowledge(self) -> None:
        """Sends what may be acknowledged, in one piece."""
        self._due = False
        if self.current:
            self.fast_channel.acknowledge(self._settlement.take())
            if not self.outstanding:
                self.settled.set()

    async def finish(self, comes_again: bool, timing: Timing = DEFAULT) -> None:
        """Cancels the consumer, waits for what is in hand to be settled, and acknowledges it.

        `comes_again` says whether the queue delivers again what stays unsettled.
        """
        try:
            async with rpc_timeout(timing.cancel_timeout_s):
                assert self.channel is not None
                await self.channel.basic_cancel(self.consumer_tag)
        except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
            _log.warning("the broker did not confirm the end of consuming", error=error_text(error))
            return
        # No delivery comes any more.
        self.settled.clear()
        if self.outstanding:
            with suppress(TimeoutError):
                async with lag_tolerant_timeout(timing.settle_timeout_s):
                    await self.settled.wait()
        self.acknowledge()
        if self.outstanding:
            # They are rejects. Those of an exclusive queue go with it, and a stream gives nothing twice that was read:
            # lost, where nobody else publishes them yet.
            _log.warning(
                "stopped with unsettled deliveries", deliveries=self.outstanding, kept_by_the_broker=comes_again
            )
