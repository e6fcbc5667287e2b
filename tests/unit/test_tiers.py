"""Tests that the two parts of the unit tests in the Makefile are complementary."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_parts_of_the_unit_tests_are_all_of_them() -> None:
    [first] = re.findall(r"^FIRST := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    folders = [ROOT / folder for folder in first.split()]
    assert folders
    assert [folder for folder in folders if not folder.is_dir() or folder.parent != ROOT / "tests/unit"] == []
