"""Tests of the verdicts of the benchmark's guard, and of its committed ratios."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.bench import build, guard, machine
from tests.bench.guard import LAST, LIMIT_DEVIATIONS, LOUD_NOISE, MIN_NOISE, RATIOS, TO_PLAIN_SEND, Committed
from tests.support.broker.find import NamedBroker
from tests.support.documentation import ROOT

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
    [sentence] = guard.verdicts({**dict.fromkeys(RATIOS, 2.0), "paced": 2.45}, known)
    assert sentence == (
        f"{RATIOS['paced']}: the ratio is 2.450. The committed ratio is 2.000, and noise explains at most 2.400. "
        "Run the guard again. If it fails again, a change has made this slower."
    )


def test_ratio_at_its_best_says_nothing_and_a_better_one_asks_for_a_record() -> None:
    known = dict.fromkeys(RATIOS, Committed(2.4, 0.05))
    assert guard.improvements(dict.fromkeys(RATIOS, known["paced"].best), known) == []
    assert guard.improvements(dict.fromkeys(RATIOS, 9.0), known) == []
    [sentence] = guard.improvements({**dict.fromkeys(RATIOS, 2.4), "paced": 1.9}, known)
    assert sentence == (
        f"{RATIOS['paced']}: the ratio is 1.900. The committed ratio is 2.400, and noise explains at least 2.000. "
        "A change has made this faster. Record again, because the guard misses later changes for the worse up to the "
        "old limit."
    )


def test_ratio_to_the_plain_send_may_also_change_because_of_the_plain_send() -> None:
    known = dict.fromkeys(RATIOS, Committed(2.0, 0.05))
    for find, value, cause in (
        (guard.verdicts, 9.0, "slower, or has made the plain send cheaper: see the first ratio."),
        (guard.improvements, 0.1, "faster, or has made the plain send slower: see the first ratio."),
    ):
        sentences = find(dict.fromkeys(RATIOS, value), known)
        hints = {key for key, sentence in zip(RATIOS, sentences, strict=True) if f"has made this {cause}" in sentence}
        assert hints == TO_PLAIN_SEND


def test_only_a_recorded_ratio_with_much_noise_gets_a_warning() -> None:
    known = {**dict.fromkeys(RATIOS, Committed(2.0, LOUD_NOISE)), "tls": Committed(2.0, 0.06)}
    [sentence] = guard.warnings(known)
    assert sentence == (
        f"{RATIOS['tls']}: the noise is 6.0 %, so the guard fails only above +24 %. Record again on a quiet machine."
    )


def test_table_has_all_ratios_with_their_limits() -> None:
    lines = guard.table(RUNS[0], dict.fromkeys(RATIOS, Committed(1.0, 0.03)), {}).splitlines()
    assert [tuple(line.strip("| ").split(" | ")[:2]) for line in lines[2:]] == list(RATIOS.items())
    assert lines[2].endswith("| 0.900 | 1.000 | 1.120 (+12 %) |  |  |")


def test_table_shows_the_change_of_each_ratio_that_the_last_run_had() -> None:
    lines = guard.table(RUNS[0], guard.committed(RUNS), {"paced": 1.0, "saturated": 0.75}).splitlines()
    assert lines[2].endswith("| 1.000 | -10 % |")
    assert lines[3].endswith("| 0.750 | +20 % |")
    assert lines[4].endswith("|  |  |")


def test_kept_ratios_are_those_of_the_last_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "BUILT", tmp_path)
    assert guard.load_last() == {}
    guard.keep(RUNS[0])
    guard.keep(RUNS[1])
    assert guard.load_last() == RUNS[1]


def test_git_ignores_the_kept_ratios() -> None:
    assert f"{build.BUILT.name}/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("recorded", "differs"),
    [
        ("CPU, 2 cores, Linux 6.1; Python 3.11.1 with OpenSSL 3.0", False),
        ("CPU, 2 cores, Linux 6.1; Python 3.11.1; uvloop 0.23", False),
        ("CPU, 2 cores, Linux 6.1; Python 3.11.12; uvloop 0.23", True),
        ("CPU, 2 cores, Linux 6.2; Python 3.11.1; uvloop 0.23", True),
        ("CPU, 4 cores, Linux 6.1; Python 3.11.1; uvloop 0.23", True),
    ],
)
def test_other_machine_is_another_processor_kernel_or_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorded: str, differs: bool
) -> None:
    monkeypatch.setattr(guard, "FILE", tmp_path / "guard.json")
    guard.record(RUNS, recorded)
    here = "CPU, 2 cores, Linux 6.1; Python 3.11.1"
    sentence = guard.other_machine(here)
    assert bool(sentence) is differs
    assert not differs or sentence.endswith(f"\nrecorded: {recorded}\nhere: {here}")


def test_help_has_the_limit_as_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        guard.parsed(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"more than {LIMIT_DEVIATIONS:g} times its noise" in shown
    assert "LIMIT_DEVIATIONS" not in shown


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


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the guard prints. It builds and measures nothing. The recorded ratios are RUNS, from this machine."""
    monkeypatch.setattr(build, "build", lambda: None)
    monkeypatch.setattr(build, "BUILT", tmp_path)
    monkeypatch.setattr(guard, "FILE", tmp_path / "recorded.json")
    monkeypatch.setattr(machine, "broker_version", lambda amqp: "3.10.8")
    monkeypatch.setattr(machine, "line", lambda broker: f"{machine.host()}; RabbitMQ {broker}")
    guard.record(RUNS, machine.line("3.10.8"))
    return []


