"""Tests that `/readyz` reports problems with rejected events, unless the whole broker is unavailable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.status import State
from bridge.contract.pipeline import Reason, Rejected
from tests.support.fakes import FakeDelivery
from tests.support.running import consumer_of
from tests.unit.test_app import build

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.app import Bridge

__all__ = ["build"]

HELD = "rejected events can't be published, and are held"
REFUSED = "rejected events can't be published; none is held"
UNDECLARED = "the exchange of rejected events is not declared yet"
NOT_CONSUMING = "the bridge does not consume from the broker"


@pytest.mark.parametrize(
    ("consumer", "rejects", "waits", "missing"),
    [
        (State.WORKING, State.WORKING, False, []),
        (State.WORKING, State.WORKING, True, []),
        (State.WORKING, State.CONNECTING, False, [UNDECLARED]),
        (State.WORKING, State.LOST, False, []),
        (State.WORKING, State.LOST, True, [HELD]),
        (State.WORKING, State.REFUSED, False, [REFUSED]),
        (State.WORKING, State.REFUSED, True, [HELD]),
        (State.LOST, State.LOST, False, [NOT_CONSUMING]),
        (State.LOST, State.LOST, True, [NOT_CONSUMING, HELD]),
        (State.REFUSED, State.REFUSED, False, [NOT_CONSUMING]),
    ],
)
async def test_rejected_events_are_missing_if_they_wait_or_are_refused(
    build: Callable[..., Bridge], consumer: State, rejects: State, missing: list[str], *, waits: bool
) -> None:
    bridge = build()
    if waits:
        bridge._rejects.reject(FakeDelivery(b"[]"), Rejected(Reason.NOT_JSON, "no"))
    consumer_of(bridge).status.enter(consumer)
    bridge._rejects.status.enter(rejects)
    ready, body = bridge.readiness.report()
    assert (ready, body["missing"]) == (not missing, missing)
    await bridge._rejects.close()


async def test_broker_that_takes_nothing_refuses_rejected_events(build: Callable[..., Bridge]) -> None:
    bridge = build()
    consumer_of(bridge).status.enter(State.WORKING)
    bridge._rejects._channel._on_blocked("low on memory")
    assert bridge.readiness.report()[1]["missing"] == [REFUSED]


async def test_rejected_events_that_are_only_counted_miss_nothing(build: Callable[..., Bridge]) -> None:
    bridge = build(reject_exchange="off")
    consumer_of(bridge).status.enter(State.WORKING)
    assert bridge.readiness.report()[0]


async def test_other_consumers_of_the_queue_are_a_warning_and_the_bridge_is_ready(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Consumer, "other_consumers", 2)
    bridge = build(queue="kept", reject_exchange="off")
    consumer_of(bridge).status.enter(State.WORKING)
    ready, body = bridge.readiness.report()
    assert ready
    assert body["warnings"] == [
        "other consumers of the queue 'kept': 2; each event goes to only one consumer: give each bridge its own "
        "BRIDGE_QUEUE"
    ]
