"""Fixtures for a module with one bridge for all its tests. The bridge runs in the event loop of the module.

The fixtures in `tests/conftest.py` belong to the event loop of one test. A module that uses this file replaces the
fixtures of `tests/conftest.py` with fixtures of the same names:

    pytestmark = module_loop.MARK
    amqp, exchange = module_loop.amqp, module_loop.exchange

The module has its own fixture that starts the bridge: `@pytest_asyncio.fixture(scope="module", loop_scope="module")`. A
test must not change the module's bridge permanently. Metrics are not reset, so a test compares their values before and
after an action.
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
    """Yields a name for an exchange, a queue or both. Deletes the exchange and the queue of this name at the end."""
    name = unique(kind)
    yield name
    channel = await amqp.channel()
    await channel.queue_delete(name)
    await channel.exchange_delete(name)
    await channel.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def amqp(broker: Broker) -> AsyncIterator[AbstractConnection]:
    """A connection to the broker that all tests of the module share, and that the bridge does not use."""
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
    """A name that one test uses both for the exchange and for the queue of rejected events.

    The bridge declares the exchange and the queue.
    """
    async with own(amqp, "rejects") as name:
        yield name
