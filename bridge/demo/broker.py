"""The broker that the demo uses if no broker is configured.

RabbitMQ runs in a container that is removed when the demo ends.
"""

import socket
from collections.abc import Callable
from typing import Protocol

from bridge.demo.amqp_probe import LOOPBACK
from bridge.errors import BridgeError


class Broker(Protocol):
    """A RabbitMQ broker that the demo has started and stops."""

    url: str
    origin: str
    """A description of the broker for people, such as `container rabbitmq:4-management`."""

    @property
    def runs(self) -> bool:
        """Whether the broker is still running."""

    def stop(self) -> None:
        """Ends the broker and removes its data."""


class NoBroker(BridgeError):
    """The demo can't start RabbitMQ. The error's text gives the reason and the possible solutions."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the demo can't start RabbitMQ: {reason}; pass --without-broker, or set BRIDGE_AMQP_URL to use a "
            "running broker, or start a container engine such as Docker and install the extra `demo` "
            "(`pip install 'edk-bridge[demo]'`, or `pip install 'PATH[demo]'` with the path of a clone)"
        )


def start_container(image: str, say: Callable[[str], None]) -> Broker:
    """Starts RabbitMQ in a container.

    `say` prints a line, and is called for each step that takes a long time. Raises NoBroker.
    """
    try:
        from bridge.demo.container import (  # noqa: PLC0415 - takes 0.3 s to import, and is an optional dependency
            Container,
            engine_answers,
            fetch_image,
        )
    except ImportError as error:
        raise NoBroker("the extra `demo` (testcontainers) is not installed") from error
    if not engine_answers():
        raise NoBroker("no container engine answers")
    try:
        fetch_image(image, say)
        container = Container(image, _free_port())
        say(f"starting RabbitMQ: {container.origin}")
        container.start()
    except RuntimeError as error:
        raise NoBroker(str(error)) from error
    return container


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port
