"""Everything that is counted, in one place: names, labels and meanings, as Prometheus reads them at `/metrics`.

One instance, with a registry of its own, for each bridge: two bridges in one process (in a test, say) don't mix.
"""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

# The time at which each counter was made doubles what is scraped, and the process's start time says as much.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters are incremented where things happen; what has a state is read when it is asked for (`watch`)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.deliveries = Counter("bridge_deliveries", "Messages that the broker delivered.", registry=registry)
        self.redeliveries = Counter(
            "bridge_redeliveries", "Of these, messages that it had delivered before.", registry=registry
        )
        self.updates = Counter("bridge_updates", "Updates broadcast, by type.", ["type"], registry=registry)
        self.duplicates = Counter(
            "bridge_duplicates",
            "Updates not sent again, because one of the same identity was.",
            ["type"],
            registry=registry,
        )
        self.rejects = Counter(
            "bridge_rejects", "Events that could not become an update.", ["reason"], registry=registry
        )
        self.broker_losses = Counter(
            "bridge_broker_losses", "Times that consuming ended without being asked to.", registry=registry
        )
        self.broker_attempts = Counter(
            "bridge_broker_connection_attempts",
            "Attempts to connect to a broker, the first included.",
            registry=registry,
        )
        self.opened = Counter("bridge_connections_opened", "WebSocket connections opened.", registry=registry)
        self.refused = Counter(
            "bridge_refused",
            "Requests refused before the upgrade, by the rule that refused them.",
            ["rule"],
            registry=registry,
        )
        self.evictions = Counter(
            "bridge_evictions", "Connections that the bridge closed, by reason.", ["reason"], registry=registry
        )
        sends = Counter(
            "bridge_sends",
            "Updates times connections: written at once, enqueued behind earlier ones, or dropped with an eviction.",
            ["outcome"],
            registry=registry,
        )
        self.written = sends.labels("written")
        self.enqueued = sends.labels("enqueued")
        self.dropped = sends.labels("dropped")
        self.receipt_to_flush = Histogram(
            "bridge_receipt_to_flush_seconds",
            "From a delivery's receipt until its update has been handed to every connection that keeps up.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=registry,
        )

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is asked for at each scrape."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def exposition(self) -> bytes:
        """All metrics in the text format that `CONTENT_TYPE` names."""
        return generate_latest(self.registry)
