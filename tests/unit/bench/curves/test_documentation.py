"""Tests that the text about the curves agrees with the constants of the bridge and with the committed points."""

from __future__ import annotations

import pytest

from bridge.broadcast import catch_up, hub, subscriptions
from tests.bench.curves import capacity
from tests.bench.curves.points import CURVES, read
from tests.support.generated import BENCH_README

TEXT = " ".join(BENCH_README.read_text().split())
CONSTANTS = {
    "16 KiB (`CATCH_UP_BYTES`)": catch_up.CATCH_UP_BYTES == 16 * 1024,
    "8192 filters (`MAX_MATCHES_PER_FLUSH`)": subscriptions.MAX_MATCHES_PER_FLUSH == 8192,
    "64 KiB (`FLUSH_BYTES`)": hub.FLUSH_BYTES == 64 * 1024,
    "256 KiB (`TURN_BUDGETS_BYTES`)": catch_up.TURN_BUDGETS_BYTES[catch_up.RETURNING] == 256 * 1024,
    "a quarter of a second": capacity.ROUND_S == 0.25,
    "updates of 250 bytes": capacity.UPDATE_BYTES == 250,
}
MEASURED = {curve.name: read(curve) for curve in CURVES}


@pytest.mark.parametrize("phrase", CONSTANTS)
def test_constant_in_the_text_is_that_of_the_code(phrase: str) -> None:
    assert CONSTANTS[phrase]
    assert phrase in TEXT


def test_updates_of_256_kb_and_not_of_64_kb_are_too_large_for_a_socket() -> None:
    assert "All sends of 64 KB were complete, and none of the sends of 256 KB was." in TEXT
    shares = dict(MEASURED["sizes"].values("ours", "enqueued_share"))
    assert (shares[64_000], shares[256_000]) == (0, 1)


def test_filters_cost_more_beyond_the_limit_of_a_flush() -> None:
    [figure] = [curve.figures[0] for curve in CURVES if curve.name == "filters"]
    found = MEASURED["filters"].model("ours", figure)
    assert found is not None
    assert found.until <= subscriptions.MAX_MATCHES_PER_FLUSH
    assert found.further is not None
    assert found.further > 3 * found.line.slope


def test_send_costs_less_at_high_rates() -> None:
    [first, *_, last] = MEASURED["rates"].values("ours", "cpu_us")
    assert last[1] < first[1] / 10


def test_bridge_is_not_more_expensive_than_a_few_bare_sends() -> None:
    """The text says that almost all costs of a client are the kernel's."""
    [ours, floor] = [MEASURED["clients"].values(name, "cpu_us")[-1][1] for name in ("ours", "floor")]
    assert ours < 1.25 * floor


def test_stream_costs_the_broker_more_than_queues() -> None:
    costs = capacity.costs(MEASURED)
    assert costs.stream.slope > costs.queues.slope
