"""The interface of a source of events, which is RabbitMQ's consumer or, in a demo without a broker, a feed."""

from collections.abc import Callable
from typing import Protocol

from bridge.amqp.consume.consumer import ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.gaps import GapReporter
from bridge.amqp.consume.session import DeliveryHandler
from bridge.amqp.consume.stream_reader import StreamReader
from bridge.amqp.status import State, Status
from bridge.metrics import Metrics
from bridge.timing import Timing


class EventSource(Protocol):
    """The interface of a source of events that the bridge uses."""

    @property
    def status(self) -> Status:
        """The state of the source.

        For a consumer, the state of the source is the state of the connection to the broker.
        """

    @property
    def gaps(self) -> GapReporter:
        """The object that reports gaps and remembers the last one."""

    @property
    def stream_reader(self) -> StreamReader | None:
        """The reader of the stream, or None if the bridge reads no stream."""

    @property
    def other_consumers(self) -> int:
        """The number of other consumers of the bridge's named queue."""

    @property
    def warnings(self) -> list[str]:
        """Problems that may prevent the delivery of events, for `/readyz`."""

    @property
    def is_live(self) -> bool:
        """Whether new events are delivered as they are published."""

    async def run(self) -> None:
        """Delivers events until `stop` is called."""

    def stop(self) -> None:
        """Ends `run` when all deliveries are settled."""


def register_source_metrics(metrics: Metrics, source: EventSource) -> None:
    """Adds two gauges: the number of other consumers, and whether the bridge consumes."""
    metrics.gauge(
        "bridge_queue_other_consumers",
        "Other consumers of the named queue of this bridge (BRIDGE_QUEUE).",
        lambda: float(source.other_consumers),
    )
    metrics.gauge(
        "bridge_consuming",
        "Whether the bridge consumes: 1 or 0.",
        lambda: float(source.status.state is State.WORKING),
    )


SourceFactory = Callable[[ConsumerConfig, DeliveryHandler, FlowControl, Metrics, bool, Timing], EventSource]
"""The constructor of a source, which takes the same parameters as `Consumer`."""
