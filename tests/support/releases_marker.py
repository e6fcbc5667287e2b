"""A pytest plugin.

The plugin selects the tests that use a broker, and marks the tests that fail on some broker releases because of a bug
in the bridge.

With `--uses-broker`, pytest runs only the tests that use a broker. `@pytest.mark.fails_on("4.3", reason="...")` makes a
test a strict expected failure if the broker in use is of one of the given releases. The junit XML file gets a property
for each broker version that the tests use.
"""

import socket
import ssl
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from pamqp import commands, frame
from yarl import URL

BROKERS = (
    "cluster",
    "plugins_node",
    "small_frames_node",
    "node_broker",
    "node_without_streams",
    "mortal_broker",
    "broker",
)
"""The names of the fixtures that provide a broker.

If a test uses several broker fixtures, its marker `fails_on` applies to the first of them.
"""

ANSWER_LIMIT_S = 10.0

_HEADER_BYTES = 7


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--uses-broker", action="store_true", help="run only the tests that use a broker")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "fails_on(*releases, reason): fails on these releases of RabbitMQ (such as 4.3) because of a bug in the bridge",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--uses-broker"):
        others = [item for item in items if broker_fixture(item) is None]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if broker_fixture(item) is not None]


def broker_fixture(item: pytest.Item) -> str | None:
    """Returns the name of a test's broker fixture, or None if the test uses no broker.

    Unit tests never use a broker.
    """
    if item.nodeid.startswith("tests/unit/"):
        return None
    names: list[str] = getattr(item, "fixturenames", [])
    return next((name for name in BROKERS if name in names), None)


@pytest.fixture(autouse=True)
def _fails_on(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Makes the test a strict expected failure on the releases that the test's marker names."""
    name = broker_fixture(request.node)
    marks = list(request.node.iter_markers("fails_on"))
    if name is None:
        if marks:
            pytest.fail(f"fails_on is for tests that use one of the fixtures {', '.join(BROKERS)}", pytrace=False)
        return
    version = version_of(request.getfixturevalue(name).url)
    _record_once(version, record_property)
    for mark in marks:
        if release_of(version) in mark.args:
            # An exception other than AssertionError is not caused by the bridge's bug, so the test must fail.
            request.applymarker(pytest.mark.xfail(reason=mark.kwargs["reason"], raises=AssertionError, strict=True))


def release_of(version: str) -> str:
    """Returns the release of a version, such as 4.3 for 4.3.6."""
    return ".".join(version.split(".")[:2])


@cache
def version_of(urls: str) -> str:
    """Returns the version of the broker at the first of the URLs, as the broker's server properties give it."""
    url = URL(urls.split(",", maxsplit=1)[0])
    assert url.host is not None
    port = url.port or (5671 if url.scheme == "amqps" else 5672)
    with socket.create_connection((url.host, port), timeout=ANSWER_LIMIT_S) as connection:
        if url.scheme == "amqps":
            context = ssl.create_default_context(cafile=url.query.get("cafile"))
            with context.wrap_socket(connection, server_hostname=url.host) as encrypted:
                return _ask(encrypted)
        return _ask(connection)


def _ask(connection: socket.socket) -> str:
    connection.sendall(b"AMQP\x00\x00\x09\x01")
    with connection.makefile("rb") as stream:
        header = stream.read(_HEADER_BYTES)
        _, _, start = frame.unmarshal(header + stream.read(int.from_bytes(header[3:], "big") + 1))
    assert isinstance(start, commands.Connection.Start), start
    properties: dict[str, Any] = start.server_properties or {}
    return str(properties["version"])


_recorded: set[str] = set()


def _record_once(version: str, record: Callable[[str, object], None]) -> None:
    if version not in _recorded:
        _recorded.add(version)
        record("rabbitmq", version)
