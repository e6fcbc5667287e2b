"""The brokers that are broken here, and the table of what that cost."""

from collections.abc import Iterator

import pytest

from bridge.demo.broker import NoBroker, find_server
from tests.support import figures
from tests.support.broker import say, unavailable
from tests.support.control import ControlledNode


@pytest.fixture(scope="session")
def node_broker() -> Iterator[ControlledNode]:
    """A real RabbitMQ that a test may stop, and tell what its operator would; shared, so leave it running as it was."""
    try:
        node = ControlledNode(find_server(say, may_install=False))
    except NoBroker as error:
        unavailable(str(error))
    node.start()
    yield node
    node.stop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", action="store_true", help="print what each fault cost, as a table")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--figures", default=False) and figures.rows:
        terminalreporter.write_line(f"\n{figures.table()}\n")
