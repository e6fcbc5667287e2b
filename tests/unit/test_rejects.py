"""A broker that does not confirm: the rejected event is held, it is said so, and nothing is published twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from bridge.broker import rejects as module
from bridge.broker.rejects import Rejects
from bridge.broker.status import State
from bridge.contract.pipeline import Reason, Rejected
from bridge.metrics import Metrics
from tests.support.fakes import FakeDelivery
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pamqp import commands


class SilentOutlet:
    """An open channel whose confirms come when they are let through."""

    def __init__(self) -> None:
        self.open = True
        self.confirming = asyncio.Event()
        self.published = 0

    async def publish(
        self, body: bytes, exchange: str, routing_key: str, properties: commands.Basic.Properties
    ) -> None:
        self.published += 1
        await self.confirming.wait()


async def test_confirm_that_is_late_is_said_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONFIRM_S", 0.01)
    rejects, outlet = Rejects((), "bridge.rejected", "here", Metrics(), wait=False), SilentOutlet()
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
