"""Tests of the topology check's requests, and of the effect of a refused or unanswered request."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiormq
import pytest
from pamqp import commands
from structlog.testing import capture_logs

from bridge.amqp.consume import topology_check as module
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.topology_check import TopologyCheck
from bridge.amqp.topology import Exchange, Topology
from bridge.timing import DEFAULT
from tests.support.fake_amqp import HANGS, NO_EXCHANGE, NO_QUEUE, REFUSED, FakeAmqp
from tests.support.virtual_time import VirtualTime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FOUND = Topology((Exchange("kills", "topic"),), "kept")
EXCHANGE, KIND, QUEUE = "exchange kills passive", "exchange kills topic durable", "queue kept passive"
BIND = "bind kept to kills #"
ROUND_S = DEFAULT.check_interval_s + 0.01
LIMIT_S = DEFAULT.check_timeout_s


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch, module)


class Watched:
    """A running topology check, and the times that the check reported."""

    def __init__(self, amqp: FakeAmqp, found: Topology) -> None:
        self.requested_s: list[float] = []
        """For each request that was answered, the time at which it was sent."""
        self.complete_s: list[float] = []
        self.check = TopologyCheck(
            amqp.amqp, found, self.requested_s.append, self.complete_s.append, FlowControl(20), named=True
        )
        self.running = asyncio.create_task(self.check.run())

    @property
    def answers(self) -> int:
        return len(self.requested_s)


@asynccontextmanager
async def watched(amqp: FakeAmqp, found: Topology = FOUND) -> AsyncIterator[Watched]:
    watched = Watched(amqp, found)
    yield watched
    watched.running.cancel()
    await asyncio.wait([watched.running])


async def test_every_request_is_repeated_and_each_has_its_own_channel() -> None:
    async with watched(amqp := FakeAmqp()) as watching:
        await asyncio.sleep(ROUND_S)
        assert sorted(amqp.requests) == [BIND, "channel", "channel", "channel", EXCHANGE, KIND, QUEUE]
        amqp.requests.clear()
        await asyncio.sleep(ROUND_S)
        assert sorted(amqp.requests) == [BIND, EXCHANGE, KIND, QUEUE]
        assert (watching.answers, watching.check.other_consumers) == (6, 0)
        assert watching.check.warnings == []


async def test_exchange_is_declared_passively_first() -> None:
    """An active declaration would create a deleted exchange again, and the bridge would not notice the deletion."""
    async with watched(amqp := FakeAmqp().on(EXCHANGE, NO_EXCHANGE)) as watching:
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await watching.running
    assert KIND not in amqp.requests


async def test_request_that_was_refused_at_the_start_is_not_repeated() -> None:
    found = Topology(
        (Exchange("a", "fanout"), Exchange("b", None), Exchange("c", None)),
        "kept",
        unverified_bindings=("b",),
        inaccessible=("c",),
    )
    async with watched(amqp := FakeAmqp(), found):
        await asyncio.sleep(ROUND_S)
        assert sorted(set(amqp.requests)) == [
            "bind kept to a #",
            "bind kept to c #",
            "channel",
            "exchange a fanout durable",
            "exchange a passive",
            "exchange b passive",
            QUEUE,
        ]


@pytest.mark.parametrize(("request_", "error"), [(EXCHANGE, NO_EXCHANGE), (QUEUE, NO_QUEUE), (BIND, NO_EXCHANGE)])
async def test_missing_part_ends_the_check_and_all_its_requests(request_: str, error: Exception) -> None:
    async with watched(amqp := FakeAmqp().on(request_, None, error)) as watching:
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await watching.running
        amqp.requests.clear()
        await asyncio.sleep(5 * ROUND_S)
        assert amqp.requests == []


@pytest.mark.parametrize(
    ("request_", "purpose"),
    [
        (EXCHANGE, "look at the exchange 'kills'"),
        (KIND, "look at the exchange 'kills'"),
        (QUEUE, "look at the queue 'kept'"),
        (BIND, "bind the queue 'kept' to the exchange 'kills'"),
    ],
)
async def test_revoked_permission_is_a_warning_until_it_is_granted_again(request_: str, purpose: str) -> None:
    amqp = FakeAmqp().on(request_, None, REFUSED, REFUSED, None)
    with capture_logs() as logged:
        async with watched(amqp) as watching:
            await asyncio.sleep(2 * ROUND_S)
            warning = f"the user of BRIDGE_AMQP_URL may no longer {purpose}: ACCESS_REFUSED - access refused"
            assert watching.check.warnings == [warning]
            answers = watching.answers
            await asyncio.sleep(2 * ROUND_S)
            assert amqp.requests.count(request_) == 2, "the broker logs each refusal"
            assert watching.answers > answers, "the other requests continue"
            await asyncio.sleep(2 * DEFAULT.refused_interval_s)
            assert watching.check.warnings == []
    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("warning", warning),
        ("info", f"the bridge can {purpose} again"),
    ]


@pytest.mark.parametrize("request_", [EXCHANGE, QUEUE, BIND])
async def test_unanswered_request_is_a_warning_while_others_are_answered(request_: str) -> None:
    majority = asyncio.Event()
    amqp = FakeAmqp().on(request_, None, majority.wait, None)

    async def answer(request: str, default: object) -> object:
        if request == request_ and amqp.requests.count(request_) == 2:
            amqp.requests.append(request)
            await majority.wait()
            return default
        return await FakeAmqp.ask(amqp, request, default)

    amqp.on(request_)
    amqp.ask = answer  # type: ignore[method-assign]  # one late answer
    with capture_logs() as logged:
        async with watched(amqp) as watching:
            await asyncio.sleep(2 * LIMIT_S)
            [warning] = watching.check.warnings
            assert "the broker answers other requests, but not the one to" in warning
            assert amqp.requests.count(request_) == 3, "a pending request is not repeated"
            majority.set()
            await asyncio.sleep(ROUND_S)
            assert watching.check.warnings == []
            assert not watching.running.done()
    assert [line["log_level"] for line in logged] == ["warning", "info"]


async def test_broker_that_answers_nothing_is_given_up_after_the_limit(clock: VirtualTime) -> None:
    amqp = FakeAmqp()
    for request in (EXCHANGE, QUEUE, BIND):
        amqp.on(request, None, HANGS)
    before_s = clock.now_s
    with capture_logs() as logged:
        async with watched(amqp) as watching:
            with pytest.raises(ConnectionError, match=rf"the broker does not answer within {LIMIT_S:g} s"):
                await watching.running
    assert clock.now_s - before_s == pytest.approx(2 * DEFAULT.check_interval_s + LIMIT_S, abs=LIMIT_S / 50)
    assert logged == [], "the caller logs the lost broker"


async def test_channel_that_can_not_be_opened_counts_as_silence() -> None:
    amqp = FakeAmqp().on("channel", HANGS)
    async with watched(amqp) as watching:
        with pytest.raises(ConnectionError, match="the broker does not answer"):
            await watching.running


async def test_stray_cancellation_ends_the_check() -> None:
    """When a channel is closed, aiormq cancels each task that waits for the channel."""
    async with watched(FakeAmqp().on(BIND, asyncio.CancelledError())) as watching:
        await asyncio.wait([watching.running])
        assert watching.running.cancelled()


async def test_answer_is_reported_with_the_time_of_its_request(clock: VirtualTime) -> None:
    """After a freeze, a bridge reads an answer that the broker sent long ago."""
    amqp = FakeAmqp().on(EXCHANGE, HANGS).on(BIND, HANGS)
    began_s = clock.monotonic()

    async def answer_late(request: str, default: object) -> object:
        if request == QUEUE:
            await asyncio.sleep(12)
        return await FakeAmqp.ask(amqp, request, default)

    amqp.ask = answer_late  # type: ignore[method-assign]  # a late answer
    async with watched(amqp) as watching:
        assert not watching.check.answered
        await asyncio.sleep(ROUND_S + 12)
        assert watching.check.answered
        assert watching.requested_s == [pytest.approx(began_s + DEFAULT.check_interval_s, abs=0.1)]
        assert watching.complete_s == [], "the other requests are not answered yet"


@pytest.mark.parametrize("late", [EXCHANGE, QUEUE, BIND])
async def test_everything_existed_at_the_time_of_the_earliest_request(clock: VirtualTime, late: str) -> None:
    """All requests must be answered.

    For example, after an exchange was deleted and declared again, the exchange exists, but its binding is gone.
    """
    amqp = FakeAmqp().on(late, None, HANGS)
    began_s = clock.monotonic()
    async with watched(amqp) as watching:
        await asyncio.sleep(5 * ROUND_S)
        assert watching.answers > 5
        first_s = began_s + DEFAULT.check_interval_s
        assert watching.complete_s == [pytest.approx(first_s, abs=0.1)] * len(watching.complete_s)


async def test_queue_with_waiting_messages_is_not_complete(clock: VirtualTime) -> None:
    waiting = commands.Queue.DeclareOk("kept", 7, 1)
    async with watched(FakeAmqp().on(QUEUE, waiting, None)) as watching:
        await asyncio.sleep(ROUND_S)
        assert watching.complete_s == []
        empty_s = clock.monotonic()
        await asyncio.sleep(ROUND_S)
        assert watching.complete_s[-1] == pytest.approx(empty_s, abs=DEFAULT.check_interval_s)


async def test_silence_does_not_count_while_reading_is_paused(clock: VirtualTime) -> None:
    amqp, flow_control = FakeAmqp(), FlowControl(20)
    flow_control.paused = True
    for request in (EXCHANGE, QUEUE, BIND):
        amqp.on(request, HANGS)
    check = TopologyCheck(amqp.amqp, FOUND, lambda _: None, lambda _: None, flow_control, named=True)
    running = asyncio.create_task(check.run())
    await asyncio.sleep(3 * LIMIT_S)
    assert not running.done()
    assert check.warnings == []
    flow_control.paused = False
    with pytest.raises(ConnectionError):
        await running
