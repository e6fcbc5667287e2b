"""What a case is: a few rows of the one table that is printed, made of one measurement of each candidate a round."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.candidates import OURS, Candidate, Place

Row = Mapping[str, float]
"""What one measurement of one candidate gave, by a figure's key."""

LOST, MISPLACED, CUT, REFUSED = "lost", "misplaced", "cut", "refused"
FAULTS = {
    LOST: "updates lost",
    MISPLACED: "updates doubled or out of order",
    CUT: "clients that read cut off",
    REFUSED: "clients refused",
}
"""What the bridge never may do, whatever the machine is like."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table: for each candidate the median over the rounds."""

    key: str
    name: str
    digits: int = 0
    against: str | None = None
    """The figure is its ratio to that candidate's, of the same round: what the machine did to both cancels out."""


@dataclass(frozen=True, slots=True)
class Case:
    """One set of circumstances, and what is measured in it."""

    title: str
    figures: Sequence[Figure]
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
    """What the bridge did that it never may: sentences."""
    return [
        f"{case.title}, round {number}: {row[key]:.0f} {what}"
        for number, row in enumerate(rows.get(OURS, ()), 1)
        for key, what in FAULTS.items()
        if row.get(key, 0)
    ]


def head(names: Sequence[str]) -> str:
    """The first lines of the table, in Markdown."""
    return "\n".join([_line(["", "", *names]), _line(["---", "---", *("---:" for _ in names)])])


def lines(case: Case, names: Sequence[str], rows: Mapping[str, Sequence[Row]]) -> str:
    """The case's lines of the table."""
    titles = [case.title, *("" for _ in case.figures)]
    return "\n".join(
        _line([title, figure.name, *(_cell(figure, name, rows) for name in names)])
        for title, figure in zip(titles, case.figures, strict=False)
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(figure: Figure, name: str, rows: Mapping[str, Sequence[Row]]) -> str:
    values = [row.get(figure.key) for row in rows.get(name, ())]
    if figure.against is not None:
        # Rounds of the other may be missing, where it could not be measured.
        others = [row.get(figure.key) for row in rows.get(figure.against, ())]
        pairs = zip(values, others, strict=False)
        values = [None if not other or value is None else value / other for value, other in pairs]
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{figure.digits}f}" if known else ""
