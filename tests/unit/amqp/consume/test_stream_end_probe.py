"""Tests of the probe for the end of a stream, with a broker that answers, is silent or fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aiormq
import pytest
from pamqp import commands

from bridge.amqp.consume import stream_markers
from bridge.amqp.consume.stream_end_probe import PREFETCH, StreamEndProbe
from bridge.amqp.consume.stream_markers import MARKER_TYPE, StreamMarker
from bridge.amqp.status import Gap
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT
from tests.support.fake_amqp import HANGS, NACK, REFUSED, FakeAmqp, FakeChannel, returned
from tests.support.virtual_time import VirtualTime

PUBLISH = "publish to (default)"


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


def comes(channel: FakeChannel, body: bytes, offset: int = 41) -> asyncio.Task[None]:
    """Delivers a message of the stream."""
    properties = commands.Basic.Properties(headers={"x-stream-offset": offset})
    message = SimpleNamespace(body=body, header=SimpleNamespace(properties=properties), delivery_tag=7)
    assert channel.consumer is not None
    return asyncio.create_task(channel.consumer(message))


class Delivers:
    """Confirms a published marker and delivers it, as a broker does."""

    def __init__(self, amqp: FakeAmqp) -> None:
        self._amqp = amqp
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self) -> None:
        [channel] = self._amqp.channels
        self.tasks.append(comes(channel, channel.published[-1][0]))


async def test_end_is_the_offset_of_the_own_marker(clock: VirtualTime) -> None:
    amqp = FakeAmqp()
    amqp.on(PUBLISH, delivers := Delivers(amqp))
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    assert amqp.requests == ["channel with confirms", f"qos {PREFETCH}", "consume past"]
    [channel] = amqp.channels
    assert channel.arguments == [{"x-stream-offset": "next"}]
    gap = Gap(1.0, 2.0, "away")
    assert await probe.end("mine", lambda: gap) == 41
    [(body, properties)] = channel.published
    assert stream_markers.decode(body) == StreamMarker("mine", gap)
    assert (properties.message_type, properties.delivery_mode) == (MARKER_TYPE, 2)
    await asyncio.gather(*delivers.tasks)
    assert "ack 7" in amqp.requests
    assert channel.is_closed


async def test_marker_of_another_bridge_is_not_the_end(clock: VirtualTime) -> None:
    amqp = FakeAmqp()
    amqp.on(PUBLISH, HANGS)
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    [channel] = amqp.channels
    finding = asyncio.create_task(probe.end("mine", lambda: None))
    await comes(channel, stream_markers.encode(StreamMarker("theirs", None)), 40)
    await asyncio.sleep(0.1)
    assert not finding.done()
    await comes(channel, stream_markers.encode(StreamMarker("mine", None)), 42)
    await comes(channel, stream_markers.encode(StreamMarker("mine", None)), 43)
    assert await finding == 42, "the first of two published markers counts"


async def test_delivery_before_the_marker_is_published_is_not_the_end(clock: VirtualTime) -> None:
    amqp = FakeAmqp()
    await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    await comes(amqp.channels[0], b"anything")
    assert amqp.requests[-1] == "ack 7"


@pytest.mark.parametrize("answer", [NACK, HANGS, None], ids=["nack", "silence", "confirmed and dropped"])
async def test_marker_that_is_not_read_back_is_published_again(clock: VirtualTime, answer: object) -> None:
    """Until the stream has a leader, a broker that has just started may confirm a message and still drop it."""
    amqp = FakeAmqp()
    amqp.on(PUBLISH, answer, answer, Delivers(amqp))
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    asked: list[float] = []

    def gap() -> Gap:
        asked.append(clock.now_s)
        return Gap(0.0, float(len(asked)), "away")

    before_s = clock.now_s
    assert await probe.end("mine", gap) == 41
    assert clock.now_s - before_s == pytest.approx(2 * DEFAULT.marker_retry_s, abs=0.01)
    last = stream_markers.decode(amqp.channels[0].published[-1][0])
    assert last is not None
    assert last.gap == Gap(0.0, 3.0, "away"), "the gap grows with each attempt"


async def test_unroutable_marker_is_published_again(clock: VirtualTime) -> None:
    amqp = FakeAmqp()
    amqp.on(PUBLISH, returned(), Delivers(amqp))
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    assert await probe.end("mine", lambda: None) == 41


async def test_missing_permission_to_publish_is_a_refusal(clock: VirtualTime) -> None:
    amqp = FakeAmqp().on(PUBLISH, REFUSED)
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    with pytest.raises(BrokerRefusal, match=r"it needs write on amq\.default, .* \(or set BRIDGE_HISTORY=memory\)"):
        await probe.end("mine", lambda: None)


async def test_refusal_to_publish_is_found_if_the_channel_ends_first(clock: VirtualTime) -> None:
    """The broker closes the channel, and the publisher learns of the refusal a moment later."""
    amqp = FakeAmqp()
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    [channel] = amqp.channels

    async def refuse(*_: Any, **__: Any) -> None:
        channel.closing.set_exception(REFUSED)
        await asyncio.sleep(DEFAULT.marker_retry_s / 2)
        raise REFUSED

    channel.basic_publish = refuse  # type: ignore[method-assign]  # a fast broker
    with pytest.raises(BrokerRefusal, match=r"write on amq\.default"):
        await probe.end("mine", lambda: None)


@pytest.mark.parametrize("answer", [HANGS, None, NACK], ids=["silence", "confirmed and dropped", "nack"])
async def test_connection_that_is_lost_meanwhile_raises_the_brokers_reason(clock: VirtualTime, answer: object) -> None:
    amqp = FakeAmqp().on(PUBLISH, answer)
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    asyncio.get_running_loop().call_later(0.1, amqp.lose)
    with pytest.raises(ConnectionError, match="the end of the stream 'past' was not found: CONNECTION_FORCED"):
        await probe.end("mine", lambda: None)


async def test_lost_connection_raises_the_brokers_reason_if_publishing_fails_first(
    clock: VirtualTime,
) -> None:
    amqp = FakeAmqp()
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    [channel] = amqp.channels

    async def fail(*_: Any, **__: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(DEFAULT.marker_retry_s / 2, channel.closing.set_exception, RuntimeError("node is going down"))
        raise aiormq.exceptions.ChannelInvalidStateError("no reason of the broker")

    channel.basic_publish = fail  # type: ignore[method-assign]  # a fast library
    with pytest.raises(ConnectionError, match="was not found: node is going down"):
        await probe.end("mine", lambda: None)


async def test_other_error_of_publishing_is_raised(clock: VirtualTime) -> None:
    amqp = FakeAmqp().on(PUBLISH, RuntimeError("the writer is closed"))
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    with pytest.raises(RuntimeError, match="the writer is closed"):
        await probe.end("mine", lambda: None)


@pytest.mark.parametrize("before", [True, False])
async def test_blocked_broker_is_not_waited_for(clock: VirtualTime, *, before: bool) -> None:
    amqp = FakeAmqp().on(PUBLISH, HANGS)
    probe = await StreamEndProbe.listen(amqp.amqp, "past", DEFAULT.marker_retry_s)
    if before:
        await amqp.block("low on disk")
        await amqp.block("low on memory")
        await amqp.unblock()
    finding = asyncio.create_task(probe.end("mine", lambda: None))
    await asyncio.sleep(0.1)
    if not before:
        await amqp.block("low on disk")
    with pytest.raises(ConnectionError, match=r"accepts no messages \(low on disk\), so the end .* 'past'"):
        await finding


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            aiormq.exceptions.ChannelPreconditionFailed(
                "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue"
            ),
            "the queue 'past' is not a stream, .* name another one in BRIDGE_HISTORY_STREAM",
        ),
        (REFUSED, r"lacks a permission: .*; it needs read on the queue 'past' \(or set BRIDGE_HISTORY=memory\)"),
    ],
    ids=["no stream", "permission"],
)
async def test_queue_that_can_not_be_consumed_as_a_stream_is_a_refusal(error: Exception, words: str) -> None:
    with pytest.raises(BrokerRefusal, match=words):
        await StreamEndProbe.listen(FakeAmqp().on("consume past", error).amqp, "past", DEFAULT.marker_retry_s)


async def test_other_error_of_consuming_is_no_refusal() -> None:
    error = aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - no leader yet")
    with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
        await StreamEndProbe.listen(FakeAmqp().on("consume past", error).amqp, "past", DEFAULT.marker_retry_s)
