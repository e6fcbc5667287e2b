"""Tests of the metrics as Prometheus reads them."""

from __future__ import annotations

import itertools
import platform
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bridge import __version__
from bridge.metrics import CONTENT_TYPE, RECEIPT_TO_FLUSH_S, ByType, Durations, Metrics

TYPES = {
    "bridge_broker_connection_attempts_total": "counter",
    "bridge_broker_losses_total": "counter",
    "bridge_gaps_total": "counter",
    "bridge_last_update_timestamp_seconds": "gauge",
    "bridge_log_lines_dropped_total": "counter",
    "bridge_handshakes_abandoned_total": "counter",
    "bridge_rejects_lost_total": "counter",
    "bridge_build_info": "gauge",
    "bridge_connections_opened_total": "counter",
    "bridge_deliveries_total": "counter",
    "bridge_duplicates_total": "counter",
    "bridge_descriptors_exhausted_total": "counter",
    "bridge_client_throttles_total": "counter",
    "bridge_evictions_total": "counter",
    "bridge_receipt_to_flush_seconds": "histogram",
    "bridge_redeliveries_total": "counter",
    "bridge_clients_refused_total": "counter",
    "bridge_replayed_total": "counter",
    "bridge_resumes_total": "counter",
    "bridge_rejects_total": "counter",
    "bridge_sends_total": "counter",
    "bridge_updates_total": "counter",
}
"""The metrics that dashboards and alerts use, with their types."""

MEANINGS = {
    "bridge_deliveries_total": "Deliveries from RabbitMQ.",
    "bridge_redeliveries_total": "Deliveries that RabbitMQ had delivered before.",
    "bridge_updates_total": "Updates broadcast, by type.",
    "bridge_sends_total": (
        "Updates sent, counted once for each connection: written at once, enqueued for a lagging connection, or "
        "dropped because this connection ended."
    ),
    "bridge_receipt_to_flush_seconds": (
        "Time from the receipt of a delivery until its update was written to all live connections."
    ),
}
"""The help texts of the metrics whose values are plain numbers."""


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def test_exposition_has_its_content_type() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    assert Metrics().exposition().startswith(b"# HELP ")


@pytest.mark.parametrize(
    "name",
    [
        "bridge_deliveries_total",
        "bridge_redeliveries_total",
        "bridge_broker_losses_total",
        "bridge_broker_connection_attempts_total",
        "bridge_log_lines_dropped_total",
        "bridge_receipt_to_flush_seconds_count",
    ],
)
def test_counter_without_labels_begins_at_zero(name: str) -> None:
    assert samples(Metrics())[name, ()] == 0


@pytest.mark.parametrize("outcome", ["written", "enqueued", "dropped"])
def test_each_outcome_of_a_send_begins_at_zero(outcome: str) -> None:
    assert samples(Metrics())["bridge_sends_total", (("outcome", outcome),)] == 0


def test_each_label_value_begins_at_zero() -> None:
    metrics = Metrics()
    assert "bridge_rejects_total" not in {name for name, _ in samples(metrics)}
    metrics.updates["killmail"] = 2
    metrics.init_labels(["killmail", "event"], ["not-json"], ["too-slow"], ["origin"])
    shown = samples(metrics)
    # `init_labels` does not change what was counted before its call.
    assert shown["bridge_updates_total", (("type", "killmail"),)] == 2
    assert shown["bridge_updates_total", (("type", "event"),)] == 0
    assert shown["bridge_duplicates_total", (("type", "event"),)] == 0
    assert shown["bridge_rejects_total", (("reason", "not-json"),)] == 0
    assert shown["bridge_evictions_total", (("reason", "too-slow"),)] == 0
    assert shown["bridge_clients_refused_total", (("rule", "origin"),)] == 0
    assert shown["bridge_connections_opened_total", (("transport", "websocket"),)] == 0
    assert [shown["bridge_resumes_total", (("complete", word),)] for word in ("true", "false")] == [0, 0]


def test_count_is_shown_with_its_label() -> None:
    metrics = Metrics()
    metrics.updates["killmail"] += 1
    metrics.rejects.labels("not-json").inc(2)
    metrics.evictions.labels("too-slow").inc(3)
    metrics.refused.labels("origin").inc(4)
    metrics.duplicates["killmail"] += 5
    shown = samples(metrics)
    assert shown["bridge_updates_total", (("type", "killmail"),)] == 1
    assert shown["bridge_rejects_total", (("reason", "not-json"),)] == 2
    assert shown["bridge_evictions_total", (("reason", "too-slow"),)] == 3
    assert shown["bridge_clients_refused_total", (("rule", "origin"),)] == 4
    assert shown["bridge_duplicates_total", (("type", "killmail"),)] == 5


def test_value_of_a_gauge_or_counter_is_read_at_each_scrape() -> None:
    metrics, numbers = Metrics(), itertools.count(1)
    metrics.gauge("bridge_connections", "Open.", lambda: next(numbers))
    assert [samples(metrics)["bridge_connections", ()] for _ in range(2)] == [1, 2]
    metrics, numbers = Metrics(), itertools.count(1)
    metrics.counter("bridge_sent_bytes", "Sent.", lambda: next(numbers))
    assert [samples(metrics)["bridge_sent_bytes_total", ()] for _ in range(2)] == [1, 2]


