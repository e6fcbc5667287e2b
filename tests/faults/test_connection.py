"""The line between the bridges and their broker is cut, or slow."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.broker.find import Broker
from tests.support.proxy import Proxy, proxy
from tests.support.scene import Scene, scene

SLOW_BYTES_S = 200_000

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lines(broker: Broker) -> AsyncIterator[tuple[Proxy, Proxy]]:
    """Two ways to the broker."""
    async with proxy(broker.url) as first, proxy(broker.url) as second:
        await first.open()
        await second.open()
        yield first, second


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(broker: Broker, lines: tuple[Proxy, Proxy]) -> AsyncIterator[Scene]:
    """Bridges that take the first way, and the second where the first is closed."""
    first, second = lines
    async with scene(broker.url, f"{first.url},{second.url}") as stage:
        yield stage


async def test_line_that_is_cut_is_connected_again(stage: Scene, lines: tuple[Proxy, Proxy]) -> None:
    """Promise: a lost connection costs a tenth of a second, and a named queue nothing."""
    fault = await stage.fault()
    lines[0].cut()
    await stage.verify(fault, "the line is cut", "connects again at once")
    assert lines[1].accepted == 0


async def test_line_that_is_slow_is_no_reason_to_give_it_up(stage: Scene, lines: tuple[Proxy, Proxy]) -> None:
    """Promise: a slow line makes updates late, and nothing else."""
    fault = await stage.fault()
    lines[0].slow(SLOW_BYTES_S)
    await stage.fetcher.further(300)
    lines[0].release()
    await stage.verify(fault, f"the line lets {SLOW_BYTES_S // 1000} KB a second through", "goes on, late", noticed=())


async def test_node_that_dies_is_replaced_by_the_next_one(stage: Scene, lines: tuple[Proxy, Proxy]) -> None:
    """Promise: of several nodes, one that lives is enough; the first is preferred again only when it is needed."""
    first, second = lines
    assert second.accepted == 0
    fault = await stage.fault()
    await first.close()
    await stage.verify(fault, "the first of two nodes dies", "connects to the second at once")
    assert second.accepted > 0