def run(monkeypatch: pytest.MonkeyPatch, printed: list[str], ratio: float, *words: str) -> bool:
    """Runs the guard with the same value for all ratios."""
    monkeypatch.setattr(guard, "measure", lambda place, *size: dict.fromkeys(RATIOS, ratio))
    return guard.run(NamedBroker("amqp://localhost"), guard.parsed(list(words)), printed.append)


@pytest.mark.parametrize(
    ("ratio", "passes", "sentence"), [(1.0, True, ""), (9.0, False, "\nWRONG: "), (0.1, True, "\nBETTER: ")]
)
def test_run_fails_if_a_ratio_is_worse_than_its_limit(
    monkeypatch: pytest.MonkeyPatch, printed: list[str], ratio: float, passes: bool, sentence: str
) -> None:
    assert run(monkeypatch, printed, ratio) is passes
    assert len(printed) == (2 + len(RATIOS) if sentence else 2)
    assert all(line.startswith(sentence) for line in printed[1:-1])
    assert printed[-1] == ("\nThe guard passes." if passes else "\nThe guard fails.")


def test_second_run_shows_the_change_since_the_first(monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    run(monkeypatch, printed, 1.0)
    assert (build.BUILT / LAST).exists()
    run(monkeypatch, printed, 1.1)
    first, second = printed[0], printed[2]
    assert "| 1.000 | +10 % |" not in first
    assert second.count("| 1.000 | +10 % |") == len(RATIOS)


def test_run_on_another_machine_names_both(monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    guard.record(RUNS, "another machine")
    assert run(monkeypatch, printed, 1.0)
    assert printed[1].startswith("\nOTHER MACHINE: ")
    assert f"recorded: another machine\nhere: {machine.host()}" in printed[1]


def test_recording_on_a_busy_machine_gets_a_warning(monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    values = iter([1.0, 1.2])
    monkeypatch.setattr(guard, "measure", lambda place: dict.fromkeys(RATIOS, next(values)))
    assert guard.run(NamedBroker("amqp://localhost"), guard.parsed(["--record", "2"]), printed.append)
    assert len(printed) == 1 + len(RATIOS)
    assert all(line.startswith("\nNOISY: ") for line in printed[1:])


def test_recording_without_noise_gets_no_warning(monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    assert run(monkeypatch, printed, 1.0, "--record", "2")
    assert len(printed) == 1


def test_quick_run_compares_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    assert run(monkeypatch, printed, 9.0, "--quick")
    assert printed == [json.dumps(dict.fromkeys(RATIOS, 9.0))]
    assert guard.load_last() == {}
