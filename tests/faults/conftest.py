"""The table of what it cost to break things."""

import pytest

from tests.support import figures


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", action="store_true", help="print what each fault cost, as a table")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--figures", default=False) and figures.rows:
        terminalreporter.write_line(f"\n{figures.table()}\n")
