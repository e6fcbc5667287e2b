"""Faults that take half a minute each, because that is how long it takes to be sure of them: all at the same time."""

import asyncio

from bridge.broker.status import PROOF_VALID_S
from bridge.demo.broker import Broker
from tests.support.control import ControlledNode
from tests.support.proxy import Direction, proxy
from tests.support.scene import Fault, Scene, scene
from tests.support.waiting import eventually

STOPPED_S, DARK_S = 30.0, 25.0

NOTICED = "does not answer within 20 s"

DOES = "is not ready after 10 s, gives the connection up after 21 s, tries again"

LATE_LIMIT_S = 2.0

SHARED = "others consume this bridge's queue"
ALONE = "nobody else consumes this bridge's queue any more"


async def noticed(stage: Scene, fault: Fault) -> None:
    """Returns once both bridges have given the connection up; they must have said before that nothing proves it."""
    for bridge in stage.bridges.values():
        await bridge.not_ready()
    assert fault.age_s <= PROOF_VALID_S + 1
    for bridge in stage.bridges.values():
        await bridge.not_ready(NOTICED)


async def broker_that_is_stopped(node: ControlledNode) -> None:
    """Promise: a broker that hangs is noticed before its heartbeats are missed, and consumed from when it goes on."""
    what = f"the broker is stopped for {STOPPED_S:.0f} s (SIGSTOP)"
    async with scene(node.url) as stage, stage.fault(what, DOES) as fault:
        node.pause()
        try:
            await noticed(stage, fault)
            await fault.lasts(STOPPED_S)
        finally:
            node.resume()


async def line_that_is_dark(broker: Broker) -> None:
    """Promise: a line on which nothing goes either way is given up, and tried again until something does."""
    async with proxy(broker.url) as line:
        await line.open()
        what = f"nothing goes either way for {DARK_S:.0f} s"
        async with scene(broker.url, line.url) as stage, stage.fault(what, DOES) as fault:
            line.hold()
            await noticed(stage, fault)
            await fault.lasts(DARK_S)
            line.release()


async def line_that_goes_one_way(broker: Broker, blocked: Direction) -> None:
    """Promise: it takes both ways to be ready, whatever still goes on one."""
    async with proxy(broker.url) as line:
        await line.open()
        what = f"nothing goes {blocked.value}, the other way is open"
        async with scene(broker.url, line.url) as stage, stage.fault(what, DOES) as fault:
            line.hold(blocked)
            await noticed(stage, fault)
            line.release()


async def line_that_only_the_broker_believes_in(broker: Broker) -> None:
    """Promise: a new connection gets what is new; what lies on the one that is half open comes again, and once only."""
    async with proxy(broker.url) as line:
        await line.open()
        async with scene(broker.url, line.url) as stage:
            does = "connects again at once; what the old connection got comes again when the broker has missed it"
            async with stage.fault("the broker believes in a connection that is gone", does) as fault:
                line.forsake()
                fault.over()
                await stage.fetcher.further(500)
            named, confirmed = stage.named, stage.fetcher.confirmed
            late = [n for n, at in confirmed.items() if at > fault.began_s + 1 and named.arrived[n] - at > LATE_LIMIT_S]
            assert late == []
            [said] = [each for each in named.process.lines if str(each["event"]).startswith(SHARED)]
            assert said["level"] == "error"
            await eventually("the bridge is alone on its queue", lambda: named.lines(ALONE))


async def test_half_a_minute_of_everything(broker: Broker, node_broker: ControlledNode) -> None:
    """Each has its promise where it is written."""
    async with asyncio.TaskGroup() as group:
        group.create_task(broker_that_is_stopped(node_broker))
        group.create_task(line_that_is_dark(broker))
        group.create_task(line_that_goes_one_way(broker, Direction.DOWN))
        group.create_task(line_that_goes_one_way(broker, Direction.UP))
        group.create_task(line_that_only_the_broker_believes_in(broker))
