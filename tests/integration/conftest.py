"""Names at the broker that are a test's own, and gone after it."""

from collections.abc import AsyncIterator

import pytest
from aio_pika.abc import AbstractConnection

from tests.support.running import unique


async def _own(amqp: AbstractConnection, kind: str) -> AsyncIterator[str]:
    name = unique(kind)
    yield name
    channel = await amqp.channel()
    await channel.queue_delete(name)
    await channel.exchange_delete(name)


@pytest.fixture
async def exchange(amqp: AbstractConnection) -> AsyncIterator[str]:
    """An exchange's name; the test or the bridge makes it."""
    async for name in _own(amqp, "exchange"):
        yield name


@pytest.fixture
async def queue(amqp: AbstractConnection) -> AsyncIterator[str]:
    """A queue's name; the test or the bridge makes it."""
    async for name in _own(amqp, "queue"):
        yield name


@pytest.fixture
async def rejects(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of an exchange for rejected events, and of its queue; the bridge makes both."""
    async for name in _own(amqp, "rejects"):
        yield name
