"""Tests that the table of faults in the documentation names the same faults, in the same words, as the fault tests."""

import ast
import re
from functools import cache

import pytest

from tests.support.documentation import ROOT
from tests.support.figures import HEADS

SHORTEST = 12
"""Texts of at most this many characters are not compared with the table of faults."""


def rows() -> list[tuple[str, str]]:
    """Returns the fault and the reaction of each row of the table."""
    _, _, rest = (ROOT / "bridge/amqp/README.md").read_text().partition(f"| {' | '.join(HEADS)} |\n")
    table = rest.split("\n\n")[0].splitlines()[1:]
    return [(cells[1].strip(), cells[2].strip()) for cells in (line.split("|") for line in table)]


@cache
def texts() -> list[re.Pattern[str]]:
    """Returns one pattern for each text constant in the fault tests.

    In a pattern, a placeholder of an f-string matches any text.
    """
    patterns = []
    for file in (ROOT / "tests/faults").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            fixed = [each.value for each in parts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            # A pattern with few fixed characters would match any row of the table.
            if len("".join(fixed)) > SHORTEST:
                words = [re.escape(str(each.value)) if isinstance(each, ast.Constant) else ".+" for each in parts]
                patterns.append(re.compile("".join(words)))
    return patterns


@pytest.mark.parametrize(("fault", "reaction"), rows(), ids=lambda text: text[:40])
def test_row_is_printed_by_a_test(fault: str, reaction: str) -> None:
    assert any(pattern.fullmatch(fault) for pattern in texts())
    assert any(pattern.fullmatch(reaction) for pattern in texts())
