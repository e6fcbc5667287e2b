"""Tests that find errors in the benchmark's figures that a reader would not notice."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pamqp import frame
from pamqp.body import ContentBody

from tests.bench import build, machine
from tests.bench.__main__ import SCENARIOS, SPARE_DESCRIPTORS, obstacle, parsed, run
from tests.bench.amqp import Publication
from tests.bench.candidates import FLOOR, NAIVE, NAMES, NGINX, OURS, Candidate, Place
from tests.bench.cases import CUT, LOST, Case, Figure, Row, faults, misses
from tests.bench.process import Failed
from tests.bench.publish import SYSTEM
from tests.bench.scenarios import filters, stalled
from tests.bench.table import BEGINS, ENDS, README, columns, document, filled, has_targets, head, lines
from tests.support.loaded_modules import packages

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "tests" / "bench" / "peers"


CASE = Case(
    "paced",
    (Figure("cpu_us", "CPU", 2), Figure("cpu_us", "times the floor", 2, FLOOR), Figure(LOST, "lost")),
    lambda place, candidate: {},
    10,
)
ROWS = {
    FLOOR: [{"cpu_us": 6.0, LOST: 0}, {"cpu_us": 9.0, LOST: 0}, {"cpu_us": 8.0, LOST: 0}],
    OURS: [{"cpu_us": 12.0, LOST: 0}, {"cpu_us": 9.0, LOST: 0}, {}],
}


def test_peers_in_python_need_only_packages_of_the_bridge() -> None:
    peers = ", ".join(f"tests.bench.peers.{file.stem}" for file in PEERS.glob("[!_]*.py"))
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(packages()[1])!r})); import {peers}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_lines_show_medians_and_ratios_of_the_same_round() -> None:
    assert lines(CASE, [FLOOR, OURS, "naive"], ROWS).splitlines() == [
        "| paced | CPU | 8.00 | 10.50 |  |",
        "|  | times the floor | 1.00 | 1.50 |  |",
        "|  | lost | 0 | 0 |  |",
    ]


def test_updates_lost_by_the_bridge_are_errors_and_those_lost_by_a_peer_are_not() -> None:
    rows = {OURS: [{LOST: 0, CUT: 0}, {LOST: 3, CUT: 1}], "naive": [{LOST: 7}]}
    assert faults(CASE, rows) == ["paced, round 2: 3 updates lost", "paced, round 2: 1 reading clients disconnected"]


@pytest.mark.parametrize("kind", [filters.ALL, filters.FEW])
def test_filters_of_the_benchmark_are_all_different_and_match_their_stated_share(kind: filters.Kind) -> None:
    asked = [set(parse_qs(urlsplit(path).query)["systemId"]) for path in kind.paths]
    published = [{str(SYSTEM + number)} for number in range(kind.systems)]
    assert len(set(map(frozenset, asked))) == filters.FILTERS
    assert [sum(bool(values & systems) for systems in published) for values in asked] == [1] * filters.FILTERS


@pytest.mark.parametrize("size", [1, 131_064, 131_065, 3_900_000])
def test_large_event_of_the_benchmark_is_published_in_frames_that_the_broker_accepts(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    rest, parts = Publication("killmails").of(body), []
    while rest:
        taken, _, part = frame.unmarshal(rest)
        assert taken <= 131_072
        rest = rest[taken:]
        parts.append(part)
    pieces = [part.value for part in parts if isinstance(part, ContentBody)]
    assert b"".join(filter(None, pieces)) == body


def test_stalled_clients_are_measured_only_for_the_bridge_and_with_one_update_only_if_it_stalls_them() -> None:
    cases = stalled.cases(quick=False)
    assert len({case.title for case in cases}) == len(cases) == 2 * len(stalled.SIZES)
    for case in cases:
        assert case.takes(OURS)
        assert not case.takes(NAIVE)
        assert any("one_mb" in figure.key for figure in case.figures) == case.title.endswith(("256 KB", "3.9 MB"))


@pytest.mark.parametrize(
    ("figure", "value", "missed"),
    [
        (Figure("rate", "rate", at_least=2), 2.0, False),
        (Figure("rate", "rate", at_least=2), 1.9, True),
        (Figure("rate", "rate", at_most=2), 2.0, False),
        (Figure("rate", "rate", at_most=2), 2.1, True),
        (Figure("rate", "rate"), 100.0, False),
        (Figure("other", "not measured", at_most=2), 100.0, False),
    ],
)
def test_target_is_missed_beyond_its_limit(figure: Figure, value: float, missed: bool) -> None:
    assert figure.missed({OURS: [{"rate": value}], NAIVE: [{"rate": 50}]}) == missed


def test_missed_target_is_reported_with_its_value_and_its_limit() -> None:
    case = Case("storm", (Figure("s", "s until back", 1, at_most=2),), lambda place, candidate: {}, 10)
    assert misses(case, {OURS: [{"s": 3}]}) == ["storm: s until back: 3.0, target at most 2"]
    assert misses(case, {OURS: [{"s": 1}]}) == []


def test_slow_program_has_one_round_unless_the_command_line_asks_for_more() -> None:
    case = Case("paced", (), lambda place, candidate: {}, 10, rounds=3)
    assert [case.rounds_of(name, None) for name in (OURS, NAIVE)] == [3, 1]
    assert [case.rounds_of(name, 2) for name in (OURS, NAIVE)] == [2, 2]


def test_only_cases_with_tls_measure_the_proxy() -> None:
    cases = {name: make(False) for name, make in SCENARIOS.items()}
    assert [name for name, each in cases.items() if NGINX in columns(each, list(NAMES))] == ["tls"]


def test_head_has_a_column_for_targets_only_if_there_are_any() -> None:
    limited = Case("storm", (Figure("s", "s", at_most=2),), lambda place, candidate: {}, 10)
    assert head("x", [limited], [OURS]).splitlines() == [
        "### x",
        "",
        "|  |  | ours | target of ours |",
        "| --- | --- | ---: | --- |",
    ]
    assert head("x", [CASE], [OURS]).splitlines()[2:] == ["|  |  | ours |", "| --- | --- | ---: |"]
    assert lines(limited, [OURS], {OURS: [{"s": 1}]}, targets=True) == "| storm | s | 1 | at most 2 |"


def test_document_begins_with_the_machine_and_the_missed_targets() -> None:
    assert document("machine", ["a", "b"], ["table"]) == "machine\n\nThese targets are missed:\n\n- a\n- b\n\ntable"
    assert document("machine", [], ["table"]) == "machine\n\nAll targets are reached.\n\ntable"


def test_figures_replace_only_the_text_between_the_markers() -> None:
    text = f"before\n{BEGINS}\nold\n{ENDS}\nafter"
    assert filled(text, "new\\1") == f"before\n{BEGINS}\n\nnew\\1\n\n{ENDS}\nafter"
    with pytest.raises(ValueError, match="no place"):
        filled("without markers", "new")


def labels(table: str) -> list[list[str]]:
    """Returns the columns of a table, and the first two cells of each row."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return [cells[0], *(row[:2] for row in cells[1:])]