def test_gauge_and_counter_have_a_value_for_each_label() -> None:
    metrics = Metrics()
    for number, transport in enumerate(("websocket", "other"), 1):
        metrics.gauge("bridge_connections", "Open.", lambda number=number: number, transport=transport)  # type: ignore[misc]  # mypy can't infer a lambda's default
        metrics.counter("bridge_sent_bytes", "Sent.", lambda number=number: 10 * number, transport=transport)  # type: ignore[misc]  # mypy can't infer a lambda's default
    shown = samples(metrics)
    assert [shown["bridge_connections", (("transport", each),)] for each in ("websocket", "other")] == [1, 2]
    assert [shown["bridge_sent_bytes_total", (("transport", each),)] for each in ("websocket", "other")] == [10, 20]
    assert metrics.exposition().count(b"# TYPE bridge_sent_bytes_total counter") == 1


def test_build_info_is_1_and_its_labels_are_the_versions() -> None:
    labels = (("python", platform.python_version()), ("version", __version__))
    [(name, value)] = [item for item in samples(Metrics()).items() if item[0][0] == "bridge_build_info"]
    assert (tuple(sorted(name[1])), value) == (labels, 1)


def test_time_of_the_newest_update_is_in_seconds_and_0_before_the_first() -> None:
    metrics = Metrics()
    assert samples(metrics)["bridge_last_update_timestamp_seconds", ()] == 0
    metrics.last_update_ms = 1_700_000_000_250
    assert samples(metrics)["bridge_last_update_timestamp_seconds", ()] == 1_700_000_000.25


def test_two_bridges_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.deliveries += 1
    assert samples(one)["bridge_deliveries_total", ()] == 1
    assert samples(other)["bridge_deliveries_total", ()] == 0


def test_counters_have_no_creation_time() -> None:
    assert "_created" not in Metrics().exposition().decode()


def test_every_metric_of_the_bridge_has_a_help_text() -> None:
    lines = Metrics().exposition().decode().splitlines()
    assert all(re.fullmatch(r"# HELP \w+ [A-Z].*\.", line) for line in lines if line.startswith("# HELP bridge_"))


def test_every_metric_has_its_name_and_type() -> None:
    lines = Metrics().exposition().decode().splitlines()
    shown = dict(line.split(" ")[2:] for line in lines if line.startswith("# TYPE bridge_"))
    assert shown == TYPES


def test_plain_number_has_its_help_text() -> None:
    lines = Metrics().exposition().decode().splitlines()
    shown = dict(line.removeprefix("# HELP ").split(" ", 1) for line in lines if line.startswith("# HELP bridge_"))
    assert MEANINGS.items() <= shown.items()


def test_plain_number_is_shown_as_its_metric() -> None:
    metrics = Metrics()
    metrics.deliveries, metrics.redeliveries, metrics.written, metrics.enqueued, metrics.dropped = 1, 2, 3, 4, 5
    metrics.updates["a"] += 6
    metrics.updates['q"\\\n'] += 7
    metrics.receipt_to_flush.observe(0.002)
    shown = samples(metrics)
    assert shown["bridge_deliveries_total", ()] == 1
    assert shown["bridge_redeliveries_total", ()] == 2
    assert [shown["bridge_sends_total", (("outcome", name),)] for name in ("written", "enqueued", "dropped")] == [
        3,
        4,
        5,
    ]
    assert shown["bridge_updates_total", (("type", "a"),)] == 6
    assert shown["bridge_updates_total", (("type", 'q"\\\n'),)] == 7
    assert shown["bridge_receipt_to_flush_seconds_count", ()] == 1


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 2**53), max_size=5))
def test_counts_by_type_are_written_as_the_library_reads_them(counts: dict[str, int]) -> None:
    by_type = ByType("bridge_updates", "Updates broadcast, by type.")
    by_type.counts.update(counts)
    for _ in range(2):
        [family] = text_string_to_metric_families(by_type.lines())
        assert (family.name, family.type, family.documentation) == ("bridge_updates", "counter", by_type._text)
        assert {sample.labels["type"]: sample.value for sample in family.samples} == counts
        by_type.counts["another"] += 1
        counts["another"] = by_type.counts["another"]


def test_registry_has_the_same_values_as_the_exposition() -> None:
    metrics = Metrics()
    metrics.init_labels(["killmail"], ["not-json"], ["too-slow"], ["origin"])
    metrics.gauge("bridge_connections", "Open.", lambda: 3.0)
    metrics.counter("bridge_sent_bytes", "Sent.", lambda: 4, transport="websocket")
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert names == {name for name, _ in samples(metrics)}


class Alone(Collector):
    """A metrics collector that yields only the given durations."""

    def __init__(self, durations: Durations) -> None:
        self._durations = durations

    def collect(self) -> list[Metric]:
        return [self._durations.family("lasted_seconds", "How long it lasted.")]


@given(
    bounds_s=st.just(RECEIPT_TO_FLUSH_S)
    | st.lists(st.integers(0, 1000).map(lambda number: number / 8), min_size=1, unique=True).map(sorted).map(tuple),
    durations_s=st.lists(
        st.floats(0, 10) | st.sampled_from(RECEIPT_TO_FLUSH_S) | st.integers(0, 1100).map(lambda number: number / 8)
    ),
)
def test_durations_are_shown_like_a_histogram_of_the_library(
    bounds_s: tuple[float, ...], durations_s: list[float]
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    durations = Durations(bounds_s)
    ours.register(Alone(durations))
    histogram = Histogram("lasted_seconds", "How long it lasted.", buckets=bounds_s, registry=theirs)
    for duration_s in durations_s:
        durations.observe(duration_s)
        histogram.observe(duration_s)
    assert generate_latest(ours) == generate_latest(theirs)
