"""A delivery handler that records the calls of a consumer in order, and settles the deliveries."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from bridge.amqp.consume.consumer import Consumer, ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.stream_reader import StreamConfig
from bridge.amqp.nodes import Node
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing
from tests.support.waiting import LIMIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridge.amqp.consume.session import Delivery
    from bridge.amqp.status import Gap
    from bridge.contract.update_id import UpdateId

CAUGHT_UP = "caught up"


class Delivered(NamedTuple):
    """The part of a delivery that tests compare."""

    body: bytes
    id: UpdateId | None


class IdOnly(NamedTuple):
    """The id of a message that is not an event."""

    id: UpdateId


class Recorder:
    """A delivery handler that records each call."""

    def __init__(self) -> None:
        self.log: list[Delivered | IdOnly | Gap | str] = []
        self.deliveries: list[Delivery] = []
        self.gap_ids: list[UpdateId | None] = []
        """The id of each reported gap."""
        self.holds = False
        """If true, no delivery is settled."""
        self.settleable_at_session_end: list[list[bool]] = []
        """One list for each ended session: the values of `current` of all deliveries at the end of that session."""

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.log.append(Delivered(delivery.body, delivery.id))
            self.deliveries.append(delivery)
            if not self.holds:
                delivery.settle()

    def record_id(self, update_id: UpdateId) -> None:
        self.log.append(IdOnly(update_id))

    def on_caught_up(self) -> None:
        self.log.append(CAUGHT_UP)

    def on_gap(self, gap: Gap, update_id: UpdateId | None) -> None:
        self.log.append(gap)
        self.gap_ids.append(update_id)
        if update_id is not None and not update_id.before:
            # The gap has the id of a message that is not an event.
            self.log.append(IdOnly(update_id))

    def on_session_end(self) -> None:
        self.settleable_at_session_end.append([delivery.current for delivery in self.deliveries])

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of all deliveries."""
        return [entry.body for entry in self.log if isinstance(entry, Delivered)]

    @property
    def ids(self) -> list[UpdateId]:
        """The ids of all deliveries, and of all messages that are not events."""
        return [entry.id for entry in self.log if isinstance(entry, Delivered | IdOnly) and entry.id is not None]

    @property
    def gaps(self) -> list[Gap]:
        """All reported gaps."""
        return [entry for entry in self.log if not isinstance(entry, Delivered | IdOnly | str)]

    @property
    def past(self) -> list[bytes]:
        """The bodies of the deliveries that came before the reader had caught up with the stream."""
        return [entry.body for entry in self.log[: self.log.index(CAUGHT_UP)] if isinstance(entry, Delivered)]


@asynccontextmanager
async def reading(
    url: str, exchange: str, stream: StreamConfig, recorder: Recorder, prefetch: int = 20, timing: Timing = DEFAULT
) -> AsyncIterator[Consumer]:
    """Runs a consumer of a stream, and raises the error that ended the consumer."""
    config = ConsumerConfig((Node(url),), (exchange,), None, "reader", stream)
    consumer = Consumer(config, recorder, FlowControl(prefetch), Metrics(), wait=False, timing=timing)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await running


async def refused(url: str, exchange: str, stream: StreamConfig) -> None:
    """Starts a consumer of a stream, and raises the error with which the broker refuses the consumer."""
    config = ConsumerConfig((Node(url),), (exchange,), None, "reader", stream)
    async with asyncio.timeout(LIMIT_S):
        await Consumer(config, Recorder(), FlowControl(20), Metrics(), wait=False).run()
