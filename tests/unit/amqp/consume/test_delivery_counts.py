"""Deliveries that come back again and again: when that is said, and for how long."""

from __future__ import annotations

import pytest
from pamqp import commands
from pamqp.common import FieldValue
from structlog.testing import capture_logs

from bridge.amqp.consume.delivery_counts import WARNED, Returns
from bridge.amqp.consume.session import ConsumerSession
from bridge.amqp.wire.properties import MessageProperties
from tests.support.delivery_handler import Recorder
from tests.support.fake_amqp import OWN, header, method, part, payload_of


def properties(count: FieldValue) -> MessageProperties:
    """The properties of a message with that delivery count."""
    return MessageProperties(payload_of(header(0, commands.Basic.Properties(headers={"x-delivery-count": count}))))


def test_event_that_came_back_often_is_warned_of_until_it_is_settled() -> None:
    returns = Returns()
    with capture_logs() as logged:
        returns.note(1, properties(WARNED - 1))
        assert (returns.warnings, logged) == ([], [])
        returns.note(2, properties(WARNED))
        returns.note(3, properties(WARNED + 2))
    [warning] = returns.warnings
    assert f"was delivered {WARNED + 2} times before" in warning
    assert [line["log_level"] for line in logged] == ["warning"], "once, until it is twice as often"
    returns.settle(3)
    assert f"was delivered {WARNED} times before" in returns.warnings[0]
    returns.settle(2)
    assert returns.warnings == []


def test_warning_is_logged_again_when_the_count_has_doubled_and_after_all_was_settled() -> None:
    returns = Returns()
    with capture_logs() as logged:
        for count in range(WARNED, 21):
            returns.begin()
            returns.note(1, properties(count))
        returns.settle(1)
        returns.note(2, properties(WARNED))
    assert len(logged) == 4
    assert [str(count) in line["event"] for count, line in zip((5, 10, 20, 5), logged, strict=True)] == [True] * 4


def test_session_that_ends_takes_its_deliveries_along() -> None:
    returns = Returns()
    returns.note(1, properties(WARNED))
    returns.begin()
    assert returns.warnings == []


@pytest.mark.parametrize("count", [None, "many", ["7"]])
def test_header_that_is_no_number_says_nothing(count: FieldValue) -> None:
    returns = Returns()
    returns.note(1, properties(count))
    returns.note(2, MessageProperties(payload_of(header(0))))
    assert returns.warnings == []


@pytest.mark.parametrize("redelivered", [True, False])
async def test_only_what_the_broker_calls_redelivered_is_looked_at(*, redelivered: bool) -> None:
    recorder, returns = Recorder(), Returns()
    recorder.holds = True
    session = ConsumerSession(recorder, 10, returns=returns)
    session.fast_channel.number = OWN
    properties = commands.Basic.Properties(headers={"x-delivery-count": WARNED})
    session.fast_channel.feed(method(1, redelivered=redelivered) + header(5, properties) + part(b"event"))
    assert bool(returns.warnings) is redelivered
    recorder.deliveries[0].settle()
    assert returns.warnings == []
