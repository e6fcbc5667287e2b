"""Tests of the verdicts of the benchmark's guard, and of its committed ratios."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.bench import build, guard
from tests.bench.guard import LIMIT_DEVIATIONS, MIN_NOISE, RATIOS, Committed
from tests.support.broker.find import NamedBroker

if TYPE_CHECKING:
    from pathlib import Path

RUNS = [dict.fromkeys(RATIOS, value) for value in (0.9, 1.0, 1.1)]


def test_committed_ratio_is_the_median_of_all_runs_and_noise_is_their_deviation() -> None:
    for each in guard.committed(RUNS).values():
        assert each.ratio == 1.0
        assert each.noise == pytest.approx(0.1, abs=0.005)
        assert each.limit == pytest.approx(1 + LIMIT_DEVIATIONS * each.noise)


def test_runs_that_agree_by_chance_leave_some_noise() -> None:
    assert {each.noise for each in guard.committed([RUNS[0], RUNS[0]]).values()} == {MIN_NOISE}


def test_ratio_at_its_limit_passes_and_a_worse_one_gets_a_sentence() -> None:
    known = dict.fromkeys(RATIOS, Committed(2.0, 0.05))
    assert guard.verdicts(dict.fromkeys(RATIOS, known["paced"].limit), known) == []
    assert guard.verdicts(dict.fromkeys(RATIOS, 0.1), known) == []
    [sentence] = guard.verdicts({**dict.fromkeys(RATIOS, 2.0), "ids": 2.45}, known)
    assert sentence == (
        "a paced send: with ids to without ids: the ratio is 2.450. The committed ratio is 2.000, and noise explains "
        "at most 2.400. Run the guard again. If it fails again, a change has made this slower."
    )


def test_table_has_all_ratios() -> None:
    lines = guard.table(RUNS[0], guard.committed(RUNS)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(RATIOS.values())
    assert "| 0.900 | 1.000 | 1.4" in lines[2]


def test_recorded_file_can_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guard, "FILE", tmp_path / "guard.json")
    guard.record(RUNS, "a machine")
    assert guard.load() == guard.committed(RUNS)
    assert json.loads(guard.FILE.read_text())["machine"] == "a machine"


def test_committed_file_follows_from_its_runs() -> None:
    document = json.loads(guard.FILE.read_text())
    assert len(document["runs"]) > 1
    assert guard.load() == guard.committed(document["runs"])


@pytest.mark.parametrize("runs", ["1", "-1"])
def test_noise_needs_two_runs(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        guard.parsed(["--record", runs])
    assert f"--record {runs}: expected 2 or more, because one run has no noise" in capsys.readouterr().err


def test_guard_runs_without_options() -> None:
    asked = guard.parsed([])
    assert (asked.quick, asked.record) == (False, 0)


@pytest.mark.parametrize(("ratio", "passes"), [(1.0, True), (9.0, False)])
def test_run_fails_if_a_ratio_is_worse_than_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ratio: float, passes: bool
) -> None:
    monkeypatch.setattr(build, "build", lambda: None)
    monkeypatch.setattr(build, "BUILT", tmp_path)
    monkeypatch.setattr(guard, "measure", lambda place: dict.fromkeys(RATIOS, ratio))
    monkeypatch.setattr(guard, "load", lambda: guard.committed(RUNS))
    printed: list[str] = []
    assert guard.run(NamedBroker("amqp://localhost"), guard.parsed([]), printed.append) is passes
    assert len(printed) == (1 if passes else 1 + len(RATIOS))
    assert all(line.startswith("\nWRONG: ") for line in printed[1:])
