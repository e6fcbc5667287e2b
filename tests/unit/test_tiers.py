"""The two halves of the unit tests in the Makefile leave out no test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_halves_of_the_unit_tests_are_all_of_them() -> None:
    patterns = re.findall(r"\$\(wildcard (tests/unit/\S+?)\)", (ROOT / "Makefile").read_text())
    halves = [sorted(ROOT.glob(pattern)) for pattern in patterns]
    assert len(halves) == 2
    assert sorted(halves[0] + halves[1]) == sorted((ROOT / "tests/unit").rglob("test_*.py"))
