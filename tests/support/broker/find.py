"""Finds or starts a RabbitMQ for a test or for `make demo`.

The sources, in this order: a URL, a container, a private node of an installed rabbitmq-server, and a private node after
installing the package. A broker that is given by its URL is used, but never stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bridge.amqp.nodes import Node
from bridge.config.amqp_urls import amqp_urls
from bridge.errors import BridgeError
from tests.support.broker import apt
from tests.support.broker.node import PrivateNode, installed_server

_PACKAGE = "rabbitmq-server"


class NoBroker(BridgeError):
    """Raised if no source has a broker. The text of the error gives the reason and a hint."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"no RabbitMQ found: {reason}. Set BRIDGE_AMQP_URL (in tests: TEST_AMQP_URL) to a running one, "
            f"or start a container engine such as Docker, or install the package: {apt.by_hand([_PACKAGE])}"
        )


class Broker(Protocol):
    """A running RabbitMQ."""

    url: str
    origin: str
    """A description for the user, such as `private node of rabbitmq-server 3.10.8`."""

    @property
    def runs(self) -> bool:
        """Whether the broker still runs."""

    def kill(self) -> None:
        """Ends the broker at once, as `kill -9` does. The broker's data stays."""

    def start(self) -> None:
        """Starts the broker again with the same port and data, and waits until it answers over AMQP."""

    def stop(self) -> None:
        """Ends the broker. No process, container or directory remains."""


class NamedBroker:
    """A broker that another program has started. A test can't kill, start or stop this broker."""

    def __init__(self, url: str) -> None:
        """`url` can be several URLs, separated by commas.

        Raises ValueError for a text that is not the URL of a broker.
        """
        self.url = url
        self.origin = ", ".join(str(Node(one)) for one in amqp_urls(url))

    @property
    def runs(self) -> bool:
        """Always True, because the operator is responsible for the broker."""
        return True

    def kill(self) -> None:
        """Raises RuntimeError."""
        raise RuntimeError(f"{self.origin} can't be killed: another program started it")

    def start(self) -> None:
        """Raises RuntimeError."""
        raise RuntimeError(f"{self.origin} can't be started: another program started it")

    def stop(self) -> None:
        """Does nothing."""


def find_broker(url: str | None, image: str, say: Callable[[str], None]) -> Broker:
    """Returns the broker at the URL, or starts a container of `image` or a private node.

    `say` prints a line for each step that takes a long time. Raises NoBroker.
    """
    if url:
        return NamedBroker(url)
    if container_possible(image, say) and (container := start_container(image, say)) is not None:
        return container
    node = PrivateNode(find_server(say))
    say(f"starting RabbitMQ: {node.origin}")
    try:
        node.start()
    except RuntimeError as error:
        raise NoBroker(str(error)) from error
    return node


def container_possible(image: str, say: Callable[[str], None]) -> bool:
    """Returns whether a container engine answers, and has the image or can pull the image."""
    try:
        from bridge.demo.container import engine_answers, fetch_image  # noqa: PLC0415 - slow, and optional
    except ImportError:
        return False
    if not engine_answers():
        return False
    try:
        fetch_image(image, say)
    except RuntimeError as error:
        say(f"{error}; continuing without it")
        return False
    return True


def start_container(image: str, say: Callable[[str], None]) -> Broker | None:
    """Returns a started container, or None if it does not start."""
    from tests.support.broker.container import Container  # noqa: PLC0415 - slow, and an optional dependency

    container = Container(image)
    say(f"starting RabbitMQ: {container.origin}")
    try:
        container.start()
    except RuntimeError as error:
        say(f"{error}; continuing without it")
        return None
    return container


def find_server(say: Callable[[str], None], may_install: bool = True) -> Path:
    """Returns the start script of rabbitmq-server, and installs the package if necessary. Raises NoBroker."""
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
