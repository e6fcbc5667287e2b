"""Where a broker for a demo or a test comes from.

In this order: the one that was named, a container where an engine answers, a private node of an installed
rabbitmq-server, and the same after installing the package. A broker that was named is used and never touched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bridge.amqp.nodes import Node
from bridge.config.amqp_urls import amqp_urls
from bridge.errors import BridgeError
from tests.support.broker import apt
from tests.support.broker.node import PrivateNode, installed_server
from tests.support.broker.ports import await_amqp

__all__ = [
    "Broker",
    "NamedBroker",
    "NoBroker",
    "PrivateNode",
    "await_amqp",
    "container_possible",
    "find_broker",
    "find_server",
]

_PACKAGE = "rabbitmq-server"


class NoBroker(BridgeError):
    """There is no broker to be had here; the message says why and how to mend that."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"no RabbitMQ to be had: {reason}. Name one that runs in BRIDGE_AMQP_URL (for the tests: TEST_AMQP_URL), "
            f"or start a container engine such as Docker, or install the package: {apt.by_hand([_PACKAGE])}"
        )


class Broker(Protocol):
    """A RabbitMQ broker that runs; `origin` says in a few words for a person where it came from."""

    url: str
    origin: str

    def kill(self) -> None:
        """End it at once, as `kill -9` would; its data stays."""

    def start(self) -> None:
        """Start it again on the same port with its data, and return when AMQP answers."""

    def stop(self) -> None:
        """End it for good: no process, no container and no directory stays."""


class NamedBroker:
    """A broker that somebody else runs: ours to use, not to kill, start or stop."""

    def __init__(self, url: str) -> None:
        """`url` may be several, separated by commas. Raises ValueError where it is no URL of a broker."""
        self.url = url
        self.origin = ", ".join(str(Node(one)) for one in amqp_urls(url))

    def kill(self) -> None:
        """Raises RuntimeError."""
        raise RuntimeError(f"{self.origin} is not ours to kill")

    def start(self) -> None:
        """Raises RuntimeError."""
        raise RuntimeError(f"{self.origin} is not ours to start")

    def stop(self) -> None:
        """Leave it as it is."""


def find_broker(url: str | None, image: str, say: Callable[[str], None], may_install: bool = True) -> Broker:
    """A broker that runs, from the first source that has one.

    `url` names one, `image` is what a container is made of, `say` is told in one line whatever takes long, and
    `may_install` permits installing the package. Raises NoBroker.
    """
    if url:
        return NamedBroker(url)
    if container_possible(image, say):
        from bridge.demo.container import Container  # noqa: PLC0415 - not cheap, and an optional dependency

        container = Container(image)
        say(f"starting RabbitMQ: {container.origin}")
        try:
            container.start()
        except RuntimeError as error:
            say(f"{error}; going on without it")
        else:
            return container
    node = PrivateNode(find_server(say, may_install))
    say(f"starting RabbitMQ: {node.origin}")
    try:
        node.start()
    except RuntimeError as error:
        raise NoBroker(str(error)) from error
    return node


def container_possible(image: str, say: Callable[[str], None]) -> bool:
    """Whether an engine answers that has the image or could pull it."""
    try:
        from bridge.demo.container import engine_answers, fetch_image  # noqa: PLC0415 - not cheap, and optional
    except ImportError:
        return False
    if not engine_answers():
        return False
    try:
        fetch_image(image, say)
    except RuntimeError as error:
        say(f"{error}; going on without it")
        return False
    return True


def find_server(say: Callable[[str], None], may_install: bool = True) -> Path:
    """The start script of an installed rabbitmq-server, after installing it where it has to be. Raises NoBroker."""
    server = installed_server()
    if server is None and may_install and apt.may_install():
        try:
            apt.install([_PACKAGE], say)
        except RuntimeError as error:
            raise NoBroker(str(error)) from error
        server = installed_server()
    if server is None:
        raise NoBroker("no container engine answers and rabbitmq-server is not installed")
    return server
