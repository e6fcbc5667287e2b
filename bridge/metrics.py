"""Everything that is counted, in one place: names, labels and meanings, as Prometheus reads them at `/metrics`.

One instance, with a registry of its own, for each bridge: two bridges in one process (in a test, say) don't mix.

What every update touches is a plain number here, and becomes a metric when it is asked for: the library's own counters
took 8 of the 30 microseconds that an update cost (`make bench`, saturated with one client).
"""

import collections
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bridge import logs

# The time at which each counter was made doubles what is scraped, and the process's start time says as much.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


RECEIPT_TO_FLUSH_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Durations:
    """How many durations there were up to each of some bounds."""

    __slots__ = ("_bounds_s", "_counts", "_sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def family(self, name: str, meaning: str) -> Metric:
        """As a histogram: each bucket holds those of the smaller bounds too."""
        family = HistogramMetricFamily(name, meaning)
        bounds = [*map(str, map(float, self._bounds_s)), "+Inf"]
        so_far = 0
        buckets = [(bound, so_far := so_far + count) for bound, count in zip(bounds, self._counts, strict=True)]
        family.add_metric([], buckets, self._sum_s)
        return family


class ByType(Collector):
    """A counter for each update type, of which an operator may have thousands.

    The library takes 10 microseconds for each at a scrape, and the loop waits for that. This takes 0.3.
    """

    def __init__(self, name: str, meaning: str) -> None:
        self._name = name
        self._meaning = meaning
        self.counts: collections.Counter[str] = collections.Counter()
        self._shown: dict[str, int] = {}
        """The counts as of the last scrape."""
        self._lines: dict[str, str] = {}
        """Each type's line then."""

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        yield _counter(self._name, self._meaning, self.counts, "type")

    def lines(self) -> str:
        """What `collect` comes to in the text format."""
        for name, count in self.counts.items() - self._shown.items():
            # As Prometheus' text format asks for it.
            value = name.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
            self._lines[name] = f'{self._name}_total{{type="{value}"}} {count}.0\n'
            self._shown[name] = count
        lines = "".join(self._lines.values())
        return f"# HELP {self._name}_total {self._meaning}\n# TYPE {self._name}_total counter\n{lines}"


class Metrics(Collector):
    """The counters are incremented where things happen; what has a state is read when it is asked for (`watch`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """All of it, for programs."""
        self._few = CollectorRegistry()
        """All but what there is for each type."""
        self._add(ProcessCollector(registry=None))
        self._add(GCCollector(registry=CollectorRegistry()))
        self.deliveries = 0
        self.redeliveries = 0
        self._updates = ByType("bridge_updates", "Updates broadcast, by type.")
        self._duplicates = ByType("bridge_duplicates", "Updates not sent again, because one of the same identity was.")
        self.updates, self.duplicates = self._updates.counts, self._duplicates.counts
        self.written = 0
        """Updates times connections, as are the next three."""
        self.enqueued = 0
        self.dropped = 0
        self.replayed = 0
        self.receipt_to_flush = Durations(RECEIPT_TO_FLUSH_S)
        self._add(self)
        self.registry.register(self._updates)
        self.registry.register(self._duplicates)
        self.rejects = self._counter("bridge_rejects", "Events that could not become an update.", ["reason"])
        self.rejects_lost = self._counter(
            "bridge_rejects_lost",
            "Rejected events that could not be held until they were confirmed.",
        )
        self.broker_losses = self._counter("bridge_broker_losses", "Times that consuming ended without being asked to.")
        self.gaps = self._counter(
            "bridge_gaps",
            "Times in which events may have been published that no queue of the bridge's got.",
        )
        self.broker_attempts = self._counter(
            "bridge_broker_connection_attempts",
            "Attempts to connect to a broker, the first included.",
        )
        self.opened = self._counter("bridge_connections_opened", "WebSocket connections opened.")
        self.resumes = self._counter(
            "bridge_resumes",
            "Connections that asked for ids, by whether nothing was missing behind the one that they had.",
            ["complete"],
        )
        self.refused = self._counter(
            "bridge_refused",
            "Clients refused before the upgrade, by the rule that refused them.",
            ["rule"],
        )
        self.abandoned = self._counter(
            "bridge_handshakes_abandoned",
            "Connections that the client ended before its request, or its TLS handshake, was complete.",
        )
        self.pauses = self._counter(
            "bridge_reading_pauses",
            "Times that nothing was read of a client for a while, because it, or all of them, had said too much.",
        )
        self.descriptor_shortages = self._counter(
            "bridge_descriptor_shortages",
            "Times that file descriptors were short, and nobody was accepted for a while.",
        )
        self.evictions = self._counter("bridge_evictions", "Connections that the bridge closed, by reason.", ["reason"])

    def collect(self) -> Iterable[Metric]:
        """The plain numbers, for the registry."""
        yield _counter("bridge_deliveries", "Messages that the broker delivered.", {"": self.deliveries})
        yield _counter("bridge_redeliveries", "Messages that the broker had delivered before.", {"": self.redeliveries})
        yield _counter(
            "bridge_sends",
            "Updates times connections: written at once, enqueued behind earlier ones, or dropped with an eviction.",
            {"written": self.written, "enqueued": self.enqueued, "dropped": self.dropped},
            "outcome",
        )
        yield _counter(
            "bridge_replayed", "Updates times connections: given again to those that resume.", {"": self.replayed}
        )
        # All bridges in a process share one log.
        yield _counter(
            "bridge_log_lines_dropped",
            "Lines of the log that were dropped, because nothing read them or they could not be written.",
            {"": logs.lines_dropped()},
        )
        yield self.receipt_to_flush.family(
            "bridge_receipt_to_flush_seconds",
            "From a delivery's receipt until its update has been handed to every connection that keeps up.",
        )

    def begin(self, types: Iterable[str], rejects: Iterable[str], evictions: Iterable[str]) -> None:
        """Has a count of 0 for each update type and each reason that there can be.

        A count that first appears as 1 has not increased, to Prometheus: it would never tell of the first one.
        """
        for update_type in types:
            self.updates[update_type] += 0
            self.duplicates[update_type] += 0
        for reason in rejects:
            self.rejects.labels(reason)
        for reason in evictions:
            self.evictions.labels(reason)
        for complete in ("true", "false"):
            self.resumes.labels(complete)

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is asked for at each scrape."""
        gauge = Gauge(name, meaning, registry=None)
        gauge.set_function(value)
        self._add(gauge)

    def exposition(self) -> bytes:
        """All metrics in the text format that `CONTENT_TYPE` names."""
        return generate_latest(self._few) + (self._updates.lines() + self._duplicates.lines()).encode()

    def _counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        counter = Counter(name, meaning, labels, registry=None)
        self._add(counter)
        return counter

    def _add(self, collector: Collector) -> None:
        self.registry.register(collector)
        self._few.register(collector)


def _counter(name: str, meaning: str, values: Mapping[str, int], label: str | None = None) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label] if label else None)
    for value, count in values.items():
        family.add_metric([value] if label else [], count)
    return family
