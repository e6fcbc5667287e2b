"""Tests that rejected events without a confirm are held and reported, and that no event is published twice."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import aiormq
import pytest
from structlog.testing import capture_logs

from bridge.amqp import status, supervisor
from bridge.amqp.publish import confirm_channel
from bridge.amqp.publish.confirm_channel import LARGEST_FRAME
from bridge.amqp.rejects import publisher as module
from bridge.amqp.rejects.publisher import RejectPublisher
from bridge.amqp.status import State
from bridge.contract.pipeline import Reason, Rejected
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing
from tests.support.fake_amqp import HANGS, NACK, REFUSED, FakeAmqp, FakeBroker, returned
from tests.support.fakes import FakeDelivery, FakeFlowControl
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pamqp import commands


class SilentChannel:
    """A fake of an open channel that confirms messages only when the test allows it."""

    def __init__(self) -> None:
        self.is_open = True
        self.blocked: str | None = None
        self.confirming = asyncio.Event()
        self.published = 0

    async def publish(
        self,
        body: bytes,
        exchange: str,
        routing_key: str,
        properties: Callable[[int], commands.Basic.Properties],
        message_id: str | None,
        on_published: Callable[[commands.Basic.Properties], None] | None,
    ) -> None:
        fitting = properties(LARGEST_FRAME)
        if on_published is not None:
            on_published(fitting)
        self.published += 1
        await self.confirming.wait()


async def test_late_confirm_is_reported_and_waited_for() -> None:
    timing = Timing(confirm_warning_s=0.01)
    rejects, channel = (
        RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False, timing=timing),
        SilentChannel(),
    )
    rejects._channel = channel  # type: ignore[assignment]  # a fake with the used part
    rejects.status.enter(State.WORKING)
    delivery = FakeDelivery(b"[]")
    rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("the missing confirm is reported", lambda: rejects.status.state is State.LOST)
    assert "short of memory or disk" in str(rejects.status.error)
    assert (rejects.waiting, delivery.settled) == (1, 0)
    channel.confirming.set()
    await eventually("the event is confirmed", lambda: delivery.settled)
    assert (rejects.waiting, channel.published) == (0, 1)
    assert rejects.status.state is State.WORKING


async def test_unexpected_error_of_a_reject_is_logged_and_the_event_settled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("unforeseen")

    rejects = RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False)
    monkeypatch.setattr(module, "reject_properties", fail)
    rejects._channel = SilentChannel()  # type: ignore[assignment]  # a fake with the used part
    delivery = FakeDelivery(b"[]")
    rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("the delivery is settled", lambda: delivery.settled)
    assert (rejects.waiting, lost(rejects)) == (0, 1)
    assert "is lost" in capsys.readouterr().out


async def test_reject_that_is_given_up_stays_with_the_broker() -> None:
    rejects, channel = (
        RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False),
        SilentChannel(),
    )
    rejects._channel = channel  # type: ignore[assignment]  # a fake with the used part
    delivery = FakeDelivery(b"[]")
    rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("the event is published", lambda: channel.published)
    await rejects.close()
    assert (rejects.waiting, delivery.settled) == (0, 0)


async def holding(rejects: RejectPublisher, count: int) -> list[FakeDelivery]:
    """Returns the deliveries of rejected events that the broker did not confirm before the connection was lost."""
    channel = SilentChannel()
    rejects._channel = channel  # type: ignore[assignment]  # a fake with the used part
    deliveries = [FakeDelivery(b"[%d]" % number) for number in range(count)]
    for delivery in deliveries:
        rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("all events are published", lambda: channel.published == count)
    for delivery in deliveries:
        delivery.lost = True
    return deliveries


async def test_event_that_is_delivered_again_is_given_up_with_its_connection() -> None:
    rejects = RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False)
    await holding(rejects, 3)
    rejects.on_session_end()
    await eventually("nothing is held", lambda: rejects.waiting == 0)
    assert lost(rejects) == 0


async def test_event_that_is_not_delivered_again_stays_held_without_its_connection() -> None:
    rejects = RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False, max_kept=3)
    await holding(rejects, 3)
    rejects.on_session_end()
    await asyncio.sleep(0)
    assert (rejects.waiting, lost(rejects)) == (3, 0)
    await rejects.close()
    assert (rejects.waiting, lost(rejects)) == (0, 3)


async def test_oldest_held_events_beyond_the_limit_are_lost_and_logged() -> None:
    rejects = RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False, max_kept=3)
    oldest = (await holding(rejects, 5))[:2]
    with capture_logs() as logged:
        rejects.on_session_end()
    await eventually("some events are given up", lambda: rejects.waiting == 3)
    assert not {*oldest} & {*rejects._unconfirmed.values()}
    assert lost(rejects) == 2
    assert [(line["log_level"], line["events"]) for line in logged] == [("error", 2)]
    await rejects.close()


def lost(rejects: RejectPublisher) -> float | None:
    """Returns the number of lost events, from the metrics."""
    return rejects._metrics.registry.get_sample_value("bridge_rejects_lost_total")


async def test_blocked_broker_is_reported_with_its_reason_until_it_is_unblocked() -> None:
    rejects = RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False)
    rejects.status.enter(State.WORKING)
    channel = rejects._channel
    channel._on_blocked("low on memory")
    assert rejects.status.report()["state"] == "lost"
    assert "low on memory" in str(rejects.status.error)
    channel._on_blocked(None)
    assert rejects.status.report()["state"] == "working"


# A publisher with a scripted broker

PUBLISH = "publish to bridge.rejected"
WHAT_TO_DO = r"can't be published to 'bridge\.rejected': ACCESS_REFUSED.*; grant configure, .* or set it to off .*\.sh"
NOT_JSON = Rejected(Reason.NOT_JSON, "no")


class RunningRejects:
    """A RejectPublisher on a scripted broker."""

    def __init__(self, broker: FakeBroker, *, wait: bool = False) -> None:
        self.broker = broker
        self.rejects = RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait)
        self.running: asyncio.Task[None] | None = None

    def reject(self) -> FakeDelivery:
        self.rejects.reject(delivery := FakeDelivery(b"[]"), NOT_JSON)
        return delivery

    async def works(self) -> None:
        self.running = self.running or asyncio.create_task(self.rejects.run())
        await eventually("rejects can be published", lambda: self.rejects.status.state is State.WORKING)

    async def end(self) -> None:
        await self.rejects.close()
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait([self.running])


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch, module, supervisor, status)


@pytest.fixture
async def running(clock: VirtualTime, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningRejects]:
    monkeypatch.setattr(confirm_channel, "open_connection", (broker := FakeBroker()).open_connection)
    running = RunningRejects(broker)
    yield running
    await running.end()


async def test_exchange_and_bounded_queue_of_rejected_events_are_declared_and_bound(running: RunningRejects) -> None:
    no_queue = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no queue 'bridge.rejected' in vhost '/'")
    running.broker.connections.append(amqp := FakeAmqp().on("queue bridge.rejected passive", no_queue))
    with capture_logs() as logged:
        await running.works()
    asked = [each for each in amqp.requests if not each.startswith(("channel", "close"))]
    assert asked == [
        "exchange bridge.rejected passive",
        "queue bridge.rejected passive",
        "queue bridge.rejected declare durable",
        "bind bridge.rejected to bridge.rejected #",
    ]
    assert module.QUEUE_ARGUMENTS in [each for channel in amqp.channels for each in channel.arguments]
    assert logged == [], "a start without errors is not logged"


async def test_missing_permission_for_rejects_is_a_refusal_with_a_hint(
    running: RunningRejects,
) -> None:
    running.broker.connections.append(FakeAmqp().on("bind bridge.rejected to bridge.rejected #", REFUSED))
    with pytest.raises(BrokerRefusal, match=WHAT_TO_DO):
        await running.rejects.run()


@pytest.mark.parametrize("look", ["exchange bridge.rejected passive", "queue bridge.rejected passive"])
async def test_inaccessible_exchange_or_queue_counts_as_existing(running: RunningRejects, look: str) -> None:
    """RabbitMQ 4.3 refuses even a passive declaration if the user lacks a permission.

    The refusal is ignored, because the answer to the bridge's next request names the missing permission.
    """
    running.broker.connections.append(FakeAmqp().on(look, REFUSED))
    await running.works()


async def test_rejects_that_are_off_need_no_connection(running: RunningRejects) -> None:
    off = RejectPublisher((), None, "here", FakeFlowControl(), Metrics(), wait=False)
    await off.run()
    assert running.broker.attempts == 0


@pytest.mark.parametrize("answer", [NACK, returned()], ids=["nack", "returned"])
async def test_unconfirmed_reject_is_retried_and_failure_and_success_are_logged(
    running: RunningRejects, answer: Exception
) -> None:
    running.broker.connections += [FakeAmqp().on(PUBLISH, answer, None), FakeAmqp()]
    await running.works()
    with capture_logs() as logged:
        delivery = running.reject()
        await eventually("the event is confirmed", lambda: delivery.settled)
    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("warning", "rejected events can't be published; they are held"),
        ("info", "rejected events are published again"),
    ]
    assert logged[0]["waiting"] == 1
    assert delivery.settled == 1
    assert lost(running.rejects) == 0


async def test_unroutable_reject_sets_everything_up_again(running: RunningRejects) -> None:
    """If an operator deletes the queue of rejected events, the bridge declares this queue again."""
    running.broker.connections += [FakeAmqp().on(PUBLISH, returned()), second := FakeAmqp()]
    await running.works()
    delivery = running.reject()
    await eventually("the event is confirmed", lambda: delivery.settled)
    assert running.broker.attempts == 2
    assert second.requests.count(PUBLISH) == 1


async def test_reject_with_a_nack_needs_no_other_channel(running: RunningRejects) -> None:
    running.broker.connections.append(amqp := FakeAmqp().on(PUBLISH, NACK, NACK, None))
    await running.works()
    delivery = running.reject()
    await eventually("the event is confirmed", lambda: delivery.settled)
    assert (running.broker.attempts, amqp.requests.count(PUBLISH)) == (1, 3)


async def test_rejects_from_an_outage_are_published_after_it(
    running: RunningRejects,
) -> None:
    running.broker.connections += [first := FakeAmqp(), ConnectionError("refused"), second := FakeAmqp()]
    await running.works()
    first.lose()
    deliveries = [running.reject() for _ in range(3)]
    with capture_logs() as logged:
        await eventually("all events are confirmed", lambda: all(each.settled for each in deliveries))
    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("warning", "rejected events can't be published; they are held"),
        ("info", "rejected events are published again"),
    ]
    assert (logged[0]["waiting"], logged[0]["error"]) == (3, "CONNECTION_FORCED - shutdown")
    assert second.requests.count(PUBLISH) == 3
    assert [each.settled for each in deliveries] == [1, 1, 1]


async def test_connection_that_is_lost_while_nothing_is_held_is_not_logged(running: RunningRejects) -> None:
    running.broker.connections += [first := FakeAmqp(), FakeAmqp()]
    await running.works()
    with capture_logs() as logged:
        first.lose()
        await eventually("the loss is noticed", lambda: running.rejects.status.state is State.LOST)
        await running.works()
    assert logged == []


async def test_start_without_a_broker_is_not_logged_until_an_event_is_held(running: RunningRejects) -> None:
    running.broker.connections += [*(ConnectionError("refused") for _ in range(10)), FakeAmqp()]
    with capture_logs() as logged:
        running.running = asyncio.create_task(running.rejects.run())
        await eventually("the connection fails", lambda: running.rejects.status.state is State.LOST)
        assert (logged, running.rejects.unpublishable) == ([], False)
        delivery = running.reject()
        await eventually("the event is published", lambda: delivery.settled)
    assert [(line["log_level"], line["event"], line["waiting"]) for line in logged] == [
        ("warning", "rejected events can't be published; they are held", 1),
        ("info", "rejected events are published again", 1),
    ]


async def test_blocked_broker_is_logged_although_nothing_is_held(running: RunningRejects) -> None:
    running.broker.connections.append(amqp := FakeAmqp())
    await running.works()
    with capture_logs() as logged:
        await amqp.block("low on memory")
        assert running.rejects.unpublishable
        await amqp.unblock()
    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("info", "rejected events can't be published; none is held"),
        ("info", "rejected events can be published again"),
    ]
    assert not running.rejects.unpublishable


async def test_later_refusal_is_a_warning_although_nothing_is_held(running: RunningRejects) -> None:
    running.broker.connections += [first := FakeAmqp(), BrokerRefusal("no permission"), FakeAmqp()]
    await running.works()
    with capture_logs() as logged:
        first.lose()
        await eventually("the broker refuses", lambda: running.rejects.status.state is State.REFUSED)
        assert running.rejects.unpublishable
        await running.works()
    assert [line["log_level"] for line in logged] == ["warning", "info"]
    assert logged[0]["error"] == "no permission"


async def test_connection_works_after_the_held_events_were_given_up(
    running: RunningRejects,
) -> None:
    running.broker.connections.append(FakeAmqp().on(PUBLISH, NACK))
    await running.works()
    delivery = running.reject()
    await eventually("the connection fails", lambda: running.rejects.status.state is State.LOST)
    delivery.lost = True
    with capture_logs() as logged:
        running.rejects.on_session_end()
        await running.works()
    assert [line["event"] for line in logged] == ["no rejected event is held any more"]
    assert delivery.settled == 0


async def test_stop_that_gives_up_held_events_logs_no_recovery(running: RunningRejects) -> None:
    running.broker.connections.append(FakeAmqp().on(PUBLISH, NACK))
    await running.works()
    running.reject()
    await eventually("the connection fails", lambda: running.rejects.status.state is State.LOST)
    running.rejects.stop()
    with capture_logs() as logged:
        await running.rejects.close()
    assert logged == []


async def test_missing_confirm_of_a_blocked_broker_is_not_reported(running: RunningRejects, clock: VirtualTime) -> None:
    running.broker.connections.append(amqp := FakeAmqp().on(PUBLISH, HANGS))
    await running.works()
    running.reject()
    await amqp.block("low on memory")
    await asyncio.sleep(3 * DEFAULT.confirm_warning_s)
    assert running.rejects.status.error == "the broker accepts no messages: low on memory"


async def test_unblocked_broker_is_reported_with_the_first_confirm(running: RunningRejects) -> None:
    running.broker.connections.append(amqp := FakeAmqp().on(PUBLISH, HANGS))
    await running.works()
    running.reject()
    await amqp.block("low on memory")
    await amqp.unblock()
    assert running.rejects.status.state is State.LOST


def of_size(size: int) -> FakeDelivery:
    return FakeDelivery(b"x" * size)


@pytest.fixture
async def unconfirmed() -> tuple[RejectPublisher, SilentChannel, list[bool]]:
    """A RejectPublisher that gets no confirms, its channel, and the recorded calls of the flow control."""
    flow_control, channel = FakeFlowControl(), SilentChannel()
    rejects = RejectPublisher((), "bridge.rejected", "here", flow_control, Metrics(), wait=False, max_kept=200)
    rejects._channel = channel  # type: ignore[assignment]  # a fake with the used part
    return rejects, channel, flow_control.full


NO = Rejected(Reason.TOO_LARGE, "no")


async def test_held_bytes_are_bounded_and_the_bound_is_reported(
    unconfirmed: tuple[RejectPublisher, SilentChannel, list[bool]],
) -> None:
    rejects, channel, full = unconfirmed
    deliveries = [of_size(size) for size in (module.MAX_HELD_BYTES - 1, 1, 1)]
    rejects.reject(deliveries[0], NO)
    assert full == []
    rejects.reject(deliveries[1], NO)
    rejects.reject(deliveries[2], NO)
    assert full == [True]
    channel.confirming.set()
    await eventually("all events are confirmed", lambda: all(delivery.settled for delivery in deliveries))
    assert full == [True, False]


async def test_end_of_a_session_leaves_room_for_the_next_one(
    unconfirmed: tuple[RejectPublisher, SilentChannel, list[bool]],
) -> None:
    """When a session ends, the publisher gives up the rejected events that the broker will deliver again.

    The publisher keeps the newest rejected events that the broker will not deliver again. They may take MAX_HELD_BYTES
    in total, but at least one of them is always kept.
    """
    rejects, channel, full = unconfirmed
    before = [of_size(size) for size in (10, module.MAX_HELD_BYTES, 1)]
    for delivery in before:
        rejects.reject(delivery, NO)
        delivery.lost = True
    rejects.on_session_end()
    await eventually("the oldest are given up", lambda: rejects.waiting == 1)
    assert lost(rejects) == 2
    rejects.reject(of_size(module.MAX_HELD_BYTES - 1), NO)
    assert full == [True], "the events of the previous session do not count"
    rejects.reject(of_size(1), NO)
    assert full == [True, True]
    channel.confirming.set()
    await eventually("all events are confirmed", lambda: rejects.waiting == 0)
    assert full == [True, True, False]


# Trace


async def test_reject_is_traced_at_debug_when_it_is_published_and_when_it_is_confirmed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "bridge.rejects")
    rejects, channel = (
        RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False),
        SilentChannel(),
    )
    rejects._channel = channel  # type: ignore[assignment]  # a fake with the used part
    channel.confirming.set()
    with capture_logs() as logged:
        rejects.reject(delivery := FakeDelivery(b"[]"), NOT_JSON)
        await eventually("the event is confirmed", lambda: delivery.settled)
    assert [line["event"] for line in logged] == ["reject published", "reject confirmed"]
    for line in logged:
        assert (line["reason"], line["tag"], line["bytes"]) == ("not-json", delivery.tag, 2)
        assert len(line["message_id"]) == 32, "the bridge generates an id for an event without one"


async def test_reject_is_not_traced_at_other_levels() -> None:
    rejects, channel = (
        RejectPublisher((), "bridge.rejected", "here", FakeFlowControl(), Metrics(), wait=False),
        SilentChannel(),
    )
    rejects._channel = channel  # type: ignore[assignment]  # a fake with the used part
    channel.confirming.set()
    with capture_logs() as logged:
        rejects.reject(delivery := FakeDelivery(b"[]"), NOT_JSON)
        await eventually("the event is confirmed", lambda: delivery.settled)
    assert [line["event"] for line in logged if line["log_level"] == "debug"] == []
