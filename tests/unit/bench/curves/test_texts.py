"""Tests of the tables of the curves."""

from __future__ import annotations

from tests.bench.curves import texts
from tests.bench.curves.points import Curve, Figure, Measured, Unit

FIGURES = (Figure("cpu_ms", "CPU ms", Unit("ms"), Unit("µs a client", 1000)), Figure("p99_ms", "p99 ms"))
ONE, TWO = (Curve("tries", "Tries", "clients", FIGURES, series) for series in (("ours",), ("queue", "stream")))
LINE = [{"x": x, "cpu_ms": 1 + 0.01 * x, "p99_ms": 3.0} for x in (100, 200, 400)]
BENT = [*LINE, {"x": 1400, "cpu_ms": 105.0, "p99_ms": 3.0}]


def test_table_of_models_has_a_row_for_each_figure_with_a_model() -> None:
    assert texts.models(ONE, Measured("", {"ours": LINE})).splitlines() == [
        "| figure | model | linear up to, clients | beyond it |",
        "| --- | --- | --- | --- |",
        "| CPU ms | 1.00 ms + 10.0 µs a client | 400 | |",
    ]


def test_row_has_the_slope_beyond_the_line_and_the_name_of_the_series() -> None:
    lines = texts.models(TWO, Measured("", {"queue": LINE, "stream": BENT})).splitlines()
    assert lines[2:] == [
        "| queue: CPU ms | 1.00 ms + 10.0 µs a client | 400 | |",
        "| stream: CPU ms | 1.00 ms + 10.0 µs a client | 400 | 100 µs a client |",
    ]


def test_table_of_points_has_each_figure_at_each_place() -> None:
    assert texts.values(ONE, Measured("", {"ours": LINE})).splitlines() == [
        "| clients | 100 | 200 | 400 |",
        "| --- | --- | --- | --- |",
        "| CPU ms | 2.00 | 3.00 | 5.00 |",
        "| p99 ms | 3.00 | 3.00 | 3.00 |",
    ]
