"""Fixtures for all tests. None of them does anything for a test that does not ask for it."""

from collections.abc import AsyncIterator, Iterator

import aio_pika
import pytest

from bridge.demo.broker import Broker
from tests.support.broker import URL, running


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real RabbitMQ, shared by all tests: leave nothing in it, and leave it running."""
    yield from running(URL)


@pytest.fixture
def mortal_broker() -> Iterator[Broker]:
    """A real RabbitMQ of the test's own, which it may kill and start again."""
    yield from running()


@pytest.fixture
async def amqp(broker: Broker) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    """An observer's connection to `broker`."""
    connection = await aio_pika.connect(broker.url, timeout=10)
    yield connection
    await connection.close()
