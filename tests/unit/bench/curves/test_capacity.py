"""Tests of the computation of bridges for many clients."""

from __future__ import annotations

import dataclasses

import pytest

from tests.bench.curves import capacity
from tests.bench.curves.capacity import ROUND_S, Costs, clients_of_a_bridge, fleet
from tests.bench.curves.model import Line
from tests.bench.curves.points import Measured

COSTS = Costs(
    send_us=10,
    further_us=1,
    max_clients=100_000,
    kb_a_client=2,
    kernel_kb_a_client=4,
    handshakes_a_s=1000,
    queues=Line(100, 10),
    stream=Line(200, 20),
)


def test_bridge_with_rare_updates_has_as_many_clients_as_one_write_reaches_in_a_round() -> None:
    assert clients_of_a_bridge(COSTS, 0.3) == 25_000


def test_each_further_update_of_a_round_leaves_time_for_fewer_clients() -> None:
    # A round of 0.25 s has 10 updates: 10 µs for the write, and 9 µs for the further updates.
    assert clients_of_a_bridge(COSTS, 40) == 250_000 // 19


def test_bridge_has_no_more_clients_than_were_measured() -> None:
    assert clients_of_a_bridge(dataclasses.replace(COSTS, max_clients=16_000), 0.3) == 16_000


def test_clients_are_shared_evenly_by_the_smallest_number_of_bridges() -> None:
    found = fleet(COSTS, 60_000, 0.3)
    assert (found.bridges, found.clients) == (3, 20_000)
    assert found.round_s == pytest.approx(0.2)
    assert found.core_share == pytest.approx(0.06)


def test_round_is_as_long_as_the_updates_that_arrive_in_it() -> None:
    found = fleet(COSTS, clients_of_a_bridge(COSTS, 40), 40)
    assert found.bridges == 1
    assert found.round_s == pytest.approx(ROUND_S, rel=1e-3)
    assert found.core_share == 1


@pytest.mark.parametrize("rate", [0.3, 4, 40])
def test_no_bridge_of_a_fleet_needs_longer_than_a_round(rate: float) -> None:
    for clients in (1, 12_345, 1_000_000):
        assert fleet(COSTS, clients, rate).round_s <= ROUND_S


def test_costs_are_those_of_the_largest_measurement() -> None:
    others = {"cpu_us": 10.0, "kb_a_client": 2.0, "kernel_kb_a_client": 4.0, "handshakes_a_s": 1000.0}
    measured = {
        "clients": Measured("", {"ours": [{"x": x, "cpu_ms": x / 100, **others} for x in (1, 2, 100_000)]}),
        "rates": Measured("", {"ours": [{"x": 1.0, "cpu_us": 7.0}, {"x": 6000.0, "cpu_us": 1.0}]}),
        "bridges": Measured(
            "",
            {
                name: [{"x": x, "broker_us": factor * (10.0 + x)} for x in (1, 2, 4)]
                for name, factor in (("queue", 10), ("stream", 20))
            },
        ),
    }
    found = capacity.costs(measured)
    for line, expected in ((found.queues, COSTS.queues), (found.stream, COSTS.stream)):
        assert (line.base, line.slope) == pytest.approx((expected.base, expected.slope))
    assert dataclasses.replace(found, queues=COSTS.queues, stream=COSTS.stream) == COSTS
    lines = capacity.table(measured).splitlines()
    assert lines[0] == "| | 100,000 clients | 100,000 clients | 1,000,000 clients | 1,000,000 clients |"
    assert lines[3] == "| bridges | 4 | 9 | 40 | 87 |"
    # 9 bridges with queues: 50 updates of 100 + 9 * 10 microseconds, which is 0.95 % of a second. 87 bridges with a
    # stream: 50 updates of 200 + 87 * 20 microseconds.
    assert lines[9].split(" | ")[2] == "1.0"
    assert lines[10].split(" | ")[4] == "9.7 |"
