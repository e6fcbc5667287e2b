"""The line between the bridges and their broker is cut, or slow."""

from bridge.demo.broker import Broker
from tests.support.proxy import proxy
from tests.support.scene import scene

SLOW_BYTES_S = 200_000


async def test_line_that_is_cut_is_connected_again(broker: Broker) -> None:
    """Promise: a lost connection costs a tenth of a second, and a named queue nothing."""
    async with proxy(broker.url) as line:
        await line.open()
        async with scene(broker.url, line.url) as stage, stage.fault("the line is cut", "connects again at once"):
            line.cut()


async def test_line_that_is_slow_is_no_reason_to_give_it_up(broker: Broker) -> None:
    """Promise: a slow line makes updates late, and nothing else."""
    async with proxy(broker.url) as line:
        await line.open()
        async with scene(broker.url, line.url) as stage:
            fault = f"the line lets {SLOW_BYTES_S // 1000} KB a second through"
            async with stage.fault(fault, "goes on, late", noticed=()):
                line.slow(SLOW_BYTES_S)
                await stage.fetcher.further(300)
                line.release()


async def test_node_that_dies_is_replaced_by_the_next_one(broker: Broker) -> None:
    """Promise: of several nodes, one that lives is enough; the first is preferred again only when it is needed."""
    async with proxy(broker.url) as first, proxy(broker.url) as second:
        await first.open()
        await second.open()
        async with scene(broker.url, f"{first.url},{second.url}") as stage:
            assert second.accepted == 0
            async with stage.fault("the first of two nodes dies", "connects to the second at once"):
                await first.close()
            assert second.accepted > 0
