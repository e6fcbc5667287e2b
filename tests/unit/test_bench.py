"""Tests that find errors in the benchmark's figures that a reader would not notice."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pamqp import frame
from pamqp.body import ContentBody

from tests.bench.amqp import Publication
from tests.bench.candidates import FLOOR, OURS, Candidate
from tests.bench.cases import CUT, LOST, Case, Figure, faults, lines
from tests.bench.publish import SYSTEM
from tests.bench.scenarios import filters, stalled

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "tests" / "bench" / "peers"
LOCK = ROOT / "requirements.lock"


def canonical(distribution: str) -> str:
    """Returns the name of a distribution as lock files contain it (PEP 503)."""
    return re.sub("[-_.]+", "-", distribution).lower()


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
    shipped = {line.partition("==")[0] for line in LOCK.read_text().splitlines() if "==" in line} | {"edk-bridge"}
    others = [name for name, owners in packages_distributions().items() if shipped.isdisjoint(map(canonical, owners))]
    code = f"import sys; sys.modules.update(dict.fromkeys({others!r})); import {peers}"
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
    assert len({case.title for case in cases}) == len(cases) == 2 * len(stalled.SIZES) * len(stalled.CLIENTS)
    for case in cases:
        assert case.takes(Candidate(OURS, []))
        assert not case.takes(Candidate("naive", []))
        assert any(figure.key == "one_mb" for figure in case.figures) == case.title.endswith(("256 KB", "3.9 MB"))
