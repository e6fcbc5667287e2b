"""Fixtures for tests in a browser. One browser serves all browser tests.

All browser tests run in the session's event loop. While other tests run, the session's loop does not run, so the
fixtures must end with the browser tests.
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
    """The browser, which is Chromium."""
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page in a new profile."""
    context = await browser.new_context()
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tab(browser: Browser) -> AsyncIterator[Page]:
    """A tab that several tests use one after another, because opening a tab takes longer than most tests."""
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
    """The name of an exchange, which the bridge declares."""
    name = unique("exchange")
    yield name
    channel = await amqp.channel()
    await channel.exchange_delete(name)
    await channel.close()


@pytest.fixture
def live(page: Page) -> Live:
    """The live page, which the test opens."""
    return Live(page)


@pytest_asyncio.fixture(loop_scope="session")
async def watched(broker: Broker, exchange: str) -> AsyncIterator[Bridge]:
    """A bridge with default settings, for one test: the page would show the updates of earlier tests."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", host="localhost") as bridge:
        yield bridge
