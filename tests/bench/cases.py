"""What a case is: one table, made of one measurement of each candidate a round."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.candidates import OURS, Candidate, Place

Row = Mapping[str, float]
"""What one measurement of one candidate gave, by a column's key."""

LOST, MISPLACED = "lost", "misplaced"


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of each candidate: the median over the rounds."""

    key: str
    head: str
    digits: int = 0
    against: str | None = None
    """The figure is its ratio to that candidate's, of the same round: what the machine did to both cancels out."""


@dataclass(frozen=True, slots=True)
class Case:
    """One table."""

    scenario: str
    title: str
    columns: Sequence[Column]
    measure: Callable[[Place, Candidate], Row]
    clients: int
    """The most at once, each of which takes a file descriptor."""
    not_for: frozenset[str] = frozenset()
    only_ours: bool = False
    rounds: int | None = None
    """None: as many as were asked for."""

    def takes(self, candidate: Candidate) -> bool:
        """Whether it means anything for the candidate."""
        return candidate.name not in self.not_for and (not self.only_ours or candidate.name == OURS)


def faults(case: Case, rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """What the bridge did that it never may, whatever the machine is like: sentences."""
    found = []
    for number, row in enumerate(rows.get(OURS, ()), 1):
        for key, what in ((LOST, "lost"), (MISPLACED, "doubled or out of order")):
            if row.get(key, 0):
                found.append(f"{case.title}, round {number}: {row[key]:.0f} updates {what}")
    return found


def table(case: Case, rows: Mapping[str, Sequence[Row]]) -> str:
    """The case as a Markdown table with its title."""
    lines = [
        ["candidate", *(column.head for column in case.columns)],
        ["---", *("---:" for _ in case.columns)],
        *([name, *(_cell(column, name, rows) for column in case.columns)] for name in rows if rows[name]),
    ]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"### {case.title}\n\n{text}\n"


def _cell(column: Column, name: str, rows: Mapping[str, Sequence[Row]]) -> str:
    values = [row.get(column.key) for row in rows[name]]
    if column.against is not None:
        # Rounds of the other may be missing, where it could not be measured.
        others = [row.get(column.key) for row in rows.get(column.against, ())]
        pairs = zip(values, others, strict=False)
        values = [None if not other or value is None else value / other for value, other in pairs]
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{column.digits}f}" if known else "-"
