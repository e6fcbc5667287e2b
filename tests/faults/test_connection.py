"""The connection between the bridges and their broker is cut or slow."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.broker.find import Broker
from tests.support.proxy import Proxy, proxy
from tests.support.scene import Scene, scene

SLOW_BYTES_S = 200_000

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tunnels(broker: Broker) -> AsyncIterator[tuple[Proxy, Proxy]]:
    """Two proxies to the broker."""
    async with proxy(broker.url) as first, proxy(broker.url) as second:
        await first.open()
        await second.open()
        yield first, second


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(broker: Broker, tunnels: tuple[Proxy, Proxy]) -> AsyncIterator[Scene]:
    """Bridges that connect through the first proxy, or through the second proxy if the first is closed."""
    first, second = tunnels
    async with scene(broker.url, f"{first.url},{second.url}") as stage:
        yield stage


async def test_connection_that_is_cut_is_opened_again(stage: Scene, tunnels: tuple[Proxy, Proxy]) -> None:
    """Promise: a lost connection interrupts the updates for only about a tenth of a second.

    A named queue loses no event.
    """
    fault = await stage.fault()
    tunnels[0].cut()
    await stage.verify(fault, "the connection is cut", "reconnects at once")
    assert tunnels[1].accepted == 0


async def test_slow_connection_is_kept(stage: Scene, tunnels: tuple[Proxy, Proxy]) -> None:
    """Promise: a slow connection only delays updates."""
    fault = await stage.fault()
    tunnels[0].slow(SLOW_BYTES_S)
    await stage.fetcher.further(300)
    tunnels[0].release()
    what = f"the connection is limited to {SLOW_BYTES_S // 1000} KB/s"
    await stage.verify(fault, what, "continues; updates are late", noticed=())


async def test_node_that_dies_is_replaced_by_the_next_one(stage: Scene, tunnels: tuple[Proxy, Proxy]) -> None:
    """Promise: the bridge works as long as one of several nodes runs.

    At the next reconnect, the bridge prefers the first node again.
    """
    first, second = tunnels
    assert second.accepted == 0
    fault = await stage.fault()
    await first.close()
    await stage.verify(fault, "the first of two nodes dies", "connects to the second at once")
    assert second.accepted > 0
