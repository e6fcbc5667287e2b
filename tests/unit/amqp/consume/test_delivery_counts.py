"""Tests when the bridge begins to warn, and stops warning, about an event that is delivered repeatedly."""

from __future__ import annotations

import pytest
from pamqp import commands
from pamqp.common import FieldValue
from structlog.testing import capture_logs

from bridge.amqp.consume.delivery_counts import WARNED, DeliveryCounts
from bridge.amqp.consume.session import ConsumerSession
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.amqp.wire.properties import MessageProperties
from tests.support.delivery_handler import Recorder
from tests.support.fake_amqp import OWN, FakeAmqp, header, method, part, payload_of


def properties(count: FieldValue) -> MessageProperties:
    """Returns the properties of a message with the given delivery count."""
    return MessageProperties(payload_of(header(0, commands.Basic.Properties(headers={"x-delivery-count": count}))))


def test_event_with_many_deliveries_is_warned_of_until_it_is_settled() -> None:
    counts = DeliveryCounts()
    with capture_logs() as logged:
        counts.note(1, properties(WARNED - 1))
        assert (counts.warnings, logged) == ([], [])
        counts.note(2, properties(WARNED))
        counts.note(3, properties(WARNED + 2))
    [warning] = counts.warnings
    assert f"was delivered {WARNED + 2} times before" in warning
    assert [line["log_level"] for line in logged] == ["warning"], "one warning, until the count has doubled"
    counts.settle(3)
    assert f"was delivered {WARNED} times before" in counts.warnings[0]
    counts.settle(2)
    assert counts.warnings == []


def test_warning_is_logged_again_when_the_count_has_doubled_and_after_all_was_settled() -> None:
    counts = DeliveryCounts()
    with capture_logs() as logged:
        for count in range(WARNED, 21):
            counts.begin_session()
            counts.note(1, properties(count))
        counts.settle(1)
        counts.note(2, properties(WARNED))
    assert len(logged) == 4
    assert [str(count) in line["event"] for count, line in zip((5, 10, 20, 5), logged, strict=True)] == [True] * 4


def test_end_of_a_session_forgets_its_deliveries() -> None:
    counts = DeliveryCounts()
    counts.note(1, properties(WARNED))
    counts.begin_session()
    assert counts.warnings == []


@pytest.mark.parametrize("count", [None, "many", ["7"]])
def test_header_that_is_not_a_number_is_ignored(count: FieldValue) -> None:
    counts = DeliveryCounts()
    counts.note(1, properties(count))
    counts.note(2, MessageProperties(payload_of(header(0))))
    assert counts.warnings == []


@pytest.mark.parametrize("redelivered", [True, False])
async def test_only_redelivered_events_are_counted(*, redelivered: bool) -> None:
    recorder, counts = Recorder(), DeliveryCounts()
    recorder.holds = True
    fast_channel, channel = FastChannel(), FakeAmqp().open_channel()
    session = ConsumerSession(recorder, channel, fast_channel, 10, on_open=lambda: None, delivery_counts=counts)
    fast_channel.consume(OWN, session)
    properties = commands.Basic.Properties(headers={"x-delivery-count": WARNED})
    fast_channel.feed(method(1, redelivered=redelivered) + header(5, properties) + part(b"event"))
    assert bool(counts.warnings) is redelivered
    recorder.deliveries[0].settle()
    assert counts.warnings == []
