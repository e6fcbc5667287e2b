"""Tests of the files with points, and that the committed pictures show their models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.curves import points
from tests.bench.curves.model import Line, Model
from tests.bench.curves.points import CURVES, Curve, Figure, Measured, Unit, number, read, sentence, write
from tests.bench.curves.sweeps import sweeps

FIGURE = Figure("cpu_ms", "CPU ms", Unit("ms"), Unit("µs a client", 1000))
CURVE = Curve("tries", "Tries", "clients", (FIGURE, Figure("p99_ms", "p99 ms")))
POINTS = [{"x": x, "cpu_ms": 1 + 0.01 * x, "p99_ms": 3.0} for x in (100, 200, 400)]
MEASURED = Measured("a machine; `µ`", {"ours": POINTS})


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "FOLDER", tmp_path)


@pytest.mark.usefixtures("_folder")
def test_points_that_are_written_are_read() -> None:
    write(CURVE, MEASURED)
    assert read(CURVE) == MEASURED
    assert CURVE.file.read_text().count("\n") == len(POINTS) + 5


@pytest.mark.usefixtures("_folder")
def test_curve_without_points_is_an_error() -> None:
    with pytest.raises(OSError, match=r"tries\.json"):
        read(CURVE)


def test_median_counts_if_a_place_was_measured_several_times() -> None:
    several = [{"x": 2.0, "cpu_ms": each} for each in (9.0, 1.0, 2.0)]
    assert Measured("", {"ours": [*several, {"x": 1.0, "cpu_ms": 5.0}]}).values("ours", "cpu_ms") == [(1, 5), (2, 2)]


def test_figure_without_units_and_figure_with_few_points_have_no_model() -> None:
    assert MEASURED.model("ours", FIGURE) is not None
    assert MEASURED.model("ours", CURVE.figures[1]) is None
    assert Measured("", {"ours": POINTS[:2]}).model("ours", FIGURE) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0234, "0.0234"),
        (0.5, "0.500"),
        (9.87, "9.87"),
        (9.999, "10.0"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12_345, "12,345"),
    ],
)
def test_number_has_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("base", "text"), [(1.5, "1.50 ms + 10.0 µs a client"), (0, "10.0 µs a client")])
def test_sentence_has_the_base_unless_it_is_zero(base: float, text: str) -> None:
    assert sentence(Model(Line(base, 0.01), 100, None), FIGURE) == text


def test_each_curve_is_measured() -> None:
    assert list(sweeps(None)) == [curve.name for curve in CURVES]
    for curve in CURVES:
        for figure in curve.figures:
            assert (figure.base is None) == (figure.slope is None)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_committed_points_have_each_figure_of_their_curve(curve: Curve) -> None:
    measured = read(curve)
    assert list(measured.points) == list(curve.series)
    for series in measured.points.values():
        assert len(series) >= 4
        for point in series:
            assert all(point[figure.key] > 0 for figure in curve.figures)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_committed_picture_shows_the_models_of_the_committed_points(curve: Curve) -> None:
    measured, picture = read(curve), curve.picture.read_text()
    assert len(picture) < 100_000
    for figure in curve.figures:
        assert f">{figure.name}<" in picture
        for series in curve.series:
            found = measured.model(series, figure)
            if found is not None:
                assert f">{series}: {sentence(found, figure)}<" in picture, "run `make curves`"
