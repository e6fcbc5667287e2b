"""Tests of each kind of queue: how it is declared and consumed, and the steps at the end of a session."""

from __future__ import annotations

from typing import Any

import aiormq
import pytest
from structlog.testing import capture_logs

from bridge.amqp.consume.consumed_queue import NAMED_QUEUE_ARGUMENTS, ExclusiveQueue, NamedQueue
from bridge.amqp.topology import Queue
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT
from tests.support.fake_amqp import HANGS, NO_QUEUE, REFUSED, FakeAmqp
from tests.support.virtual_time import VirtualTime


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


async def channel_of(amqp: FakeAmqp) -> Any:
    """Returns a fake channel, typed as aiormq's."""
    return await amqp.channel(publisher_confirms=False)


async def test_declared_named_queue_has_bounds_and_is_kept() -> None:
    channel = await channel_of(amqp := FakeAmqp().on("queue kept passive", NO_QUEUE))
    assert await NamedQueue("kept").prepare(amqp.amqp, channel) == Queue("kept", created=True)
    assert amqp.channels[-1].arguments == [NAMED_QUEUE_ARGUMENTS]


async def test_inaccessible_queue_is_not_declared() -> None:
    channel = await channel_of(amqp := FakeAmqp().on("queue kept passive", REFUSED))
    assert await NamedQueue("kept").prepare(amqp.amqp, channel) == Queue("kept", created=False)
    assert amqp.requests == ["channel", "channel", "queue kept passive"]


async def test_missing_permission_to_declare_a_queue_is_named() -> None:
    amqp = FakeAmqp().on("queue kept passive", NO_QUEUE)
    amqp.on("queue kept declare durable", REFUSED).on("queue (unnamed) exclusive", REFUSED)
    with pytest.raises(BrokerRefusal, match="; create the queue, or grant configure on it; see docker/"):
        await NamedQueue("kept").prepare(amqp.amqp, await channel_of(amqp))
    with pytest.raises(BrokerRefusal, match="; grant configure on names that begin with amq"):
        await ExclusiveQueue(("kills",)).prepare(amqp.amqp, await channel_of(amqp))


async def test_newest_consumer_of_a_named_queue_has_the_highest_priority() -> None:
    queue = NamedQueue("kept")
    first: Any = queue.arguments()
    second: Any = queue.arguments()
    assert second["x-priority"] > first["x-priority"]


async def test_exclusive_and_named_queues_are_declared_as_classic() -> None:
    amqp = FakeAmqp()
    channel = await channel_of(amqp)
    assert (await ExclusiveQueue(("kills",)).prepare(amqp.amqp, channel)).created
    assert channel.arguments == [{"x-queue-type": "classic"}]
    assert NAMED_QUEUE_ARGUMENTS["x-queue-type"] == "classic"


async def exclusive(amqp: FakeAmqp, *exchanges: str) -> ExclusiveQueue:
    queue = ExclusiveQueue(exchanges or ("kills",))
    await queue.prepare(amqp.amqp, await channel_of(amqp))
    amqp.requests.clear()
    return queue


async def test_exclusive_queue_is_unbound_from_all_exchanges_before_it_is_deleted() -> None:
    queue = await exclusive(amqp := FakeAmqp(), "kills", "prices")
    await queue.leave(amqp.amqp)
    assert amqp.requests == ["channel", "unbind amq.gen-1 from kills #", "unbind amq.gen-1 from prices #"]
    amqp.requests.clear()
    await queue.leave(amqp.amqp)
    assert amqp.requests == [], "once"


@pytest.mark.parametrize("answer", [HANGS, REFUSED, OSError("reset"), aiormq.exceptions.ConnectionClosed(320, "gone")])
async def test_unbind_takes_a_second_at_most(answer: object, clock: VirtualTime) -> None:
    queue = await exclusive(amqp := FakeAmqp().on("unbind amq.gen-1 from kills #", answer))
    before_s = clock.now_s
    with capture_logs() as logged:
        await queue.leave(amqp.amqp)
    assert clock.now_s - before_s <= DEFAULT.unbind_timeout_s + 0.02
    assert [line["log_level"] for line in logged] == ["info"]


async def test_no_request_is_sent_on_a_lost_connection() -> None:
    queue = await exclusive(amqp := FakeAmqp())
    amqp.lose()
    await queue.leave(amqp.amqp)
    assert amqp.requests == []


async def test_session_without_a_queue_unbinds_nothing() -> None:
    queue = ExclusiveQueue(("kills",))
    await queue.leave((amqp := FakeAmqp()).amqp)
    assert amqp.requests == []
