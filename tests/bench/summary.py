"""The table of the front page: a few figures from the tables of the benchmark's README, with two digits.

Each column has the best of its candidates in each row, so that no column depends on the choice of one program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.candidates import BUN, BUN_PUBLISH, NAIVE, OURS
from tests.bench.table import BEGINS, ENDS

UNKNOWN = "?"
"""The cell of a figure that was not measured."""

COLUMNS: Mapping[str, Sequence[str]] = {
    "edk-bridge": (OURS,),
    "aio-pika and websockets": (NAIVE,),
    "Bun and amqplib": (BUN, BUN_PUBLISH),
}
"""The heads of the columns, and the candidates of each."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A row of the front page."""

    scenario: str
    case: str
    """The beginning of the title of the case, without the scenario."""
    figure: str
    """The name of the figure in the table of the scenario."""
    meaning: str
    unit: str = ""
    more_is_better: bool = False


ROWS = (
    Summary(
        "paced", "1000 clients", "CPU µs per send", "CPU for an update and client; 1000 clients, 20 updates/s", "µs"
    ),
    Summary("paced", "1000 clients", "publish to receipt, p99 ms", "publish to receipt, p99", "ms"),
    Summary("saturated", "100 clients", "sends per second", "updates/s to 100 clients, in all", more_is_better=True),
    Summary(
        "slow",
        "500 clients read, 500 do not",
        "p99 ms of readers with stalled clients",
        "500 of 1000 clients do not read: p99 of others",
        "ms",
    ),
    Summary("slow", "500 clients read, 500 do not", "MB grown, maximum", "memory growth", "MB"),
)

Cells = Mapping[str, str]
"""The figures of one row: maps the name of each candidate to its cell."""


def figures(text: str) -> dict[tuple[str, str], Cells]:
    """Returns all figures of the benchmark's README, by the title of their case and their name.

    If a case has several figures with the same name, the first one counts.
    """
    found: dict[tuple[str, str], Cells] = {}
    heads: list[str] = []
    title = ""
    for line in text.partition(BEGINS)[2].partition(ENDS)[0].splitlines():
        if not line.startswith("|") or line.startswith("| ---"):
            continue
        first, name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if not name:
            heads = cells
            continue
        title = first or title
        found.setdefault((title, name), dict(zip(heads, cells, strict=True)))
    return found


def table(text: str) -> str:
    """Returns the table of the front page from the benchmark's README. Raises KeyError if it lacks a row."""
    known = figures(text)
    lines = [["", *COLUMNS], ["---", *("---:" for _ in COLUMNS)]]
    lines += [[f"`{row.scenario}`: {row.meaning}", *_values(row, _found(row, known))] for row in ROWS]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _found(row: Summary, known: Mapping[tuple[str, str], Cells]) -> Cells:
    begins = f"{row.scenario}: {row.case}"
    for (title, name), cells in known.items():
        if title.startswith(begins) and name == row.figure:
            return cells
    raise KeyError(f"the tables of the benchmark have no figure {row.figure!r} of a case {begins!r}")


def _values(row: Summary, cells: Cells) -> list[str]:
    best = max if row.more_is_better else min
    found = []
    for names in COLUMNS.values():
        values = [float(cell.replace(",", "")) for name in names if (cell := cells.get(name, ""))]
        found.append(shown(best(values), row.unit) if values else UNKNOWN)
    return found


def shown(value: float, unit: str) -> str:
    """Returns a value with two digits, thousands separators and its unit. A second or more is in seconds."""
    if unit == "ms" and value >= 1000:
        value, unit = value / 1000, "s"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f} {unit}".strip() if rounded >= 10 else f"{rounded:g} {unit}".strip()
