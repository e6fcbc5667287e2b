"""Fixtures for tests in a browser, which lives as long as all of them, and no longer.

All run in one event loop, the session's: it stands still while other tests run, so nothing of it may outlive these.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection
from playwright.async_api import Browser, Page

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.browser import chromium
from tests.support.live import Live
from tests.support.publishing import observer
from tests.support.running import running, unique


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium."""
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page in a profile of its own."""
    context = await browser.new_context()
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tab(browser: Browser) -> AsyncIterator[Page]:
    """A tab in which one test's page follows the other's: a new one takes longer than most of what is tried in it."""
    context = await browser.new_context()
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def amqp(broker: Broker) -> AsyncIterator[AbstractConnection]:
    """An observer's connection to `broker`."""
    async with observer(broker.url) as connection:
        yield connection


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def exchange(amqp: AbstractConnection) -> AsyncIterator[str]:
    """An exchange's name; the bridge makes it."""
    name = unique("exchange")
    yield name
    channel = await amqp.channel()
    await channel.exchange_delete(name)
    await channel.close()


@pytest.fixture
def live(page: Page) -> Live:
    """The live page, to be opened."""
    return Live(page)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def watched(broker: Broker, exchange: str) -> AsyncIterator[Bridge]:
    """A bridge as it is unless it is told otherwise."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", host="localhost") as bridge:
        yield bridge
