"""A case is one situation with a few figures. Each round measures each candidate once."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.candidates import NAIVE, NGINX, OURS, Candidate, Place

Row = Mapping[str, float]
"""The result of one measurement of one candidate: maps the key of each figure to its value."""

Rows = Mapping[str, Sequence[Row]]
"""The results of a case: maps the name of each candidate to its rows, one per round."""

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
    """If this names a candidate, the figure is the ratio to that candidate's figure in the same round.

    The speed of the machine has little effect on such a ratio.
    """
    at_most: float | None = None
    """The target: the bridge's figure is at most this. None: there is no such target."""
    at_least: float | None = None
    """The target: the bridge's figure is at least this. None: there is no such target."""

    @property
    def target(self) -> str:
        """The target in words, or an empty text."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    def value(self, name: str, rows: Rows) -> float | None:
        """Returns the median of a candidate's rounds, or None if the figure was not measured."""
        values = [row.get(self.key) for row in rows.get(name, ())]
        if self.against is not None:
            # A round has no ratio if the candidate in the denominator could not be measured in this round.
            others = [row.get(self.key) for row in rows.get(self.against, ())]
            pairs = zip(values, others, strict=False)
            values = [None if not other or value is None else value / other for value, other in pairs]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    def shown(self, name: str, rows: Rows) -> str:
        """Returns the value as a text with thousands separators, or an empty text if it was not measured."""
        value = self.value(name, rows)
        return "" if value is None else f"{value:,.{self.digits}f}"

    def missed(self, rows: Rows) -> bool:
        """Whether the bridge's figure was measured and does not reach its target."""
        value = self.value(OURS, rows)
        if value is None:
            return False
        return (self.at_most is not None and value > self.at_most) or (
            self.at_least is not None and value < self.at_least
        )


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
    rounds: int = 1
    """The number of rounds. The command line can override it."""
    tls: bool = False
    """Whether the clients use TLS. Only such a case measures the proxy."""
    needs: Sequence[str] = ()
    """The programs without which the case is left out. A program's Debian package has the same name."""

    def takes(self, name: str) -> bool:
        """Whether the case can measure the candidate of this name."""
        return name not in self.not_for and (not self.only_ours or name == OURS) and (self.tls or name != NGINX)

    def rounds_of(self, name: str, override: int | None) -> int:
        """Returns the number of rounds for the candidate of this name. `override` is from the command line.

        The program `naive` takes half of the time of a whole run, and its figures are far from all others. So it has
        one round.
        """
        return override or (1 if name == NAIVE else self.rounds)


def faults(case: Case, rows: Rows) -> list[str]:
    """Returns a sentence about each of the `FAULTS` that the bridge had."""
    return [
        f"{case.title}, round {number}: {row[key]:.0f} {what}"
        for number, row in enumerate(rows.get(OURS, ()), 1)
        for key, what in FAULTS.items()
        if row.get(key, 0)
    ]


def misses(case: Case, rows: Rows) -> list[str]:
    """Returns a sentence about each target that the bridge does not reach."""
    return [
        f"{case.title}: {figure.name}: {figure.shown(OURS, rows)}, target {figure.target}"
        for figure in case.figures
        if figure.missed(rows)
    ]
