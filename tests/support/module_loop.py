"""Fixtures for a module with one bridge for all its tests. The event loop of the bridge is that of the module.

A module uses them under the names of the fixtures in `tests/conftest.py`, which belong to the loop of one test:

    pytestmark = module_loop.MARK
    amqp, exchange = module_loop.amqp, module_loop.exchange

A fixture of the module's own starts the bridge: `@pytest_asyncio.fixture(scope="module", loop_scope="module")`. A test
must not change this bridge permanently. Metrics are not reset: a test compares values before and after.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.publishing import observer
from tests.support.running import unique

MARK = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def own(amqp: AbstractConnection, kind: str) -> AsyncIterator[str]:
    """Yields a name for an exchange, a queue or both, which are deleted at the end."""
    name = unique(kind)
    yield name
    channel = await amqp.channel()
    await channel.queue_delete(name)
    await channel.exchange_delete(name)
    await channel.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def amqp(broker: Broker) -> AsyncIterator[AbstractConnection]:
    """An observer's connection to `broker`, for all tests of the module."""
    async with observer(broker.url) as connection:
        yield connection


@pytest_asyncio.fixture(loop_scope="module")
async def exchange(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of an exchange for one test. The test or the bridge declares the exchange."""
    async with own(amqp, "exchange") as name:
        yield name


@pytest_asyncio.fixture(loop_scope="module")
async def queue(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of a queue for one test. The test or the bridge declares the queue."""
    async with own(amqp, "queue") as name:
        yield name


@pytest_asyncio.fixture(loop_scope="module")
async def rejects(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of an exchange for rejected events and of its queue, for one test. The bridge declares both."""
    async with own(amqp, "rejects") as name:
        yield name
