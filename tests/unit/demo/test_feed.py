"""Tests that the demo's feed delivers valid events, invalid events and gaps in the same order as a real consumer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest
from structlog.testing import capture_logs

from bridge.amqp.consume.consumer import ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.status import State
from bridge.contract import catalog
from bridge.contract.pipeline import Accepted, Event, Pipeline, Reason, Rejected
from bridge.demo import feed as feed_module
from bridge.demo.feed import GAP_INTERVAL, GAP_INTERVAL_S, REJECT_INTERVAL, Feed
from bridge.metrics import Metrics
from bridge.source import register_source_metrics
from bridge.timing import DEFAULT
from tests.support.virtual_time import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.amqp.consume.session import Delivery
    from bridge.amqp.status import Gap
    from bridge.contract.update_id import UpdateId

PIPELINE = Pipeline(catalog.load([catalog.PACKAGED]), 2**20)


class Handler:
    """Records results and gaps, settles each delivery, and stops the feed after a number of events."""

    def __init__(self, events: int) -> None:
        self.results: list[Accepted | Rejected | Gap] = []
        self.delivered = 0
        self.stop_after = events
        self.feed: Feed | None = None

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        assert self.feed is not None
        [delivery] = deliveries
        event = Event(delivery.body, delivery.properties.type, None, delivery.properties.encoding)
        self.results.append(PIPELINE.process(event, 0))
        assert delivery.exchange == "bridge.demo"
        assert delivery.current
        delivery.settle()
        self.delivered += 1
        if self.delivered == self.stop_after:
            self.feed.stop()

    def record_id(self, update_id: UpdateId) -> None:
        raise AssertionError("a feed has no ids")

    def on_caught_up(self) -> None:
        raise AssertionError("a feed has no history")

    def on_gap(self, gap: Gap, update_id: UpdateId | None) -> None:
        assert update_id is None, "a feed has no ids"
        self.results.append(gap)

    def on_session_end(self) -> None:
        raise AssertionError("a feed has one session")


def feed_to(handler: Handler, metrics: Metrics, rate: float = 20.0) -> Feed:
    config = ConsumerConfig((), ("bridge.demo",), None, "demo")
    handler.feed = Feed(rate, lambda: None, config, handler, FlowControl(1), metrics, False, DEFAULT)
    return handler.feed


async def test_feed_delivers_valid_and_invalid_events_and_gaps_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    VirtualTime(monkeypatch, feed_module)
    metrics = Metrics()
    handler = Handler(events=2 * GAP_INTERVAL)
    # At a rate of 0.1, the feed needs much longer than GAP_INTERVAL_S for GAP_INTERVAL events.
    feed = feed_to(handler, metrics, rate=0.1)
    await feed.run()
    outcomes = [each for each in handler.results if isinstance(each, Accepted | Rejected)]
    assert handler.delivered == len(outcomes) == 2 * GAP_INTERVAL
    invalid = [number for number, each in enumerate(outcomes, 1) if isinstance(each, Rejected)]
    assert invalid == list(range(REJECT_INTERVAL, 2 * GAP_INTERVAL + 1, REJECT_INTERVAL))
    assert {each.reason for each in outcomes if isinstance(each, Rejected)} == {Reason.SCHEMA_VIOLATION}
    ids = [orjson.loads(each.payload)["data"]["killmailId"] for each in outcomes if isinstance(each, Accepted)]
    assert ids == sorted(set(ids))
    # The feed is stopped before the second gap is reported.
    [gap] = [each for each in handler.results if not isinstance(each, Accepted | Rejected)]
    assert handler.results.index(gap) == GAP_INTERVAL
    assert feed.gaps.last == gap
    assert feed.status.state is State.STOPPED


async def test_feed_with_a_high_rate_reports_a_gap_at_most_once_in_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    VirtualTime(monkeypatch, feed_module)
    rate = 100.0
    handler = Handler(events=int(1.5 * GAP_INTERVAL_S * rate))
    await feed_to(handler, Metrics(), rate).run()
    first, second = [index for index, each in enumerate(handler.results) if not isinstance(each, Accepted | Rejected)]
    assert first == GAP_INTERVAL
    assert second - first == pytest.approx(GAP_INTERVAL_S * rate, rel=0.2)


async def test_delivery_is_logged_at_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    VirtualTime(monkeypatch)
    handler = Handler(events=1)
    with capture_logs() as logged:
        await feed_to(handler, Metrics()).run()
    [line] = [line for line in logged if line["event"] == "delivery"]
    assert (line["log_level"], line["tag"], line["exchange"], line["type"]) == ("debug", 1, "bridge.demo", "killmail")
    assert line["bytes"] > 0


async def test_feed_is_live_and_fresh_while_it_runs() -> None:
    metrics = Metrics()
    feed = feed_to(Handler(events=1), metrics, rate=0.01)
    register_source_metrics(metrics, feed)
    assert not feed.is_live
    running = asyncio.create_task(feed.run())
    await asyncio.sleep(0)
    assert feed.is_live
    assert feed.status.is_fresh
    assert metrics.registry.get_sample_value("bridge_consuming") == 1
    assert metrics.registry.get_sample_value("bridge_queue_other_consumers") == 0
    feed.stop()
    await running
    assert not feed.is_live