def test_committed_tables_have_all_rows_and_columns_of_a_whole_run() -> None:
    committed = README.read_text().partition(BEGINS)[2].partition(ENDS)[0]
    found = re.findall(r"^### (\w+)\n\n((?:\|.*\n)+)", committed, re.MULTILINE)
    expected = []
    for name, make in SCENARIOS.items():
        cases = make(False)
        names, targets = columns(cases, list(NAMES)), has_targets(cases)
        table = "\n".join([head(name, cases, names), *(lines(case, names, {}, targets) for case in cases)])
        expected.append((name, labels(table)))
    assert [(name, labels(table)) for name, table in found] == expected, "run `make bench FLAGS=--write`"


@pytest.mark.parametrize("words", [["paced"], ["--quick"], ["--rounds", "1"], ["--candidates", "ours"]], ids=" ".join)
def test_part_of_a_run_is_not_written_into_the_readme(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed([*words, "--write"])
    assert "--write needs a run of all" in capsys.readouterr().err
    assert parsed(["--write"]).write


def test_missing_program_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        Failed, match=re.escape("no-such-program is missing; run: sudo apt-get install no-such-program")
    ):
        build.installed("no-such-program")


def test_help_names_the_guard_only_as_a_command_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("guard") == shown.count("python -m tests.bench guard") == 2


def test_line_of_the_machine_has_only_programs_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(program: str = "bun") -> Path:
        raise Failed(f"{program} is missing")

    monkeypatch.setattr(build, "installed", missing)
    line = machine.line("3.10.8")
    assert line.startswith(machine.host())
    assert "; RabbitMQ 3.10.8; " in line
    assert " with OpenSSL " in line
    assert "nginx" not in line
    assert "HAProxy" not in line


def test_case_is_left_out_if_the_machine_has_too_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    below, above = (Case("", (), CASE.measure, 1000 - SPARE_DESCRIPTORS + more) for more in (0, 1))
    assert obstacle(below) is None
    assert obstacle(above) == "a process has only 1000 file descriptors; raise `ulimit -n`"


def test_case_is_left_out_if_the_machine_lacks_a_program() -> None:
    case = Case("tls", (), CASE.measure, 10, needs=("sh", "no-such-program"))
    assert str(obstacle(case)).startswith("no-such-program is missing")
    assert obstacle(Case("tls", (), CASE.measure, 10, needs=("sh",))) is None


def test_run_returns_tables_faults_and_missed_targets(capsys: pytest.CaptureFixture[str]) -> None:
    results = iter([{"s": 3.0, LOST: 1}, {"s": 5.0}])
    case = Case("storm", (Figure("s", "s until back", 1, at_most=2),), lambda place, candidate: next(results), 10)
    candidates = [Candidate(OURS, []), Candidate(NAIVE, [])]
    tables, wrong, missed = run(Place("amqp://localhost", "none", Path("log")), {"connect": [case]}, candidates, None)
    assert tables == [head("connect", [case], [OURS, NAIVE]) + "\n| storm | s until back | 3.0 | 5.0 | at most 2 |"]
    assert wrong == ["storm, round 1: 1 updates lost"]
    assert missed == ["storm: s until back: 3.0, target at most 2"]
    assert capsys.readouterr().out == f"{tables[0]}\n\n"


def test_run_reports_that_the_bridge_could_not_be_measured() -> None:
    def fail(place: Place, candidate: Candidate) -> Row:
        raise Failed(f"{candidate.name} ended")

    case = Case("storm", (Figure("s", "s until back"),), fail, 10)
    candidates = [Candidate(OURS, []), Candidate(NAIVE, [])]
    tables, wrong, missed = run(Place("amqp://localhost", "none", Path("log")), {"connect": [case]}, candidates, 2)
    assert tables[0].endswith("\n| storm | s until back |  |  |")
    assert (wrong, missed) == (["storm: ours could not be measured"], [])
