"""Defines the names, labels and help texts of all metrics that Prometheus reads at `/metrics`.

The metrics' names and labels do not change after version 0.1.0, because dashboards and alerts depend on them. Each
bridge has its own `Metrics` object and registry, so that two bridges in one process (in a test) have separate metrics.

Values that change with each update are plain numbers, which are turned into metrics only at a scrape. With the
library's own counters, an update took 30 microseconds, of which 8 were for counting (`make bench`, saturated with one
client).
"""

import collections
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

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

from bridge import __version__, logs

# A creation time for each counter would double the size of `/metrics`, and would equal the start time of the process.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

RECEIPT_TO_FLUSH_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Transport(StrEnum):
    """The way in which a client gets updates. Each member of this enum is a value of the label `transport`."""

    WEBSOCKET = "websocket"
    SSE = "sse"
    POLL = "poll"


class Durations:
    """A histogram of durations."""

    __slots__ = ("_bounds_s", "_counts", "_sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Adds a duration to the histogram."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def family(self, name: str, text: str) -> Metric:
        """Returns the histogram for the registry. The buckets of the histogram are cumulative."""
        family = HistogramMetricFamily(name, text)
        bounds = [*map(str, map(float, self._bounds_s)), "+Inf"]
        so_far = 0
        buckets = [(bound, so_far := so_far + count) for bound, count in zip(bounds, self._counts, strict=True)]
        family.add_metric([], buckets, self._sum_s)
        return family


class ByType(Collector):
    """A counter with a label for the update type. An operator may have thousands of update types.

    With this class, a scrape takes 0.3 microseconds for each type. With the library's counter, a scrape would take 10
    microseconds for each type, and block the event loop.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self.counts: collections.Counter[str] = collections.Counter()
        self._shown: dict[str, int] = {}
        """The count for each update type at the last scrape."""
        self._lines: dict[str, str] = {}
        """The line of text for each update type at the last scrape."""

    def collect(self) -> Iterable[Metric]:
        """Returns the counter for the registry."""
        yield _counter(self._name, self._text, self.counts, "type")

    def lines(self) -> str:
        """Returns the counter in the text format."""
        for name, count in self.counts.items() - self._shown.items():
            # The text format requires escapes for backslashes, line breaks and quotes.
            value = name.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
            self._lines[name] = f'{self._name}_total{{type="{value}"}} {count}.0\n'
            self._shown[name] = count
        lines = "".join(self._lines.values())
        return f"# HELP {self._name}_total {self._text}\n# TYPE {self._name}_total counter\n{lines}"


class Metrics(Collector):
    """All metrics of one bridge.

    Each counter is incremented by the code that causes the counted event. Gauges are read at a scrape.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """The registry of all metrics."""
        self._registry_without_types = CollectorRegistry()
        """The registry of all metrics except the counters with a label for the update type.

        `ByType.lines` returns the text of these counters.
        """
        self._add(ProcessCollector(registry=None))
        self._add(GCCollector(registry=CollectorRegistry()))
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, tuple[str, list[tuple[dict[str, str], Callable[[], int]]]]] = {}
        """Maps the name of each counter from the method `counter` to its help text and its labeled values."""
        self.deliveries = 0
        self.redeliveries = 0
        self.last_update_ms = 0
        """The `timestamp` of the newest broadcast update, in Unix milliseconds."""
        self._updates = ByType("bridge_updates", "Updates broadcast, by type.")
        self._duplicates = ByType(
            "bridge_duplicates", "Duplicate events, by type: an update with the same identity was already broadcast."
        )
        self.updates, self.duplicates = self._updates.counts, self._duplicates.counts
        self.written = 0
        """The number of updates written without a queue.

        This attribute and the three after it count an update once for each connection.
        """
        self.enqueued = 0
        self.dropped = 0
        self.replayed = 0
        self.receipt_to_flush = Durations(RECEIPT_TO_FLUSH_S)
        self._add(self)
        self.registry.register(self._updates)
        self.registry.register(self._duplicates)
        self.rejects = self._counter("bridge_rejects", "Rejected events, by reason.", ["reason"])
        self.rejects_lost = self._counter(
            "bridge_rejects_lost", "Rejected events that were lost before RabbitMQ confirmed them."
        )
        self.broker_losses = self._counter(
            "bridge_broker_losses", "Consumer sessions that ended although the bridge was not stopping."
        )
        self.gaps = self._counter("bridge_gaps", "Periods in which the bridge may have missed events.")
        self.broker_attempts = self._counter(
            "bridge_broker_connection_attempts", "Attempts to connect to RabbitMQ, including the first one."
        )
        self.opened = self._counter("bridge_connections_opened", "Connections opened by clients.", ["transport"])
        self.resumes = self._counter(
            "bridge_resumes",
            "Clients that asked for ids, by completeness: whether the bridge had all updates since their id.",
            ["complete"],
        )
        self.refused = self._counter(
            "bridge_clients_refused", "Clients refused before they were connected, by rule.", ["rule"]
        )
        self.abandoned = self._counter(
            "bridge_handshakes_abandoned", "Handshakes that the client ended before its request was complete."
        )
        self.throttles = self._counter(
            "bridge_client_throttles",
            "Times that a client was throttled because it, or all clients together, sent more than the limit.",
        )
        self.descriptors_exhausted = self._counter(
            "bridge_descriptors_exhausted",
            "Times that the bridge stopped accepting clients because file descriptors were exhausted.",
        )
        self.evictions = self._counter(
            "bridge_evictions", "Connections that the bridge evicted, by reason.", ["reason"]
        )
        self.gauge(
            "bridge_build_info",
            "Always 1. The labels are the versions of the bridge and of Python.",
            lambda: 1,
            version=__version__,
            python=platform.python_version(),
        )
        self.gauge(
            "bridge_last_update_timestamp_seconds",
            "Unix time of the newest broadcast update, or 0. Updates that are read back from a stream do not count.",
            lambda: self.last_update_ms / 1000,
        )

    def collect(self) -> Iterable[Metric]:
        """Returns the plain numbers as metrics, for the registry."""
        yield _counter("bridge_deliveries", "Deliveries from RabbitMQ.", {"": self.deliveries})
        yield _counter("bridge_redeliveries", "Deliveries that RabbitMQ had delivered before.", {"": self.redeliveries})
        yield _counter(
            "bridge_sends",
            "Updates sent, counted once for each connection: written at once, enqueued for a lagging connection, or "
            "dropped because this connection ended.",
            {"written": self.written, "enqueued": self.enqueued, "dropped": self.dropped},
            "outcome",
        )
        yield _counter(
            "bridge_replayed",
            "Updates sent again to clients that resumed, counted once for each connection.",
            {"": self.replayed},
        )
        # All bridges in a process share one log, and therefore one number of dropped log lines.
        yield _counter(
            "bridge_log_lines_dropped",
            "Log lines dropped because they could not be written.",
            {"": logs.lines_dropped()},
        )
        for name, (text, values) in self._counters.items():
            family = CounterMetricFamily(name, text, labels=list(values[0][0]))
            for labels, value in values:
                family.add_metric(list(labels.values()), value())
            yield family
        yield self.receipt_to_flush.family(
            "bridge_receipt_to_flush_seconds",
            "Time from the receipt of a delivery until its update was written to all live connections.",
        )

    def init_labels(
        self, types: Iterable[str], rejects: Iterable[str], evictions: Iterable[str], refusals: Iterable[str]
    ) -> None:
        """Starts the counter of each label value at 0.

        If a counter first appeared with the value 1, Prometheus would not see an increase.
        """
        for update_type in types:
            self.updates[update_type] += 0
            self.duplicates[update_type] += 0
        for reason in rejects:
            self.rejects.labels(reason)
        for reason in evictions:
            self.evictions.labels(reason)
        for rule in refusals:
            self.refused.labels(rule)
        for transport in Transport:
            self.opened.labels(transport)
        for complete in ("true", "false"):
            self.resumes.labels(complete)

    def gauge(self, name: str, text: str, value: Callable[[], float], **labels: str) -> None:
        """Adds a gauge with a function that returns its value at a scrape.

        Call this method once for each set of label values.
        """
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = Gauge(name, text, tuple(labels), registry=None)
            self._add(gauge)
        (gauge.labels(**labels) if labels else gauge).set_function(value)

    def counter(self, name: str, text: str, value: Callable[[], int], **labels: str) -> None:
        """Adds a counter with a function that returns its value at a scrape.

        `name` does not include the suffix `_total`.
        """
        self._counters.setdefault(name, (text, []))[1].append((labels, value))

    def exposition(self) -> bytes:
        """Returns all metrics in the text format that `CONTENT_TYPE` names."""
        by_type = self._updates.lines() + self._duplicates.lines()
        return generate_latest(self._registry_without_types) + by_type.encode()

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        counter = Counter(name, text, labels, registry=None)
        self._add(counter)
        return counter

    def _add(self, collector: Collector) -> None:
        self.registry.register(collector)
        self._registry_without_types.register(collector)


def _counter(name: str, text: str, values: Mapping[str, int], label: str | None = None) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label] if label else None)
    for value, count in values.items():
        family.add_metric([value] if label else [], count)
    return family
