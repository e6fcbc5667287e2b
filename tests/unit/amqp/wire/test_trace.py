"""Tests of the log lines for each delivery and acknowledgement, which are written only at level debug."""

from __future__ import annotations

import logging

import pytest
from pamqp import commands
from structlog.testing import capture_logs

from bridge.amqp.consume.session import ConsumerSession
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.amqp.wire.properties import StreamPropertiesReader
from bridge.amqp.wire.trace import LOGGER, traced
from tests.support.delivery_handler import Recorder
from tests.support.fake_amqp import OWN, FakeAmqp, FakeTransport, delivery, header, method, part


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)


async def consume(*, stream: bool = False) -> tuple[FastChannel, FakeTransport]:
    fast_channel, channel = FastChannel(), FakeAmqp().open_channel()
    fast_channel.attach(transport := FakeTransport())
    options = {"read_properties": StreamPropertiesReader().read} if stream else {}
    session = ConsumerSession(Recorder(), channel, fast_channel, 20, lambda: None, None, **options)
    await session.consume("kept", None)
    return fast_channel, transport


async def test_deliveries_and_acknowledgements_are_logged_in_order(debug: None) -> None:
    fast_channel, transport = await consume()
    properties = commands.Basic.Properties(message_type="killmail")
    with capture_logs() as logged:
        fast_channel.feed(
            method(1, exchange="kills", routing_key="a.b", redelivered=True)
            + header(4, properties)
            + part(b"body")
            + delivery(b"", tag=2)
        )
    assert logged == [
        {
            "event": "delivery",
            "log_level": "debug",
            "tag": 1,
            "exchange": "kills",
            "routing_key": "a.b",
            "type": "killmail",
            "bytes": 4,
            "redelivered": True,
        },
        {
            "event": "delivery",
            "log_level": "debug",
            "tag": 2,
            "exchange": "killmails",
            "routing_key": "",
            "type": None,
            "bytes": 0,
            "redelivered": False,
        },
        {"event": "acknowledged", "log_level": "debug", "tag": 2, "multiple": True},
    ]
    assert len(transport.written) == 1


async def test_delivery_of_a_stream_is_logged_with_its_offset(debug: None) -> None:
    fast_channel, _ = await consume(stream=True)
    properties = commands.Basic.Properties(headers={"x-stream-offset": 2**40 + 7})
    with capture_logs() as logged:
        fast_channel.feed(method(1) + header(0, properties))
    assert (logged[0]["event"], logged[0]["offset"]) == ("delivery", 2**40 + 7)


async def test_nothing_is_logged_at_other_levels_and_nothing_is_wrapped() -> None:
    fast_channel, transport = await consume()
    with capture_logs() as logged:
        fast_channel.feed(delivery(b"body"))
    assert (logged, len(transport.written)) == ([], 1)
    assert traced(fast_channel) is fast_channel
    assert fast_channel.number == OWN
