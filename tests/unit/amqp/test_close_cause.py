"""Tests of the reason why a connection, a channel or a consumer was closed, and whether the broker kept running."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiormq
import pytest

from bridge.amqp.close_cause import CANCELLED, CloseCause, closed_future, watch_blocked
from bridge.errors import BrokerRefusal
from tests.support.fake_amqp import FakeAmqp, FakeChannel


async def opened() -> tuple[FakeAmqp, FakeChannel, asyncio.Future[CloseCause]]:
    amqp = FakeAmqp()
    channel: Any = await amqp.channel(publisher_confirms=False)
    return amqp, channel, closed_future(amqp.amqp, channel)


async def test_cause_is_that_of_the_first_close_of_connection_channel_or_consumer() -> None:
    amqp, channel, ended = await opened()
    await asyncio.sleep(0)
    assert not ended.done()
    channel.closing.set_exception(aiormq.exceptions.ChannelClosed("PRECONDITION_FAILED - delivery timed out"))
    assert await ended == CloseCause("PRECONDITION_FAILED - delivery timed out", broker_stayed_up=True)
    amqp.lose()
    await asyncio.sleep(0)
    assert ended.result() == CloseCause("PRECONDITION_FAILED - delivery timed out", broker_stayed_up=True)

    amqp, _, ended = await opened()
    amqp.lose(aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"))
    assert await ended == CloseCause("CONNECTION_FORCED", broker_stayed_up=True)

    _, channel, ended = await opened()
    [cancelled] = channel.on_consumer_cancel_callbacks
    cancelled(object())
    assert await ended == CloseCause(CANCELLED, broker_stayed_up=True)


@pytest.mark.parametrize("how", ["cancelled", "in order"])
async def test_close_without_an_error_has_a_reason_too(how: str) -> None:
    amqp, _, ended = await opened()
    if how == "cancelled":
        amqp.closing.cancel()
    else:
        amqp.closing.set_result(None)
    assert await ended == CloseCause("the connection was closed", broker_stayed_up=False)


@pytest.mark.parametrize(
    ("error", "broker_stayed_up"),
    [
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED - Closed via management plugin"), True),
        (aiormq.exceptions.ConnectionInternalError("INTERNAL_ERROR"), True),
        (aiormq.exceptions.ChannelClosed("PRECONDITION_FAILED - delivery timed out"), True),
        (BrokerRefusal("a permission is missing"), True),
        (
            aiormq.exceptions.ConnectionClosed(
                320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"
            ),
            False,
        ),
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED - vhost '/' is down"), False),
        (aiormq.exceptions.AMQPConnectionError("Server connection unexpectedly closed"), False),
        (ConnectionResetError("reset"), False),
        (ConnectionError("the broker does not answer within 20 s"), False),
        (RuntimeError("closed"), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_broker_stays_up_only_if_it_gives_a_reason_other_than_a_shutdown(
    error: BaseException, *, broker_stayed_up: bool
) -> None:
    assert CloseCause.of(error).broker_stayed_up is broker_stayed_up


async def test_library_without_an_event_for_blocking_is_no_fault() -> None:
    watch_blocked(cast("Any", object()), lambda reason: None)


async def test_missing_heartbeats_are_a_lost_connection() -> None:
    """If the broker's heartbeats are missing, aiormq cancels its own reader."""
    amqp, _, closed = await opened()
    amqp.lose(asyncio.CancelledError())
    assert await closed == CloseCause("the broker sent no more heartbeats", broker_stayed_up=False)
