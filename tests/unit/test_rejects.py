"""A broker that does not confirm: the rejected event is held, it is said so, and nothing is published twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from bridge.broker.rejects import Rejects
from bridge.broker.status import State
from bridge.contract.pipeline import Reason, Rejected
from bridge.metrics import Metrics
from bridge.timing import Timing
from tests.support.fakes import FakeDelivery
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pamqp import commands


class SilentOutlet:
    """An open channel whose confirms come when they are let through."""

    def __init__(self) -> None:
        self.open = True
        self.blocked: str | None = None
        self.confirming = asyncio.Event()
        self.published = 0

    async def publish(
        self, body: bytes, exchange: str, routing_key: str, properties: commands.Basic.Properties
    ) -> None:
        self.published += 1
        await self.confirming.wait()


async def test_confirm_that_is_late_is_said_and_waited_for() -> None:
    timing = Timing(confirm_warning_s=0.01)
    rejects, outlet = Rejects((), "bridge.rejected", "here", Metrics(), wait=False, timing=timing), SilentOutlet()
    rejects._outlet = outlet  # type: ignore[assignment]  # what it does of it is all there
    rejects.status.enter(State.WORKING)
    delivery = FakeDelivery(b"[]")
    rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("it is said", lambda: rejects.status.state is State.LOST)
    assert "short of memory or disk" in str(rejects.status.error)
    assert (rejects.waiting, delivery.settled) == (1, 0)
    outlet.confirming.set()
    await eventually("it is confirmed", lambda: delivery.settled)
    assert (rejects.waiting, outlet.published) == (0, 1)
    assert rejects.status.state is State.WORKING


async def test_event_whose_reject_fails_in_a_way_that_nobody_foresaw_is_said_and_settled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("unforeseen")

    rejects = Rejects((), "bridge.rejected", "here", Metrics(), wait=False)
    monkeypatch.setattr(rejects, "_properties", fail)
    delivery = FakeDelivery(b"[]")
    rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("it is settled", lambda: delivery.settled)
    assert rejects.waiting == 0
    assert "is lost" in capsys.readouterr().out


async def test_reject_that_is_given_up_is_left_to_the_broker() -> None:
    rejects, outlet = Rejects((), "bridge.rejected", "here", Metrics(), wait=False), SilentOutlet()
    rejects._outlet = outlet  # type: ignore[assignment]  # what it does of it is all there
    delivery = FakeDelivery(b"[]")
    rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("it is under way", lambda: outlet.published)
    await rejects.close()
    assert (rejects.waiting, delivery.settled) == (0, 0)


async def holding(rejects: Rejects, count: int) -> list[FakeDelivery]:
    """That many events, rejected and not confirmed, whose connection is lost by now."""
    outlet = SilentOutlet()
    rejects._outlet = outlet  # type: ignore[assignment]  # what it does of it is all there
    deliveries = [FakeDelivery(b"[%d]" % number) for number in range(count)]
    for delivery in deliveries:
        rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
    await eventually("all are under way", lambda: outlet.published == count)
    for delivery in deliveries:
        delivery.lost = True
    return deliveries


async def test_event_that_comes_again_is_given_up_with_its_connection() -> None:
    rejects = Rejects((), "bridge.rejected", "here", Metrics(), wait=False)
    await holding(rejects, 3)
    rejects.epoch_over()
    await eventually("nothing is held", lambda: rejects.waiting == 0)
    assert lost(rejects) == 0


async def test_event_that_does_not_come_again_is_held_though_its_connection_is_lost() -> None:
    rejects = Rejects((), "bridge.rejected", "here", Metrics(), wait=False, most_kept=3)
    await holding(rejects, 3)
    rejects.epoch_over()
    await asyncio.sleep(0)
    assert (rejects.waiting, lost(rejects)) == (3, 0)
    await rejects.close()
    assert (rejects.waiting, lost(rejects)) == (0, 3)


async def test_oldest_events_are_lost_where_more_are_held_than_may_be_and_it_is_said() -> None:
    rejects = Rejects((), "bridge.rejected", "here", Metrics(), wait=False, most_kept=3)
    oldest = (await holding(rejects, 5))[:2]
    with capture_logs() as logged:
        rejects.epoch_over()
    await eventually("some are given up", lambda: rejects.waiting == 3)
    assert not {*oldest} & {*rejects._publishing.values()}
    assert lost(rejects) == 2
    assert [(line["log_level"], line["events"]) for line in logged] == [("error", 2)]
    await rejects.close()


def lost(rejects: Rejects) -> float | None:
    """How many events were lost, by the metrics."""
    return rejects._metrics.registry.get_sample_value("bridge_rejects_lost_total")


async def test_broker_that_takes_nothing_is_said_in_its_own_words_until_it_does_again() -> None:
    rejects = Rejects((), "bridge.rejected", "here", Metrics(), wait=False)
    rejects.status.enter(State.WORKING)
    outlet = rejects._outlet
    outlet._tell("low on memory")
    assert rejects.status.report()["state"] == "lost"
    assert "low on memory" in str(rejects.status.error)
    outlet._tell(None)
    assert rejects.status.report()["state"] == "working"
