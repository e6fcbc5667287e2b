"""Fixtures for a module whose tests share one bridge: a bridge runs in one event loop, which is then the module's.

A module uses them under their usual names, in place of those in `tests/conftest.py`, which belong to each test's loop:

    pytestmark = module_loop.MARK
    amqp, exchange = module_loop.amqp, module_loop.exchange

A fixture of the module's own starts the bridge: `@pytest_asyncio.fixture(scope="module", loop_scope="module")`. A test
leaves this bridge as it found it. Metrics are not reset: a test compares values before and after.
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
    """A name for an exchange, a queue or both, which are deleted at the end."""
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
    """An exchange's name for one test; the test or the bridge declares it."""
    async with own(amqp, "exchange") as name:
        yield name


@pytest_asyncio.fixture(loop_scope="module")
async def queue(amqp: AbstractConnection) -> AsyncIterator[str]:
    """A queue's name for one test; the test or the bridge declares it."""
    async with own(amqp, "queue") as name:
        yield name


@pytest_asyncio.fixture(loop_scope="module")
async def rejects(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of an exchange for rejected events, and of its queue, for one test; the bridge declares both."""
    async with own(amqp, "rejects") as name:
        yield name
