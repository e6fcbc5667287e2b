"""Tests of the choice of a broker if there are several, and of the error if there is no broker."""

import sys
from pathlib import Path

import pytest

from tests.support.broker import apt, find
from tests.support.broker.find import NamedBroker, NoBroker, container_possible, find_broker, find_server

_SERVER = Path("/somewhere/rabbitmq-server")


class _Machine:
    """A fake machine. The test sets all places where a broker can be found on this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.installed: list[str] = []
        self.server: Path | None = None
        self.may_install = False
        self.engine = False
        self.breaks = False
        monkeypatch.setattr(find, "installed_server", lambda: self.server)
        monkeypatch.setattr(find, "PrivateNode", self._node)
        monkeypatch.setattr(find, "container_possible", lambda *_: self.engine)
        monkeypatch.setattr(apt, "may_install", lambda: self.may_install)
        monkeypatch.setattr(apt, "install", self._install)

    def say(self, line: str) -> None:
        self.said.append(line)

    def _install(self, packages: list[str], _say: object) -> None:
        if self.breaks:
            raise RuntimeError("apt-get broke")
        self.installed += packages
        self.server = _SERVER

    def _node(self, server: Path) -> "_Node":
        assert server == _SERVER
        return _Node(self.breaks)


class _Node:
    url = "amqp://guest:guest@127.0.0.1:20001/"
    origin = "a node"

    def __init__(self, breaks: bool) -> None:
        self._breaks = breaks

    def start(self) -> None:
        if self._breaks:
            raise RuntimeError("it would not start")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> _Machine:
    return _Machine(monkeypatch)


def test_a_named_broker_is_used_before_all_others_and_never_stopped(machine: _Machine) -> None:
    machine.server, machine.engine = _SERVER, True
    found = find_broker("amqp://eve:secret@rabbit:5672/kills", "image", machine.say)
    assert isinstance(found, NamedBroker)
    assert found.url == "amqp://eve:secret@rabbit:5672/kills"
    assert found.origin == "amqp://eve:***@rabbit:5672/kills"
    with pytest.raises(RuntimeError, match="another program started it"):
        found.kill()
    with pytest.raises(RuntimeError, match="another program started it"):
        found.start()
    found.stop()
    assert machine.said == []


def test_an_installed_server_is_used_if_no_engine_answers(machine: _Machine) -> None:
    machine.server = _SERVER
    assert find_broker(None, "image", machine.say).origin == "a node"
    assert machine.said == ["starting RabbitMQ: a node"]


def test_the_package_is_installed_only_if_that_is_allowed_and_requested(machine: _Machine) -> None:
    machine.may_install = True
    with pytest.raises(NoBroker):
        find_server(machine.say, may_install=False)
    assert find_server(machine.say) == _SERVER
    assert machine.installed == ["rabbitmq-server"]


def test_without_any_source_the_error_names_the_ways_to_fix_it(machine: _Machine) -> None:
    with pytest.raises(NoBroker) as error:
        find_broker(None, "image", machine.say)
    for way in ("BRIDGE_AMQP_URL", "container engine", "sudo apt-get install rabbitmq-server"):
        assert way in str(error.value)


@pytest.mark.parametrize("server", [None, _SERVER], ids=["installing fails", "starting fails"])
def test_a_source_that_fails_is_the_reason_why_there_is_no_broker(machine: _Machine, server: Path | None) -> None:
    machine.server, machine.may_install, machine.breaks = server, True, True
    with pytest.raises(NoBroker, match="apt-get broke" if server is None else "it would not start"):
        find_broker(None, "image", machine.say)


def test_without_testcontainers_there_is_no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bridge.demo.container", None)
    assert not container_possible("image", print)


@pytest.mark.parametrize("says", [True, False])
def test_an_engine_without_the_image_is_not_used(monkeypatch: pytest.MonkeyPatch, says: bool) -> None:
    container = pytest.importorskip("bridge.demo.container", reason="the extra demo is not installed")
    said: list[str] = []

    def fetch_image(image: str, _say: object) -> None:
        raise RuntimeError(f"no {image}")

    monkeypatch.setattr(container, "engine_answers", lambda: says)
    monkeypatch.setattr(container, "fetch_image", fetch_image)
    assert not container_possible("image", said.append)
    assert said == (["no image; continuing without it"] if says else [])


def test_a_socket_without_a_listener_is_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    container = pytest.importorskip("bridge.demo.container", reason="the extra demo is not installed")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert not container.engine_answers()


def test_a_container_that_does_not_start_is_skipped(monkeypatch: pytest.MonkeyPatch, machine: _Machine) -> None:
    pytest.importorskip("bridge.demo.container", reason="the extra demo is not installed")
    machine.engine, machine.server = True, _SERVER

    class Container(_Node):
        origin = "a container"

        def __init__(self, _image: str) -> None:
            super().__init__(breaks=True)

    monkeypatch.setattr("tests.support.broker.container.Container", Container)
    assert find_broker(None, "image", machine.say).origin == "a node"
    assert machine.said == [
        "starting RabbitMQ: a container",
        "it would not start; continuing without it",
        "starting RabbitMQ: a node",
    ]
