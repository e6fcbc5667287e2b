"""The table of faults in `bridge/amqp/README.md`, with the figures of this run. `--figures` prints the table.

This module is also a pytest plugin: workers send their rows to the process that prints the table.
"""

from dataclasses import astuple, dataclass
from typing import Any

import pytest

HEADS = ("fault", "what the bridge does", "lost", "doubled", "consuming again after")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table, for one fault. The figures are texts, because their units differ."""

    fault: str
    does: str
    lost: str
    doubled: str = "0"
    after: str = ""


rows: list[Row] = []


def record(fault: str, does: str, lost: str, doubled: str = "0", after: str = "") -> None:
    """Adds a row to the table of this run."""
    rows.append(Row(fault, does, lost, doubled, after))


def table() -> str:
    """Returns all rows so far, in Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {row.fault} | {row.does} | {row.lost} | {row.doubled} | {row.after} |" for row in rows]
    return "\n".join(lines)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", action="store_true", help="print a table of what each fault cost")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = [astuple(row) for row in rows]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for row in getattr(node, "workeroutput", {}).get("figures", ()):
        record(*row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--figures") and rows:
        terminalreporter.write_line(f"\n{table()}\n")
