"""Tests of the run that measures curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.__main__ import parsed
from tests.bench.candidates import FLOOR, Place
from tests.bench.cases import FAULTS, LOST
from tests.bench.curves import points, run
from tests.bench.curves.points import Curve, Figure, Point
from tests.bench.process import Failed

PLACE = Place("amqp://localhost", "none", Path("/nonexistent"))
CURVE = Curve("tries", "Tries", "clients", (Figure("cpu_ms", "CPU ms"),), ("ours", FLOOR))


def measure(_place: Place, series: str, x: int) -> Point:
    return {"x": x, "cpu_ms": 1.23456, **dict.fromkeys(FAULTS, 0), LOST: x if series == FLOOR or x > 1 else 0}


def refuse(_place: Place, _series: str, _x: int) -> Point:
    raise Failed("no broker")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(points, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "CURVES", (CURVE,))
    monkeypatch.setattr(run, "PLOTS", tmp_path / "none")
    return tmp_path


def test_faults_of_the_bridge_fail_the_run_and_those_of_a_peer_do_not(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "sweeps", lambda _: {"tries": (measure, (1, 2))})
    lines: list[str] = []
    assert not run.run(PLACE, None, "a machine", ["tries"], lines.append)
    assert lines[1:] == ["WRONG: Tries; ours, 2: 2 updates lost"]
    found = points.read(CURVE)
    assert found.machine == "a machine"
    assert found.points == {name: [{"x": x, "cpu_ms": 1.235} for x in (1, 2)] for name in CURVE.series}


def test_curve_that_was_not_asked_for_is_not_measured(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "sweeps", lambda _: {"tries": (refuse, (1,))})
    assert run.run(PLACE, None, "a machine", ["others"], lambda _: None)
    assert not list(written.iterdir())


def test_curve_that_can_not_be_measured_fails_the_run_and_keeps_its_old_points(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "sweeps", lambda _: {"tries": (refuse, (1,))})
    lines: list[str] = []
    assert not run.run(PLACE, None, "a machine", ["tries"], lines.append)
    assert lines == ["WRONG: Tries: could not be measured"]
    assert not list(written.iterdir())


@pytest.mark.parametrize(
    ("words", "names"), [(["curves"], list(run.NAMES)), (["curves", "sizes"], ["sizes"]), (["paced"], [])]
)
def test_word_curves_is_followed_by_names_of_curves_or_means_all(words: list[str], names: list[str]) -> None:
    assert parsed(words).curves == names


def test_unknown_curve_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(["curves", "bends"])
    assert "unknown curve: bends; known: clients, sizes" in capsys.readouterr().err
