"""Tests of the table of costs on the front page."""

from __future__ import annotations

import pytest

from tests.bench import summary
from tests.bench.summary import COLUMNS, ROWS
from tests.bench.table import BEGINS, ENDS, README

TABLES = f"""| before | the figures |
{BEGINS}

The machine.

### paced

|  |  | ours | naive | bun | bun-publish | target of ours |
| --- | --- | ---: | ---: | ---: | ---: | --- |
| paced: 1000 clients, 20 updates per second | CPU µs per send | 7.55 | 20.36 | 10.03 | 9.20 | at most 8 |
|  | publish to receipt, p99 ms | 16.8 |  |  | 18.1 |  |
| paced: 8000 clients, 2 updates per second | CPU µs per send | 11 | 12 | 13 | 14 | |

### saturated

|  |  | ours | naive | bun | bun-publish |
| --- | --- | ---: | ---: | ---: | ---: |
| saturated: 100 clients, 20000 updates at once | sends per second | 1,381,126 | 59,184 | 136,654 | 1,190,858 |

### slow

|  |  | ours | naive | bun |
| --- | --- | ---: | ---: | ---: |
| slow: 500 clients read, 500 do not | p99 ms of readers with stalled clients | 9.3 | 28,246.0 | 1,155.1 |
|  | MB grown, maximum | 5 | 240 | 1,655 |
|  | MB grown, maximum | 6 | 241 | 1,656 |

{ENDS}
| after | the figures |
"""


def rows(text: str) -> list[list[str]]:
    """Returns the cells of the candidates, row by row."""
    lines = summary.table(text).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines[2:]]


def test_each_cell_has_the_best_of_its_candidates() -> None:
    assert rows(TABLES) == [
        ["7.5 µs", "20 µs", "9.2 µs"],
        ["17 ms", "?", "18 ms"],
        ["1,400,000", "59,000", "1,200,000"],
        ["9.3 ms", "28 s", "1.2 s"],
        ["5 MB", "240 MB", "1,700 MB"],
    ]


def test_each_row_names_its_scenario() -> None:
    lines = summary.table(TABLES).splitlines()
    assert lines[0] == f"| | {' | '.join(COLUMNS)} |"
    assert [line.partition(":")[0] for line in lines[2:]] == [f"| `{row.scenario}`" for row in ROWS]


def test_missing_figure_is_named() -> None:
    text = TABLES.replace("sends per second", "sends")
    with pytest.raises(KeyError, match=r"no figure 'sends per second' of a case 'saturated: 100 clients'"):
        summary.table(text)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999.4, "ms", "1,000 ms"),
        (1000, "ms", "1 s"),
        (9.96, "MB", "10 MB"),
        (0.52, "µs", "0.52 µs"),
        (1234, "", "1,200"),
    ],
)
def test_value_has_two_digits(value: float, unit: str, text: str) -> None:
    assert summary.shown(value, unit) == text


def test_readme_has_all_figures_of_the_table() -> None:
    assert len(rows(README.read_text())) == len(ROWS)
