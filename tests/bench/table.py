"""The tables of the result, in Markdown, and their place in the README.

Each scenario has one table. A column of the table is a candidate.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tests.bench.cases import Case, Rows

README = Path(__file__).parent / "README.md"
BEGINS, ENDS = "<!-- figures: written by a whole run with --write -->", "<!-- end of figures -->"


def columns(cases: Sequence[Case], names: Sequence[str]) -> list[str]:
    """Returns the names of the candidates that at least one of the cases measures, in their order."""
    return [name for name in names if any(case.takes(name) for case in cases)]


def head(scenario: str, cases: Sequence[Case], names: Sequence[str]) -> str:
    """Returns the heading of a scenario, and the first lines of its table.

    The last column has the targets of the bridge, if there are any.
    """
    target = ["target of ours"] if has_targets(cases) else []
    return "\n".join(
        [
            f"### {scenario}",
            "",
            _line(["", "", *names, *target]),
            _line(["---", "---", *("---:" for _ in names), *("---" for _ in target)]),
        ]
    )


def has_targets(cases: Sequence[Case]) -> bool:
    """Whether a figure of the cases has a target."""
    return any(figure.target for case in cases for figure in case.figures)


def lines(case: Case, names: Sequence[str], rows: Rows, targets: bool = False) -> str:
    """Returns the lines of a case in the table. `targets` adds the column of the targets."""
    titles = [case.title, *("" for _ in case.figures)]
    return "\n".join(
        _line(
            [title, figure.name, *(figure.shown(name, rows) for name in names), *([figure.target] if targets else [])]
        )
        for title, figure in zip(titles, case.figures, strict=False)
    )


def document(machine: str, missed: Sequence[str], tables: Sequence[str]) -> str:
    """Returns the text between the markers of the README.

    `machine` describes the machine and the versions, and `missed` has a sentence about each missed target.
    """
    targets = ["All targets are reached."]
    if missed:
        targets = ["These targets are missed:", "\n".join(f"- {each}" for each in missed)]
    return "\n\n".join([machine, *targets, *tables])


def filled(text: str, figures: str) -> str:
    """Returns the README's text with new figures. Raises ValueError if the text has no place for them."""
    place = re.compile(f"{re.escape(BEGINS)}.*?{re.escape(ENDS)}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise ValueError(f"the README has no place for the figures, between {BEGINS} and {ENDS}")
    return place.sub(lambda _: f"{BEGINS}\n\n{figures}\n\n{ENDS}", text)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
