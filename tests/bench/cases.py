"""A case is a few rows of the printed table. Each round measures each candidate once."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.candidates import OURS, Candidate, Place

Row = Mapping[str, float]
"""The result of one measurement of one candidate: maps the key of each figure to its value."""

LOST, MISPLACED, CUT, REFUSED = "lost", "misplaced", "cut", "refused"
FAULTS = {
    LOST: "updates lost",
    MISPLACED: "updates duplicated or out of order",
    CUT: "reading clients disconnected",
    REFUSED: "clients refused",
}
"""The faults that the bridge must never have, on any machine."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table, with the median of all rounds for each candidate."""

    key: str
    name: str
    digits: int = 0
    against: str | None = None
    """If this names a candidate, the table shows the ratio to that candidate's figure in the same round.

    The speed of the machine has little effect on such a ratio.
    """


@dataclass(frozen=True, slots=True)
class Case:
    """One situation, and the figures that are measured in it."""

    title: str
    figures: Sequence[Figure]
    measure: Callable[[Place, Candidate], Row]
    clients: int
    """The maximum number of simultaneous clients. Each client takes a file descriptor."""
    not_for: frozenset[str] = frozenset()
    only_ours: bool = False
    rounds: int | None = None
    """The number of rounds. None means the number of rounds from the command line."""

    def takes(self, candidate: Candidate) -> bool:
        """Whether the case can measure the candidate."""
        return candidate.name not in self.not_for and (not self.only_ours or candidate.name == OURS)


def faults(case: Case, rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Returns a sentence about each of the `FAULTS` that the bridge had."""
    return [
        f"{case.title}, round {number}: {row[key]:.0f} {what}"
        for number, row in enumerate(rows.get(OURS, ()), 1)
        for key, what in FAULTS.items()
        if row.get(key, 0)
    ]


def head(names: Sequence[str]) -> str:
    """Returns the first lines of the table, in Markdown."""
    return "\n".join([_line(["", "", *names]), _line(["---", "---", *("---:" for _ in names)])])


def lines(case: Case, names: Sequence[str], rows: Mapping[str, Sequence[Row]]) -> str:
    """Returns the lines of a case in the table."""
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
        # A round has no ratio if the candidate in the denominator could not be measured in this round.
        others = [row.get(figure.key) for row in rows.get(figure.against, ())]
        pairs = zip(values, others, strict=False)
        values = [None if not other or value is None else value / other for value, other in pairs]
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{figure.digits}f}" if known else ""
