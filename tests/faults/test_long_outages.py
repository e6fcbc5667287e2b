"""Faults that the bridge detects only by a timeout. In these tests, the timeouts are a few seconds."""

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
"""Time constants with a short heartbeat: the broker detects a dead connection after two or three heartbeats."""

UNPROVEN = "the broker has not answered for 2 s"

NOTICED = "does not answer within 6 s"

DOES = "is not ready after 10 s, closes the connection after 21 s, retries"
"""What a bridge with the default timeouts does if one of these faults occurs."""

LATE_LIMIT_S = 3.0

SHARED = "other consumers share this bridge's queue"
ALONE = "no other consumer shares this bridge's queue any more"


async def noticed(stage: Scene) -> None:
    """Waits until both bridges close the connection.

    Before a bridge closes the connection, its `/readyz` must report that the broker does not answer.
    """

    async def doubted(bridge: Watched) -> bool:
        _, body = await bridge.state()
        return UNPROVEN in body["missing"]

    async def doubts_and_gives_up(bridge: Watched) -> None:
        await eventually(f"/readyz reports {UNPROVEN!r}", partial(doubted, bridge))
        await bridge.not_ready(NOTICED)

    await asyncio.gather(*(doubts_and_gives_up(bridge) for bridge in stage.bridges.values()))


@pytest.mark.slow
async def test_suspended_broker_is_noticed_before_its_heartbeats_are_missed(node_broker: PrivateNode) -> None:
    """Promise: as soon as a broker that was hanging works again, the bridge consumes again."""
    async with scene(node_broker.url, None, TIMING) as stage:
        fault = await stage.fault()
        node_broker.pause()
        try:
            await noticed(stage)
        finally:
            node_broker.resume()
        fault.over()
        await stage.verify(fault, "the broker is suspended (SIGSTOP)", DOES)


async def test_silent_connection_is_closed_and_retried(broker: Broker) -> None:
    """Promise: if no data passes in either direction, the bridge closes the connection and keeps retrying."""
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with scene(broker.url, tunnel.url, TIMING) as stage:
            fault = await stage.fault()
            tunnel.hold()
            await noticed(stage)
            tunnel.release()
            await stage.verify(fault, "no data passes in either direction", DOES)


@pytest.mark.slow
@pytest.mark.parametrize("blocked", Direction)
async def test_connection_with_one_direction_is_closed(broker: Broker, blocked: Direction) -> None:
    """Promise: a bridge is ready only if data passes in both directions."""
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with scene(broker.url, tunnel.url, TIMING) as stage:
            fault = await stage.fault()
            tunnel.hold(blocked)
            await noticed(stage)
            tunnel.release()
            await stage.verify(fault, f"no data passes {blocked.value}", DOES)


@pytest.mark.slow
async def test_half_open_connection_gets_no_new_events(broker: Broker) -> None:
    """Promise: all new events come on the new connection, not on the half-open connection.

    The events that the broker had sent on the half-open connection are delivered once more.
    """
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with scene(broker.url, tunnel.url, FORGETFUL) as stage:
            fault = await stage.fault()
            tunnel.cut_client_side()
            fault.over()
            await stage.fetcher.further(300)
            what = "the connection is half-open: the broker has not noticed its end"
            does = "reconnects at once; the broker delivers the events of the old connection again when it notices"
            await stage.verify(fault, what, does)
            named, confirmed = stage.named, stage.fetcher.confirmed
            late = [n for n, at in confirmed.items() if at > fault.began_s + 1 and named.arrived[n] - at > LATE_LIMIT_S]
            assert late == []
            [shared] = [each for each in fault.lines(named) if str(each["event"]).startswith(SHARED)]
            assert shared["level"] == "error"
            await eventually("the bridge is alone on its queue", lambda: fault.lines(named, ALONE))
