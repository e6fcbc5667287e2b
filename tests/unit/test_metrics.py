"""What is counted, as Prometheus reads it."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.metrics import CONTENT_TYPE, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def test_exposition_is_of_the_type_that_it_is_served_as() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    assert Metrics().exposition().startswith(b"# HELP ")


@pytest.mark.parametrize(
    "name",
    [
        "bridge_deliveries_total",
        "bridge_redeliveries_total",
        "bridge_broker_losses_total",
        "bridge_broker_connection_attempts_total",
        "bridge_connections_opened_total",
        "bridge_receipt_to_flush_seconds_count",
    ],
)
def test_counter_without_labels_begins_at_zero(name: str) -> None:
    assert samples(Metrics())[name, ()] == 0


@pytest.mark.parametrize("outcome", ["written", "enqueued", "dropped"])
def test_each_outcome_of_a_send_begins_at_zero(outcome: str) -> None:
    assert samples(Metrics())["bridge_sends_total", (("outcome", outcome),)] == 0


def test_what_is_counted_is_shown_with_its_label() -> None:
    metrics = Metrics()
    metrics.updates.labels("killmail").inc()
    metrics.rejects.labels("not-json").inc(2)
    metrics.evictions.labels("too-slow").inc(3)
    metrics.refused.labels("origin").inc(4)
    metrics.duplicates.labels("killmail").inc(5)
    shown = samples(metrics)
    assert shown["bridge_updates_total", (("type", "killmail"),)] == 1
    assert shown["bridge_rejects_total", (("reason", "not-json"),)] == 2
    assert shown["bridge_evictions_total", (("reason", "too-slow"),)] == 3
    assert shown["bridge_refused_total", (("rule", "origin"),)] == 4
    assert shown["bridge_duplicates_total", (("type", "killmail"),)] == 5


def test_watched_value_is_asked_for_at_each_scrape() -> None:
    metrics, values = Metrics(), iter([1.0, 2.0])
    metrics.watch("bridge_connections", "WebSocket connections that are open.", lambda: next(values))
    assert [samples(metrics)["bridge_connections", ()] for _ in range(2)] == [1.0, 2.0]


def test_two_bridges_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.deliveries.inc()
    assert samples(one)["bridge_deliveries_total", ()] == 1
    assert samples(other)["bridge_deliveries_total", ()] == 0


def test_there_is_no_time_of_making_for_each_counter() -> None:
    assert "_created" not in Metrics().exposition().decode()


def test_every_metric_of_the_bridge_says_what_it_means() -> None:
    lines = Metrics().exposition().decode().splitlines()
    assert all(re.fullmatch(r"# HELP \w+ [A-Z].*\.", line) for line in lines if line.startswith("# HELP bridge_"))
