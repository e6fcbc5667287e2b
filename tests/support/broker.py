"""The broker that tests run against: TEST_AMQP_URL, else a container, else a private node of rabbitmq-server."""

import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest

from bridge.demo.broker import Broker, NoBroker, PrivateNode, find_broker

URL = os.environ.get("TEST_AMQP_URL")
IMAGE = os.environ.get("TEST_RABBITMQ_IMAGE", "rabbitmq:4-management")

origins: list[str] = []
"""Where the brokers of this run came from."""


def running(url: str | None = None) -> Iterator[Broker]:
    """One broker, stopped at the end: the one at the URL, or one of our own that a test may kill."""
    try:
        broker = find_broker(url, IMAGE, say, may_install=False)
    except NoBroker as error:
        unavailable(str(error))
    if broker.origin not in origins:
        origins.append(broker.origin)
    if not url and "TEST_RABBITMQ_IMAGE" in os.environ and isinstance(broker, PrivateNode):
        broker.stop()
        unavailable(f"no container of {IMAGE}, which TEST_RABBITMQ_IMAGE asks for, could be started")
    yield broker
    broker.stop()


def broker_or_reason() -> Broker | None:
    """For a program that is no test: a broker, or None where there is none to be had, and why is said."""
    try:
        return find_broker(URL, IMAGE, say)
    except NoBroker as error:
        say(str(error))
    except ValueError as error:
        say(f"TEST_AMQP_URL: {error}")
    return None


def unavailable(reason: str) -> NoReturn:
    """Skip the test on a person's machine; fail it in CI, where a broker is part of the deal."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def say(line: str) -> None:
    """What takes long, for whoever looks at the test's output."""
    sys.stderr.write(f"{line}\n")
