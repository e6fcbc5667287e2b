"""Tests of the marker `fails_on`, which makes tests expected failures on some releases of RabbitMQ."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest
from pamqp import commands, frame

from tests.support import releases_marker
from tests.support.releases_marker import release_of, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester"]

TESTS = """
import types
import pytest

pytestmark = pytest.mark.fails_on("4.3", "4.4", reason="the bridge names the wrong right")

@pytest.fixture
def broker():
    return types.SimpleNamespace(url="amqp://localhost/")

def test_fails(broker):
    assert False

def test_passes(broker):
    pass
"""


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a fake broker, which sends its version and then closes the connection."""
    start = commands.Connection.Start(server_properties={"product": "RabbitMQ", "version": "4.3.6"})
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(8) == b"AMQP\x00\x00\x09\x01"
                connection.sendall(frame.marshal(start, 0))

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"amqp://guest:guest@127.0.0.1:{listener.getsockname()[1]}/,amqp://localhost:1/"
        thread.join(5)


def test_version_is_that_of_the_first_broker(server: str) -> None:
    assert version_of(server) == "4.3.6"
    assert release_of(version_of(server)) == "4.3"


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Runs pytest in this process for the tests in another folder, with only the plugin that is tested."""
    monkeypatch.setattr(releases_marker, "_recorded", set())
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:asyncio -p no:cacheprovider\njunit_family = xunit1")
    return pytester


@pytest.mark.parametrize(
    ("version", "outcomes"),
    [
        ("4.3.6", {"xfailed": 1, "failed": 1}),
        ("4.4.0", {"xfailed": 1, "failed": 1}),
        ("4.0.5", {"failed": 1, "passed": 1}),
    ],
)
def test_marker_is_a_strict_expected_failure_only_on_its_releases(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, version: str, outcomes: dict[str, int]
) -> None:
    monkeypatch.setattr(releases_marker, "version_of", lambda _urls: version)
    inner.makepyfile(TESTS)
    found = inner.runpytest_inprocess("--junitxml=junit.xml", plugins=[releases_marker])
    assert found.parseoutcomes() == outcomes
    assert f'name="rabbitmq" value="{version}"' in (inner.path / "junit.xml").read_text()


def test_marker_of_a_test_without_a_broker_is_an_error(inner: pytest.Pytester) -> None:
    inner.makepyfile('import pytest\n@pytest.mark.fails_on("4.3", reason="x")\ndef test_x(): pass')
    found = inner.runpytest_inprocess(plugins=[releases_marker])
    assert found.parseoutcomes() == {"errors": 1}
    found.stdout.fnmatch_lines("*fails_on is for tests that use one of the fixtures *broker*")


def test_only_tests_that_use_a_broker_run_if_the_option_is_set(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases_marker, "version_of", lambda _urls: "3.10.8")
    inner.makepyfile(TESTS.replace("def test_passes(broker)", "def test_passes()").replace("pytestmark", "unused"))
    found = inner.runpytest_inprocess("--uses-broker", plugins=[releases_marker])
    assert found.parseoutcomes() == {"failed": 1, "deselected": 1}
