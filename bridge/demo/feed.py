"""A feed of invented killmails instead of RabbitMQ.

The feed passes its events to the relay in the same way as the consumer.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from math import inf

import orjson

from bridge.amqp.consume.consumer import ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.gaps import GapReporter
from bridge.amqp.consume.session import Delivery, DeliveryHandler
from bridge.amqp.status import Gap, State, Status
from bridge.amqp.wire import trace
from bridge.amqp.wire.properties import MessageProperties
from bridge.demo.killmails import killmails, pace
from bridge.metrics import Metrics
from bridge.timing import Timing

REJECT_INTERVAL = 20
"""The number of events in a group. One event of each group is invalid."""

GAP_INTERVAL = 30
"""After this number of events, the feed drops LOST_EVENTS events and reports a gap.

The feed waits at least GAP_INTERVAL_S between two gaps.
"""

GAP_INTERVAL_S = 30.0
"""The minimum time between two gaps, in seconds. The log has a warning for each gap. Without a minimum time between
gaps, the warnings would fill the terminal at 1000 events a second."""

LOST_EVENTS = 3

PROPERTIES = MessageProperties(b"", ("killmail", None))


class Feed:
    """Delivers invented killmails to the bridge, with some invalid events and gaps.

    The feed itself is the session that settles its deliveries. The feed never redelivers, so `settle` does nothing.
    """

    def __init__(
        self,
        rate: float,
        on_start: Callable[[], None],
        config: ConsumerConfig,
        handler: DeliveryHandler,
        flow_control: FlowControl,
        metrics: Metrics,
        wait: bool,
        timing: Timing,
    ) -> None:
        """`rate` is the number of killmails per second.

        `on_start` is called before the first killmail. All parameters except `rate` and `on_start` are the same as
        those of a consumer.
        """
        # The feed does not depend on a broker's answers, so the feed's status is never out of date.
        self.status = Status(answer_valid_s=inf)
        self.gaps = GapReporter(handler, metrics)
        self.stream_reader = None
        self.other_consumers = 0
        self.warnings = ["there is no broker: the demo feeds invented killmails to the bridge"]
        self.current = True
        self._rate = rate
        self._on_start = on_start
        [self._exchange] = config.exchanges
        self._handler = handler
        self._stopping = asyncio.Event()

    @property
    def is_live(self) -> bool:
        """Whether the feed is running."""
        return self.status.state is State.WORKING

    def settle(self, tag: int) -> None:
        """Does nothing, because the feed never redelivers."""

    def stop(self) -> None:
        """Ends `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Delivers killmails until `stop`."""
        rng = random.Random()  # noqa: S311 - invented killmails are no secret
        events = killmails(rng, lambda: datetime.now(UTC))
        pauses = pace(rng, self._rate)
        self.status.enter(State.WORKING)
        self._on_start()
        tag, gap_at = 0, -inf
        while not await self._pause(next(pauses)):
            tag += 1
            event = next(events)
            if tag % REJECT_INTERVAL == 0:
                event["systemId"] = "Jita"
            self._deliver(tag, orjson.dumps(event))
            if tag % GAP_INTERVAL == 0 and time.monotonic() - gap_at >= GAP_INTERVAL_S:
                gap_at = time.monotonic()
                await self._lose_events(events, pauses)
        self.status.enter(State.STOPPED)

    async def _pause(self, pause_s: float) -> bool:
        """Waits for `pause_s` or until the feed must stop. Returns whether the feed must stop."""
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _deliver(self, tag: int, body: bytes) -> None:
        trace.delivery_received(tag, False, self._exchange, "", PROPERTIES, body)
        delivery = Delivery(self, tag, False, self._exchange, "", PROPERTIES, body, time.monotonic())
        self._handler.deliver([delivery])

    async def _lose_events(self, events: Iterator[dict[str, object]], pauses: Iterator[float]) -> None:
        """Drops some events, as if the broker were unreachable, and reports the gap."""
        since_s = time.time()
        for _ in range(LOST_EVENTS):
            next(events)
            if await self._pause(next(pauses)):
                return
        self.gaps.report(Gap(since_s, time.time(), "the demo has dropped some killmails"))
