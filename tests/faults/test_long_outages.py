"""Faults that the bridge detects only by a timeout, with timeouts of a few seconds."""

import asyncio
from functools import partial

import pytest

from bridge.timing import Timing
from tests.support.broker.find import Broker
from tests.support.broker.node import PrivateNode
from tests.support.proxy import Direction, proxy
from tests.support.scene import Scene, Watched, scene
from tests.support.waiting import eventually

TIMING = Timing(check_interval_s=0.3, check_timeout_s=6.0, setup_timeout_s=6.0, answer_valid_s=2.0)

FORGETFUL = Timing(heartbeat_s=2)
"""The broker detects a dead connection after two or three heartbeats."""

UNPROVEN = "the broker has not answered for 2 s"

NOTICED = "does not answer within 6 s"

DOES = "is not ready after 10 s, gives the connection up after 21 s, tries again"
"""With the product's own time constants."""

LATE_LIMIT_S = 3.0

SHARED = "other consumers share this bridge's queue"
ALONE = "no other consumer shares this bridge's queue any more"


async def noticed(stage: Scene) -> None:
    """Returns once both bridges have given the connection up; they must have said before that nothing proves it."""

    async def doubted(bridge: Watched) -> bool:
        _, body = await bridge.state()
        return UNPROVEN in body["missing"]

    async def doubts_and_gives_up(bridge: Watched) -> None:
        await eventually(f"/readyz says {UNPROVEN!r}", partial(doubted, bridge))
        await bridge.not_ready(NOTICED)

    await asyncio.gather(*(doubts_and_gives_up(bridge) for bridge in stage.bridges.values()))


@pytest.mark.slow
async def test_broker_that_is_stopped_is_noticed_before_its_heartbeats_are_missed(node_broker: PrivateNode) -> None:
    """Promise: a broker that hangs is consumed from as soon as it goes on."""
    async with scene(node_broker.url, None, TIMING) as stage:
        fault = await stage.fault()
        node_broker.pause()
        try:
            await noticed(stage)
        finally:
            node_broker.resume()
        fault.over()
        await stage.verify(fault, "the broker is stopped (SIGSTOP)", DOES)


async def test_line_that_is_dark_is_given_up_and_tried_again(broker: Broker) -> None:
    """Promise: a line on which nothing goes either way is given up, and tried again until something does."""
    async with proxy(broker.url) as line:
        await line.open()
        async with scene(broker.url, line.url, TIMING) as stage:
            fault = await stage.fault()
            line.hold()
            await noticed(stage)
            line.release()
            await stage.verify(fault, "nothing goes either way", DOES)


@pytest.mark.slow
@pytest.mark.parametrize("blocked", Direction)
async def test_line_that_goes_one_way_is_given_up(broker: Broker, blocked: Direction) -> None:
    """Promise: it takes both ways to be ready, whatever still goes on one."""
    async with proxy(broker.url) as line:
        await line.open()
        async with scene(broker.url, line.url, TIMING) as stage:
            fault = await stage.fault()
            line.hold(blocked)
            await noticed(stage)
            line.release()
            await stage.verify(fault, f"nothing goes {blocked.value}, the other way is open", DOES)


@pytest.mark.slow
async def test_connection_that_only_the_broker_believes_in_holds_nothing_new(broker: Broker) -> None:
    """Promise: a new connection gets what is new; what lies on the one that is half open comes again, and once only."""
    async with proxy(broker.url) as line:
        await line.open()
        async with scene(broker.url, line.url, FORGETFUL) as stage:
            fault = await stage.fault()
            line.forsake()
            fault.over()
            await stage.fetcher.further(300)
            does = "connects again at once; what the old connection got comes again when the broker has missed it"
            await stage.verify(fault, "the broker believes in a connection that is gone", does)
            named, confirmed = stage.named, stage.fetcher.confirmed
            late = [n for n, at in confirmed.items() if at > fault.began_s + 1 and named.arrived[n] - at > LATE_LIMIT_S]
            assert late == []
            [said] = [each for each in fault.lines(named) if str(each["event"]).startswith(SHARED)]
            assert said["level"] == "error"
            await eventually("the bridge is alone on its queue", lambda: fault.lines(named, ALONE))
