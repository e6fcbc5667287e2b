"""Tests which gaps are counted and kept, and when each gap begins and ends."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from bridge.amqp.consume import gaps as module
from bridge.amqp.consume.gaps import GapReporter, gap_until_now
from bridge.amqp.status import Gap, GapSlug
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics
from tests.support.delivery_handler import Recorder
from tests.support.virtual_time import VirtualTime


def test_own_gap_is_reported_counted_and_kept_and_that_of_another_bridge_is_only_reported() -> None:
    recorder, metrics = Recorder(), Metrics()
    gaps, own, others = GapReporter(recorder, metrics), Gap(1.0, 2.0, "away"), Gap(3.0, 4.0, "theirs")
    with capture_logs() as logged:
        gaps.report(own)
        gaps.forward(others, UpdateId(1, 2))
    assert logged == [
        {"log_level": "warning", "event": "events may have been missed", **own.report()},
        {"log_level": "warning", "event": "events may have been missed, according to the stream", **others.report()},
    ]
    assert (recorder.gaps, recorder.gap_ids) == ([own, others], [None, UpdateId(1, 2)])
    assert gaps.last == own
    assert metrics.registry.get_sample_value("bridge_gaps_total") == 1


async def test_loss_is_reported_since_the_last_complete_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = VirtualTime(monkeypatch, module)
    gaps, began_s = GapReporter(recorder := Recorder(), Metrics()), clock.time()
    await asyncio.sleep(10)
    gaps.report_loss("early")
    complete_s, complete_unix_s = clock.monotonic(), clock.time()
    gaps.confirm_complete(complete_s)
    gaps.confirm_complete(complete_s - 5)  # a proof for an earlier time has no effect
    await asyncio.sleep(20)
    gaps.report_loss("dropped", GapSlug.STREAM_TRUNCATED, UpdateId(1, 2, before=True))
    assert [(gap.since_s, gap.until_s) for gap in recorder.gaps] == [
        pytest.approx((began_s, began_s + 10)),
        pytest.approx((complete_unix_s, complete_unix_s + 20)),
    ]
    assert [gap.slug for gap in recorder.gaps] == ["broker-away", "stream-truncated"]
    assert recorder.gap_ids == [None, UpdateId(1, 2, before=True)]


async def test_gap_is_in_unix_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualTime(monkeypatch, module)
    since_s, since_unix_s = clock.monotonic(), clock.time()
    await asyncio.sleep(12)
    gap = gap_until_now(since_s, "away")
    assert gap.since_s == pytest.approx(since_unix_s)
    assert gap.until_s == pytest.approx(since_unix_s + 12)
    assert gap.reason == "away"
