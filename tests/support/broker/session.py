"""The broker of a test run: the one at TEST_AMQP_URL, or a container, or a private node of rabbitmq-server."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

from tests.support.broker.find import (
    Broker,
    NamedBroker,
    NoBroker,
    container_possible,
    find_broker,
    find_server,
    start_container,
)
from tests.support.broker.node import PrivateNode

URL = os.environ.get("TEST_AMQP_URL")
IMAGE = os.environ.get("TEST_RABBITMQ_IMAGE", "rabbitmq:4-management")

SHARED = "TEST_SHARED_BROKER"
"""The variable with the broker of a whole run: a JSON object with `url` and `origin`."""

origins: list[str] = []
"""The descriptions of the brokers that this run uses."""


def shared(worker: str) -> Iterator[Broker]:
    """Yields the run's broker in the worker's virtual host, or a broker for this process if the run has no broker."""
    if URL or SHARED not in os.environ:
        yield from running(URL)
        return
    run = json.loads(os.environ[SHARED])
    broker = NamedBroker(urlsplit(run["url"])._replace(path=f"/{worker}").geturl())
    broker.origin = run["origin"]
    _note(broker)
    yield broker


def running(url: str | None = None) -> Iterator[Broker]:
    """Yields the broker at the URL, or a new broker that a test may kill. At the end, stops a new broker."""
    try:
        broker = find_for_tests(url)
    except NoBroker as error:
        unavailable(str(error))
    _note(broker)
    yield broker
    broker.stop()


def find_for_tests(url: str | None) -> Broker:
    """Returns the broker at the URL, or starts a container or a private node. Raises NoBroker."""
    if url:
        return NamedBroker(url)
    if container_possible(IMAGE, say) and (container := start_container(IMAGE, say)) is not None:
        return container
    if "TEST_RABBITMQ_IMAGE" in os.environ:
        raise NoBroker(f"can't start a container of {IMAGE} (TEST_RABBITMQ_IMAGE)")
    return started_node()


def started_node() -> PrivateNode:
    """Starts a private node. Raises NoBroker if no server is installed, and RuntimeError if the node does not start."""
    node = PrivateNode(find_server(say, may_install=False))
    say(f"starting RabbitMQ: {node.origin}")
    node.start()
    _note(node)
    return node


def _note(broker: Broker) -> None:
    if broker.origin not in origins:
        origins.append(broker.origin)


def broker_or_reason() -> Broker | None:
    """Returns a broker for a program that is not a test. Prints the reason and returns None if there is no broker."""
    try:
        return find_broker(URL, IMAGE, say)
    except NoBroker as error:
        say(str(error))
    except ValueError as error:
        say(f"TEST_AMQP_URL: {error}")
    return None


def unavailable(reason: str) -> NoReturn:
    """Skips the test on a person's machine, and fails the test in CI, where a broker is required."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def needs(command: str) -> pytest.MarkDecorator:
    """Returns a mark that skips a test if the command is missing on a person's machine.

    In CI, the test always runs, so a missing command makes it fail.
    """
    missing = shutil.which(command) is None and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"{command} is not installed")


def say(line: str) -> None:
    """Prints a line about a slow step, for the person who watches the tests."""
    sys.stderr.write(f"{line}\n")
